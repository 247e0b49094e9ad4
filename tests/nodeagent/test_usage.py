"""From a driver's samples to windows of our own clock; and what rounding leaves open."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami.nodeagent.governor.usage import IDLE_NS, DeviceWindow, ProcessSample, SampleWindows
from hami.nodeagent.rounding import HALF, Part, refine

MS = 1_000_000
PERIOD = 160
"""Milliseconds."""
BOOT = 1_000_000 * MS
"""What the monotonic clock says when the tests begin."""
EPOCH = 1_700_000_000_000 * MS


class Driver:
    """Publishes a percentage for each period, and remembers the newest alone."""

    def __init__(self, *, lag: int = 30, epoch: bool = True) -> None:
        self.windows = SampleWindows()
        self._lag, self._epoch = lag, epoch
        self.busy: dict[int, dict[int, int]] = {}
        """By period, what each process did."""

    def ask(self, now: int) -> DeviceWindow | None:
        """At so many milliseconds."""
        period = (now - self._lag) // PERIOD - 1
        end_us = ((EPOCH if self._epoch else BOOT) + (period + 1) * PERIOD * MS) // 1000
        newest = self.windows.newest_us(["a"])["a"]
        shown = self.busy.get(period, {}) if end_us > newest else {}
        return self.windows.take(
            "a",
            [ProcessSample(pid=pid, time_us=end_us, percent=shown[pid]) for pid in shown],
            monotonic_ns=BOOT + now * MS,
            realtime_ns=EPOCH + now * MS,
        )


def windows_of(driver: Driver, every: int, until: int) -> list[DeviceWindow]:
    met = [driver.ask(now) for now in range(1000, until, every)]
    return [window for window in met if window is not None]


@pytest.mark.parametrize("epoch", [True, False])
def test_every_period_is_a_window(epoch: bool) -> None:
    driver = Driver(epoch=epoch)
    driver.busy = {period: {7: 25, 8: 50} for period in range(100)}

    met = windows_of(driver, 80, 5000)

    assert len(met) > 20
    for window in met[1:]:
        assert window.end_ns - window.start_ns == PERIOD * MS
        assert (window.end_ns - BOOT) % (PERIOD * MS) == 0
        assert dict(window.busy_ns) == {7: 0.25 * PERIOD * MS, 8: 0.5 * PERIOD * MS}
    assert all(a.end_ns == b.start_ns for a, b in itertools.pairwise(met))


def test_nobody_worked_in_a_period_without_a_word() -> None:
    driver = Driver()
    driver.busy = {period: {7: 100} for period in (*range(10), *range(10, 100, 3))}

    window = windows_of(driver, 80, 6000)[-1]

    assert window.end_ns - window.start_ns == 3 * PERIOD * MS
    assert window.busy_ns[7] == pytest.approx(PERIOD * MS)


def test_who_asks_too_seldom_takes_the_last_period_alone() -> None:
    driver = Driver()
    driver.busy = {period: {7: 100} for period in range(200)}
    windows_of(driver, 80, 3000)  # so that the period is known

    driver.ask(9000)
    window = driver.ask(9000 + 5 * PERIOD)

    assert window is not None
    assert window.end_ns - window.start_ns == PERIOD * MS
    assert window.busy_ns[7] == PERIOD * MS


def test_long_silence_is_idleness() -> None:
    driver = Driver()
    driver.busy = {period: {7: 100} for period in range(15)}

    met = windows_of(driver, 80, 8000)

    assert not met[-1].busy_ns
    assert met[-1].end_ns <= BOOT + 8000 * MS - IDLE_NS


def test_first_sample_is_of_whatever_time() -> None:
    driver = Driver()
    driver.busy = {period: {7: 100} for period in range(100)}

    assert driver.ask(1000) is None


@given(st.lists(st.tuples(st.integers(0, 2**62), st.integers(-5, 500)), max_size=20))
def test_nonsense_of_a_driver_stays_within_time(samples: list[tuple[int, int]]) -> None:
    windows = SampleWindows()
    now = BOOT
    for time_us, percent in samples:
        now += 100 * MS
        met = windows.take(
            "a",
            [ProcessSample(pid=1, time_us=time_us, percent=percent)],
            monotonic_ns=now,
            realtime_ns=EPOCH + now,
        )
        if met is not None:
            assert BOOT <= met.start_ns < met.end_ns <= now
            assert all(0 <= busy <= met.end_ns - met.start_ns for busy in met.busy_ns.values())


def test_rounding_is_mended_by_the_whole() -> None:
    assert refine([Part(8, 8)], whole=11) == [11]
    assert refine([Part(32, 8)], whole=30) == [30]
    assert refine([Part(8, 8), Part(60, 2)], whole=70) == pytest.approx([9.6, 60.4])


def test_whole_of_another_time_mends_nothing() -> None:
    assert refine([Part(8, 8)], whole=40) == [8]
    assert refine([Part(8, 8)], whole=None) == [8]
    assert refine([Part(0, 0)], whole=0) == [0]


parts = st.builds(Part, st.integers(0, 100), st.integers(0, 20))


@given(st.lists(parts, max_size=10), st.none() | st.integers(0, 100))
def test_nothing_is_moved_further_than_rounding_can(met: list[Part], whole: int | None) -> None:
    for part, points in zip(met, refine(met, whole=whole), strict=True):
        assert points >= 0
        assert abs(points - part.percent) <= HALF * part.processes + 1e-9
