"""Flow control keeps its budgets, lanes do not wait for each other, and a refusal is obeyed."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami.errors import ThrottledError
from hami.kube.throttle import (
    LONGEST_REST_SECONDS,
    RECOVER_SECONDS,
    SETTLE_SECONDS,
    SLOWEST,
    Budget,
    Lane,
    Pace,
    RateLimiter,
    TokenBucket,
)


class Time:
    """A clock that sleeping moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await anyio.lowlevel.checkpoint()


def limiter_of(
    time: Time, *, rate: float = 10.0, burst: int = 1, in_flight: int = 100
) -> RateLimiter:
    budget = Budget(rate=rate, burst=burst, in_flight=in_flight)
    return RateLimiter(
        routine=budget, urgent=budget, lease=budget, clock=lambda: time.now, sleep=time.sleep
    )


async def send(limiter: RateLimiter, lane: Lane = Lane.URGENT) -> None:
    async with limiter.turn(lane):
        pass


async def seconds_of(time: Time, limiter: RateLimiter, lane: Lane = Lane.URGENT) -> float:
    """How long one more request waits."""
    before = time.now
    await send(limiter, lane)
    return time.now - before


# -- the bucket ---------------------------------------------------------------------------------


def test_a_burst_is_free_and_the_rate_holds_after_it() -> None:
    bucket = TokenBucket(rate=10.0, burst=3)

    assert [bucket.try_take(100.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.wait(100.0) == pytest.approx(0.1)
    assert bucket.wait(100.0, tokens=2) == pytest.approx(0.2)
    assert [bucket.try_take(100.1), bucket.try_take(100.1)] == [True, False]


def test_a_pause_fills_the_bucket_no_further_than_its_burst() -> None:
    bucket = TokenBucket(rate=10.0, burst=2)

    assert [bucket.try_take(0.0) for _ in range(2)] == [True, True]
    assert [bucket.try_take(1000.0) for _ in range(3)] == [True, True, False]


def test_a_changed_rate_holds_from_then_on() -> None:
    bucket = TokenBucket(rate=1.0, burst=4)
    assert all(bucket.try_take(0.0) for _ in range(4))

    bucket.set_limits(2.0, rate=10.0, burst=3)

    assert [bucket.try_take(2.0) for _ in range(3)] == [True, True, False]
    assert bucket.wait(2.0) == pytest.approx(0.1)


@given(
    rate=st.floats(min_value=0.5, max_value=100.0),
    burst=st.integers(min_value=1, max_value=50),
    gaps=st.lists(st.floats(min_value=0.0, max_value=2.0), min_size=1, max_size=60),
)
def test_no_window_ever_sees_more_than_rate_and_burst(
    rate: float, burst: int, gaps: list[float]
) -> None:
    bucket = TokenBucket(rate=rate, burst=burst)
    now, uses = 0.0, []
    for gap in gaps:
        now += gap
        if bucket.wait(now) < 1.0:
            now += bucket.wait(now)
            assert bucket.try_take(now)
            uses.append(now)

    for first in range(len(uses)):
        for last in range(first, len(uses)):
            window = uses[last] - uses[first]
            assert last - first + 1 <= burst + rate * window + 1e-6


# -- turns --------------------------------------------------------------------------------------


async def test_requests_of_a_lane_go_at_its_rate() -> None:
    time = Time()
    limiter = limiter_of(time, burst=2)

    waits = [await seconds_of(time, limiter) for _ in range(4)]

    assert waits == pytest.approx([0.0, 0.0, 0.1, 0.1])


async def test_a_flood_of_routine_requests_does_not_delay_an_urgent_one() -> None:
    budget = Budget(rate=0.001, burst=1, in_flight=1)
    limiter = RateLimiter(routine=budget, urgent=budget)
    await send(limiter, Lane.ROUTINE)

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(send, limiter, Lane.ROUTINE)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(5):
            await send(limiter, Lane.URGENT)
            await send(limiter, Lane.LEASE)
        group.cancel_scope.cancel()


async def test_waiters_that_give_up_do_not_delay_those_who_come_later() -> None:
    time = Time()
    limiter = limiter_of(time, rate=1.0)
    await send(limiter)

    for _ in range(50):
        with anyio.move_on_after(0):
            await send(limiter)
    limited = limiter.expected_wait(Lane.URGENT)

    assert limited <= 1.0


async def test_no_more_are_in_flight_than_the_budget_says_and_the_first_goes_first() -> None:
    limiter = limiter_of(Time(), rate=1000.0, burst=1000, in_flight=2)
    entered: list[int] = []
    leave = [anyio.Event() for _ in range(4)]

    async def request(number: int) -> None:
        async with limiter.turn(Lane.URGENT):
            entered.append(number)
            await leave[number].wait()

    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(request, number)
            await anyio.wait_all_tasks_blocked()
        assert entered == [0, 1]
        leave[1].set()
        await anyio.wait_all_tasks_blocked()
        assert entered == [0, 1, 2]
        for event in leave:
            event.set()
    assert entered == [0, 1, 2, 3]


async def test_who_would_wait_too_long_is_told_at_once_and_holds_up_nobody() -> None:
    time = Time()
    limiter = limiter_of(time, rate=1.0)
    await send(limiter)

    for _ in range(5):
        with pytest.raises(ThrottledError, match=r"would wait 1\.0 s, longer than 0\.5 s"):
            async with limiter.turn(Lane.URGENT, patience_seconds=0.5):
                raise AssertionError("entered")

    assert await seconds_of(time, limiter) == pytest.approx(1.0)


async def test_a_slow_server_is_reckoned_with() -> None:
    """Two at a time, of half a second each: ten more take as long as five."""
    time = Time()
    limiter = limiter_of(time, rate=1000.0, burst=1000, in_flight=2)
    for _ in range(100):
        async with limiter.turn(Lane.URGENT):
            time.now += 0.5

    assert limiter.expected_wait(Lane.URGENT, requests=2) == 0.0
    assert limiter.expected_wait(Lane.URGENT, requests=12) == pytest.approx(2.5, rel=0.01)


# -- refusals -----------------------------------------------------------------------------------


async def test_after_a_429_the_lane_rests_as_long_as_it_is_asked_to() -> None:
    time = Time()
    limiter = limiter_of(time, rate=100.0, burst=100)

    limiter.refused(Lane.URGENT, retry_after_seconds=2.0)

    assert await seconds_of(time, limiter) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("refused", "slowed"),
    [
        (Lane.ROUTINE, {Lane.ROUTINE}),
        (Lane.URGENT, {Lane.URGENT, Lane.ROUTINE}),
        (Lane.LEASE, {Lane.LEASE, Lane.ROUTINE}),
    ],
)
async def test_routine_requests_give_way_first(refused: Lane, slowed: set[Lane]) -> None:
    limiter = limiter_of(Time(), rate=100.0, burst=100)

    limiter.refused(refused, retry_after_seconds=2.0)

    assert {lane for lane in Lane if limiter.expected_wait(lane) > 0} == slowed


def test_refusals_halve_the_share_once_a_second_and_calm_brings_it_back() -> None:
    pace = Pace()

    for _ in range(50):  # all sent at the same rate
        pace.refused(0.0, rest_seconds=0.0)
    assert pace.share(0.0) == 0.5
    pace.refused(SETTLE_SECONDS, rest_seconds=0.0)
    assert pace.share(SETTLE_SECONDS) == pytest.approx(0.25, abs=0.02)
    assert pace.share(SETTLE_SECONDS + RECOVER_SECONDS) == 1.0


def test_a_server_that_refuses_for_ever_is_still_asked_now_and_then() -> None:
    pace = Pace()

    for second in range(100):
        pace.refused(float(second), rest_seconds=1e9)

    assert pace.share(99.0) >= SLOWEST
    assert pace.rest(99.0) == LONGEST_REST_SECONDS


@pytest.mark.parametrize("wish", [None, 0.0])
async def test_a_429_without_a_wish_only_slows_down(wish: float | None) -> None:
    time = Time()
    limiter = limiter_of(time, rate=10.0)
    await send(limiter)

    limiter.refused(Lane.URGENT, retry_after_seconds=wish)

    assert await seconds_of(time, limiter) == pytest.approx(0.2, rel=0.05)
