"""Flow control: how fast and how many at once this process allows itself to ask the API server.

Each lane has a budget of its own: a rate, a burst, and a number of requests in flight. So a flood
of routine writes (Events, annotations of nodes) never delays a bind, and a flood of binds never
delays the renewal of a lease; the server's own fairness settles what the lanes ask together. Within
a lane it is first come, first served.

A server that answers 429 is obeyed: the lane (and routine requests in any case, as those that can
wait best) rests for as long as the server asks, goes on at half its rate, and returns to its full
one bit by bit. A caller that would wait longer than it has patience for is told at once.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Final

import anyio

from hami.config import KubeSettings
from hami.errors import ThrottledError


class Lane(Enum):
    """Who waits behind whom: only requests of one lane wait for each other."""

    ROUTINE = "routine"
    URGENT = "urgent"
    """Binds, and what a bind waits for."""
    LEASE = "lease"
    """Renewals of leases: few, and late ones cost the leadership."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a lane may use."""

    rate: float
    """Requests a second."""
    burst: int
    """Requests at once after a pause, in-flight permitting."""
    in_flight: int


LEASE_BUDGET: Final = Budget(rate=20.0, burst=20, in_flight=4)
SLOWEST: Final = 1 / 16
"""The share of its rate that a lane keeps, however often the server refuses."""
SETTLE_SECONDS: Final = 1.0
"""Refusals within so long are one: they were all sent at the same rate."""
RECOVER_SECONDS: Final = 30.0
"""From nothing to the full rate, evenly."""
LONGEST_REST_SECONDS: Final = 10.0
"""A server that asks for more is asked again after this."""
_SMOOTHING: Final = 0.1


