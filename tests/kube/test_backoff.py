"""Delays are bounded, jittered and start over; only what may succeed is tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami.errors import ConflictError, HamiError, ThrottledError, UnavailableError
from hami.kube.backoff import Backoff, Delays, retrying


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_ceilings_double_up_to_the_cap() -> None:
    backoff = Backoff(base_seconds=0.5, cap_seconds=3.0)

    assert [backoff.ceiling(attempt) for attempt in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


@given(
    attempt=st.integers(min_value=0, max_value=10**9),
    factor=st.floats(min_value=1.0, max_value=10.0),
)
def test_no_ceiling_ever_exceeds_the_cap(attempt: int, factor: float) -> None:
    backoff = Backoff(base_seconds=0.1, factor=factor, cap_seconds=30.0)

    assert 0 < backoff.ceiling(attempt) <= 30.0


def test_jitter_draws_from_the_whole_range_below_the_ceiling() -> None:
    draws = iter((0.0, 0.5, 1.0))
    delays = Delays(
        Backoff(base_seconds=1.0, cap_seconds=60.0), uniform=lambda: next(draws), clock=Clock()
    )

    assert [delays.after_failure() for _ in range(3)] == [0.0, 1.0, 4.0]


def test_a_calm_makes_the_sequence_start_over() -> None:
    clock = Clock()
    delays = Delays(
        Backoff(base_seconds=1.0, reset_after_seconds=60.0), uniform=lambda: 1.0, clock=clock
    )
    assert [delays.after_failure(), delays.after_failure()] == [1.0, 2.0]

    clock.now += 2.0 + 59.0
    assert delays.after_failure() == 4.0

    clock.now += 4.0 + 60.0
    assert delays.after_failure() == 1.0


def test_the_servers_own_wish_is_kept_up_to_the_cap() -> None:
    delays = Delays(Backoff(base_seconds=1.0, cap_seconds=10.0), uniform=lambda: 0.5, clock=Clock())

    assert delays.after_failure(at_least_seconds=4.0) == 4.5
    assert delays.after_failure(at_least_seconds=4000.0) == 11.0


class Failing:
    """Fails with the given errors in turn, then succeeds."""

    def __init__(self, *failures: HamiError) -> None:
        self.failures = list(failures)
        self.calls = 0
        self.slept: list[float] = []

    async def __call__(self) -> str:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


async def test_transient_failures_are_tried_again() -> None:
    call = Failing(UnavailableError("down"), ThrottledError("busy", retry_after_seconds=1.5))

    result = await retrying(call, "a read", uniform=lambda: 1.0, sleep=call.sleep)

    assert (result, call.calls, call.slept) == ("done", 3, [0.1, 1.7])


async def test_attempts_are_bounded() -> None:
    call = Failing(*[UnavailableError("down")] * 9)

    with pytest.raises(UnavailableError):
        await retrying(call, "a read", attempts=3, sleep=call.sleep)

    assert call.calls == 3


async def test_an_answer_that_will_not_change_is_not_asked_for_again() -> None:
    call = Failing(ConflictError("changed", status=409))

    with pytest.raises(ConflictError):
        await retrying(call, "a write", sleep=call.sleep)

    assert call.calls == 1
