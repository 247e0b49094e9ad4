"""What no hook has seen: measured against both figures that move while they are read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami.nodeagent.governor.untracked import (
    CONTEXT_MAX_BYTES,
    SLACK_BYTES,
    ProcessBytes,
    UntrackedMeter,
)

MIB = 2**20


def process(driver: int, tracked: int | None = 0) -> ProcessBytes:
    return ProcessBytes(
        driver_bytes=driver * MIB, tracked_bytes=None if tracked is None else tracked * MIB
    )


def look(meter: UntrackedMeter, *processes: ProcessBytes, before: int, after: int = -1) -> None:
    meter.measure(
        processes,
        before_bytes=before * MIB,
        after_bytes=(before if after < 0 else after) * MIB,
    )


def test_what_two_looks_agree_on_counts() -> None:
    meter = UntrackedMeter()

    look(meter, process(700, 200), before=200)
    assert meter.untracked_bytes == 0
    look(meter, process(700, 200), before=200)

    assert meter.untracked_bytes == 500 * MIB


@pytest.mark.parametrize(("before", "after"), [(200, 700), (700, 200)])
def test_allocation_or_free_between_the_readings_counts_as_nothing(before: int, after: int) -> None:
    meter = UntrackedMeter()
    for _ in range(2):
        look(meter, process(700, 200), before=before, after=after)

    assert meter.untracked_bytes == 0


def test_peak_of_one_look_counts_as_nothing() -> None:
    meter = UntrackedMeter()
    look(meter, process(200, 200), before=200)
    look(meter, process(900, 200), before=200)
    assert meter.untracked_bytes == 0
    look(meter, process(200, 200), before=200)

    assert meter.untracked_bytes == 0


def test_what_drivers_round_up_is_nobodys_doing() -> None:
    meter = UntrackedMeter()
    slack = SLACK_BYTES // MIB
    for _ in range(2):
        look(meter, process(100 + slack, 100), process(100 + slack, 100), before=200)

    assert meter.untracked_bytes == 0


def test_process_without_a_slot_is_a_stranger_the_second_time() -> None:
    meter = UntrackedMeter()
    look(meter, process(100, None), process(100, 50), before=50)
    assert meter.strangers == 0
    look(meter, process(100, None), process(100, 50), before=50)
    assert meter.strangers == 1
    look(meter, process(100, 50), before=50)

    assert meter.strangers == 0


def test_context_is_learnt_from_a_process_that_holds_nothing_else() -> None:
    meter = UntrackedMeter()
    look(meter, process(900, 400), before=400)
    assert meter.context_bytes == 0
    look(meter, process(460, 0), process(900, 400), before=400)
    assert meter.context_bytes == 460 * MIB
    look(meter, process(480, 460), before=460)
    assert meter.context_bytes == 460 * MIB
    look(meter, process(300, 0), before=0)

    assert meter.context_bytes == 300 * MIB


def test_no_context_is_believed_to_be_huge() -> None:
    meter = UntrackedMeter()
    look(meter, process(CONTEXT_MAX_BYTES // MIB + 1, 0), before=0)

    assert meter.context_bytes == 0


def test_context_explains_what_is_untracked() -> None:
    meter = UntrackedMeter()
    look(meter, process(500, 0), before=0)
    for _ in range(2):
        look(meter, process(500, 0), process(700, 200), before=200)

    assert meter.untracked_bytes == 1000 * MIB
    assert meter.excess_bytes() == 0


figures = st.integers(0, 2**40)


@given(
    st.lists(
        st.tuples(st.lists(st.tuples(figures, st.none() | figures), max_size=4), figures, figures)
    )
)
def test_never_more_than_the_driver_says_nor_less_than_nothing(
    looks: list[tuple[list[tuple[int, int | None]], int, int]],
) -> None:
    meter = UntrackedMeter()
    for held, before, after in looks:
        processes = [ProcessBytes(driver_bytes=d, tracked_bytes=t) for d, t in held]
        meter.measure(processes, before_bytes=before, after_bytes=after)

        driver = sum(process.driver_bytes for process in processes)
        assert 0 <= meter.untracked_bytes <= max(driver - max(before, after), 0)
        assert 0 <= meter.context_bytes <= CONTEXT_MAX_BYTES
        assert meter.strangers <= len(processes)


def test_context_that_was_charged_explains_nothing_more() -> None:
    meter = UntrackedMeter()
    charged = ProcessBytes(driver_bytes=700 * MIB, tracked_bytes=500 * MIB, context_bytes=500 * MIB)
    look(meter, process(500, 0), before=0)
    for _ in range(2):
        look(meter, charged, before=500)

    assert meter.untracked_bytes == meter.excess_bytes() == 200 * MIB


def test_context_is_learnt_from_a_process_that_was_charged_too_much_for_it() -> None:
    meter = UntrackedMeter()
    look(meter, process(500, 0), before=0)
    look(
        meter,
        ProcessBytes(driver_bytes=300 * MIB, tracked_bytes=500 * MIB, context_bytes=500 * MIB),
        before=500,
    )

    assert meter.context_bytes == 300 * MIB