class TokenBucket:
    """``burst`` tokens, refilled at ``rate`` a second. Pure: the caller brings the time."""

    def __init__(self, *, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at: float | None = None

    def set_limits(self, now: float, *, rate: float, burst: int) -> None:
        """From now on refill at this rate, up to this burst."""
        self._refill(now)
        self._rate, self._burst = rate, burst
        self._tokens = min(self._tokens, burst)

    def wait(self, now: float, *, tokens: int = 1) -> float:
        """Seconds until so many tokens can have been taken; 0 for at once."""
        self._refill(now)
        return max(0.0, (tokens - self._tokens) / self._rate)

    def try_take(self, now: float) -> bool:
        """Take a token if there is one now."""
        self._refill(now)
        if self._tokens < 1.0 - 1e-9:  # what a sleep of exactly ``wait`` seconds may lack
            return False
        self._tokens -= 1.0
        return True

    def _refill(self, now: float) -> None:
        if self._at is not None and now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now if self._at is None else max(self._at, now)


class Pace:
    """The share of its rate that a lane allows itself, after what the server said. Pure."""

    def __init__(self) -> None:
        self._share = 1.0
        self._slowed_at = float("-inf")
        self._rests_until = float("-inf")

    def refused(self, now: float, *, rest_seconds: float) -> None:
        """The server said 429: rest, then go on at half the rate."""
        rest = min(rest_seconds, LONGEST_REST_SECONDS)
        self._rests_until = max(self._rests_until, now + rest)
        if now - self._slowed_at >= SETTLE_SECONDS:
            self._share = max(SLOWEST, self.share(now) / 2)
            self._slowed_at = now

    def share(self, now: float) -> float:
        """Between ``SLOWEST`` and 1."""
        return min(1.0, self._share + max(0.0, now - self._slowed_at) / RECOVER_SECONDS)

    def rest(self, now: float) -> float:
        """Seconds for which nothing may be sent."""
        return max(0.0, self._rests_until - now)


class _Queue:
    """The requests of one lane."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.bucket = TokenBucket(rate=budget.rate, burst=budget.burst)
        self.pace = Pace()
        self.turn = anyio.Lock()  # first come, first served: its holder is next
        self.slots = anyio.Semaphore(budget.in_flight, max_value=budget.in_flight)
        self.waiting = 0
        self.in_flight = 0
        self.seconds = 0.0
        """Of a request, of late."""

    def wait(self, now: float, requests: int) -> float:
        """Seconds until so many more could have been answered, as things go."""
        ahead = self.waiting + requests
        self.bucket.set_limits(
            now, rate=self.budget.rate * self.pace.share(now), burst=self.budget.burst
        )
        by_rate = self.pace.rest(now) + self.bucket.wait(now, tokens=ahead)
        excess = max(0, self.in_flight + ahead - self.budget.in_flight)
        return max(by_rate, excess * self.seconds / self.budget.in_flight)


class RateLimiter:
    """Gives requests their turn."""

    def __init__(
        self,
        *,
        routine: Budget,
        urgent: Budget,
        lease: Budget = LEASE_BUDGET,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        budgets = {Lane.ROUTINE: routine, Lane.URGENT: urgent, Lane.LEASE: lease}
        self._queues = {lane: _Queue(budget) for lane, budget in budgets.items()}

    @asynccontextmanager
    async def turn(
        self, lane: Lane, *, patience_seconds: float = float("inf")
    ) -> AsyncIterator[None]:
        """Enter when the lane may send one more; the request is in flight while the block lasts.

        Raises:
            ThrottledError: It would take longer than the caller's patience, as things go.
        """
        queue = self._queues[lane]
        expected = queue.wait(self._clock(), 1)
        if expected > patience_seconds:
            raise ThrottledError(
                f"{lane.value} requests to the API server: {queue.waiting} wait already, the next "
                f"would wait {expected:.1f} s, longer than {patience_seconds:g} s",
                retry_after_seconds=expected - patience_seconds,
            )
        queue.waiting += 1
        try:
            async with queue.turn:
                await self._pass(queue)
        finally:
            queue.waiting -= 1
        queue.in_flight += 1
        started = self._clock()
        try:
            yield
        finally:
            queue.in_flight -= 1
            queue.slots.release()
            queue.seconds += _SMOOTHING * (self._clock() - started - queue.seconds)

    @property
    def waiting(self) -> int:
        """Requests of all lanes that wait for their turn."""
        return sum(queue.waiting for queue in self._queues.values())

    def refused(self, lane: Lane, *, retry_after_seconds: float | None) -> None:
        """The server answered 429 to a request of the lane."""
        now = self._clock()
        for each in {lane, Lane.ROUTINE}:
            self._queues[each].pace.refused(now, rest_seconds=retry_after_seconds or 0.0)

    def expected_wait(self, lane: Lane, *, requests: int = 1) -> float:
        """Seconds until so many more requests of the lane could have been answered."""
        return self._queues[lane].wait(self._clock(), requests)

    async def _pass(self, queue: _Queue) -> None:
        """Take a place in flight and a token, both or none."""
        await queue.slots.acquire()
        try:
            while True:
                now = self._clock()
                rest, share = queue.pace.rest(now), queue.pace.share(now)
                queue.bucket.set_limits(
                    now, rate=queue.budget.rate * share, burst=queue.budget.burst
                )
                if rest <= 0.0 and queue.bucket.try_take(now):
                    return
                await self._sleep(rest or queue.bucket.wait(now))
        except BaseException:
            queue.slots.release()
            raise


def budgets_of(settings: KubeSettings) -> tuple[Budget, Budget]:
    """Of routine and of urgent requests."""
    return (
        Budget(rate=settings.qps, burst=settings.burst, in_flight=settings.in_flight),
        Budget(
            rate=settings.urgent_qps,
            burst=settings.urgent_burst,
            in_flight=settings.urgent_in_flight,
        ),
    )


def limiter(settings: KubeSettings) -> RateLimiter:
    """A limiter with these budgets."""
    routine, urgent = budgets_of(settings)
    return RateLimiter(routine=routine, urgent=urgent)
