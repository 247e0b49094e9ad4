"""The token bucket keeps its rate, and lanes do not wait for each other."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami.kube.throttle import Lane, RateLimiter, TokenBucket


def test_a_burst_is_free_and_the_rate_holds_after_it() -> None:
    bucket = TokenBucket(rate=10.0, burst=3)

    waits = [bucket.take(100.0) for _ in range(5)]

    assert waits == pytest.approx([0.0, 0.0, 0.0, 0.1, 0.2])


def test_a_pause_fills_the_bucket_no_further_than_its_burst() -> None:
    bucket = TokenBucket(rate=10.0, burst=2)
    for _ in range(2):
        bucket.take(0.0)

    waits = [bucket.take(1000.0) for _ in range(3)]

    assert waits == pytest.approx([0.0, 0.0, 0.1])


def test_try_take_refuses_instead_of_waiting_and_takes_nothing_then() -> None:
    bucket = TokenBucket(rate=1.0, burst=1)

    assert bucket.try_take(0.0)
    assert not bucket.try_take(0.5)
    assert not bucket.try_take(0.9)
    assert bucket.try_take(1.0)


def test_a_token_given_back_goes_to_the_next() -> None:
    bucket = TokenBucket(rate=1.0, burst=1)
    bucket.take(0.0)
    assert bucket.take(0.0) == pytest.approx(1.0)

    bucket.give_back()

    assert bucket.take(0.0) == pytest.approx(1.0)


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
        uses.append(now + bucket.take(now))

    for first in range(len(uses)):
        for last in range(first, len(uses)):
            window = uses[last] - uses[first]
            assert last - first + 1 <= burst + rate * window + 1e-6


async def test_a_flood_of_routine_requests_does_not_delay_an_urgent_one() -> None:
    limiter = RateLimiter(qps=0.001, burst=1, clock=lambda: 0.0)
    await limiter.acquire(Lane.ROUTINE)

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(limiter.acquire, Lane.ROUTINE)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(5):
            await limiter.acquire(Lane.URGENT)
        group.cancel_scope.cancel()


async def test_waiters_that_give_up_do_not_delay_those_who_come_later() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await anyio.lowlevel.checkpoint()

    limiter = RateLimiter(qps=1.0, burst=1, clock=lambda: 0.0, sleep=sleep)
    await limiter.acquire(Lane.ROUTINE)

    for _ in range(50):
        with anyio.move_on_after(0):
            await limiter.acquire(Lane.ROUTINE)
    await limiter.acquire(Lane.ROUTINE)

    assert slept == pytest.approx([1.0] * 51)
