from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami.core.device import DeviceUuid
from hami.nodeagent.health import HARMLESS_XIDS, HealthTracker, XidPolicy

GPU = DeviceUuid("GPU-0")
OTHER = DeviceUuid("GPU-1")


def make_tracker() -> HealthTracker:
    return HealthTracker(failures=2, calm_seconds=60)


def test_device_is_unhealthy_until_it_has_answered_once() -> None:
    tracker = make_tracker()
    assert not tracker.healthy(GPU)

    tracker.answered(GPU, now=0)

    assert tracker.healthy(GPU)


def test_one_failed_question_is_forgiven_and_asks_for_a_second_look() -> None:
    tracker = make_tracker()
    tracker.answered(GPU, now=0)

    tracker.failed(GPU, "no answer", now=1)

    assert tracker.healthy(GPU)
    assert tracker.suspicious
    tracker.answered(GPU, now=2)
    assert not tracker.suspicious


def test_repeated_failure_makes_a_device_unhealthy_and_says_why() -> None:
    tracker = make_tracker()
    tracker.answered(GPU, now=0)

    tracker.failed(GPU, "no answer", now=1)
    tracker.failed(GPU, "it is lost", now=2)

    assert not tracker.healthy(GPU)
    assert tracker.reason(GPU) == "it is lost"
    assert not tracker.suspicious


def test_failures_of_one_device_do_not_count_for_another() -> None:
    tracker = make_tracker()
    for device in (GPU, OTHER):
        tracker.answered(device, now=0)

    tracker.failed(GPU, "no answer", now=1)
    tracker.broke(GPU, "XID 79", now=1)

    assert tracker.healthy(OTHER)
    assert not tracker.suspicious


def test_critical_error_counts_at_once_and_is_forgotten_after_a_calm() -> None:
    tracker = make_tracker()
    tracker.answered(GPU, now=0)

    tracker.broke(GPU, "XID 79", now=10)
    assert not tracker.healthy(GPU)
    tracker.answered(GPU, now=69)
    assert not tracker.healthy(GPU)
    tracker.answered(GPU, now=70)

    assert tracker.healthy(GPU)
    assert tracker.reason(GPU) == ""


def test_another_error_begins_the_calm_anew() -> None:
    tracker = make_tracker()
    tracker.broke(GPU, "XID 79", now=0)

    tracker.broke(GPU, "XID 48", now=50)
    tracker.answered(GPU, now=61)

    assert not tracker.healthy(GPU)
    assert tracker.reason(GPU) == "XID 48"


events = st.lists(
    st.tuples(st.sampled_from(["answered", "failed", "broke"]), st.floats(0.1, 100)), max_size=40
)


@given(events)
def test_healthy_means_calm_since_the_last_trouble_or_one_forgiven_failure(
    history: list[tuple[str, float]],
) -> None:
    """Against a model: replay what counts, and compare."""
    tracker = make_tracker()
    now, healthy, failures, troubled = 0.0, None, 0, float("-inf")
    for kind, pause in history:
        now += pause
        if kind == "answered":
            tracker.answered(GPU, now=now)
            healthy = True if healthy is None else healthy or now - troubled >= 60
            failures = 0
        elif kind == "failed":
            tracker.failed(GPU, "no answer", now=now)
            failures, troubled = failures + 1, now
            healthy = bool(healthy) and failures < 2
        else:
            tracker.broke(GPU, "XID 79", now=now)
            healthy, troubled = False, now
        assert tracker.healthy(GPU) is healthy


@pytest.mark.parametrize(
    ("disable", "enable", "counted", "ignored"),
    [
        pytest.param("", "", {48, 79}, HARMLESS_XIDS, id="harmless ones are ignored by default"),
        pytest.param("79", "", {48}, HARMLESS_XIDS | {79}, id="a disabled one is ignored"),
        pytest.param("all", "", set(), {48, 79, 13}, id="all can be disabled"),
        pytest.param("XIDs", "", set(), {48, 79, 13}, id="xids is another word for all"),
        pytest.param("all", "79", {79}, {48, 13}, id="one enabled stays when all are disabled"),
        pytest.param("", "13", {13, 79}, {31}, id="a harmless one can be enabled"),
        pytest.param("79,13", "all", {13, 79, 48}, set(), id="all enabled leaves none out"),
        pytest.param(" 79 ,,x, 4x8,-1", "²", {48}, {79}, id="what is no number is ignored"),
    ],
)
def test_xids_count_as_the_lists_say(
    disable: str, enable: str, counted: set[int], ignored: frozenset[int]
) -> None:
    policy = XidPolicy.parse(disable=disable, enable=enable)

    assert all(policy.counts(xid) for xid in counted)
    assert not any(policy.counts(xid) for xid in ignored)
