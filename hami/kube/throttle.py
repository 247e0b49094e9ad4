"""The rate at which this process allows itself to ask: token buckets, one a lane.

Each lane has the full rate, so that a flood of routine writes (Events, annotations of nodes) never
delays a bind or a lease renewal; the server's own fairness settles what both lanes ask together.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from enum import Enum

import anyio


class Lane(Enum):
    """Who waits behind whom: only requests of one lane wait for each other."""

    ROUTINE = "routine"
    URGENT = "urgent"
    """Binds, what a bind waits for, and lease renewals."""


class TokenBucket:
    """``burst`` tokens, refilled at ``rate`` a second. Pure: the caller brings the time."""

    def __init__(self, *, rate: float, burst: int) -> None:
        self._interval = 1.0 / rate
        self._depth = (burst - 1) * self._interval
        self._next = float("-inf")  # when the next token falls due, were the bucket unbounded

    def take(self, now: float) -> float:
        """Take the next token; seconds until it may be used, 0 for at once."""
        due = max(self._next, now - self._depth)
        self._next = due + self._interval
        return max(0.0, due - now)

    def try_take(self, now: float) -> bool:
        """Take a token if there is one now."""
        if self._next > now:
            return False
        self.take(now)
        return True

    def give_back(self) -> None:
        """Return a token that was taken and not used."""
        self._next -= self._interval


class RateLimiter:
    """Waits until a request may be sent."""

    def __init__(
        self,
        *,
        qps: float,
        burst: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._buckets = {lane: TokenBucket(rate=qps, burst=burst) for lane in Lane}

    async def acquire(self, lane: Lane) -> None:
        """Return when the lane has a token; a cancelled waiter leaves its token to the next."""
        bucket = self._buckets[lane]
        wait = bucket.take(self._clock())
        if wait <= 0.0:
            return
        try:
            await self._sleep(wait)
        except anyio.get_cancelled_exc_class():
            bucket.give_back()
            raise
