"""A node's lock, on the wire and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami.core import nodelock
from hami.core.codec import BIND_PHASE_KEY
from hami.core.nodelock import NodeLock, Stale, Terms
from hami.core.objects import Pod, PodStatus
from hami.errors import CodecError
from tests.support.builders import make_pod
from tests.support.strategies import any_text

NOW = datetime(2026, 8, 21, 7, 15, 4, tzinfo=UTC)
OURS = NodeLock(taken_at=NOW, namespace="team-a", name="train-0")


@pytest.mark.parametrize(
    ("text", "lock"),
    [
        ("2026-08-21T07:15:04Z,team-a,train-0", OURS),
        ("2026-08-21T09:15:04+02:00,team-a,train-0", OURS),
        ("2026-08-20T23:45:04-07:30,team-a,train-0", OURS),
        ("2026-08-21T07:15:04.000000000Z,team-a,train-0", OURS),
        ("2026-08-21T07:15:04Z", NodeLock(taken_at=NOW)),
    ],
)
def test_lock_is_read_in_every_form(text: str, lock: NodeLock) -> None:
    assert nodelock.decode(text) == lock


def test_lock_is_written_in_the_protocols_form() -> None:
    assert nodelock.encode(OURS) == "2026-08-21T07:15:04Z,team-a,train-0"
    assert nodelock.encode(NodeLock(taken_at=NOW)) == "2026-08-21T07:15:04Z"


def test_owner_and_age() -> None:
    assert (OURS.owner, NodeLock(taken_at=NOW).owner) == ("team-a/train-0", "")
    assert OURS.age_seconds(NOW + timedelta(seconds=3)) == 3
    assert OURS.age_seconds(NOW - timedelta(seconds=3)) == -3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "locked",
        "2026-08-21 07:15:04,a,b",
        "2026-08-21T07:15:04,a,b",
        "2026-08-21T07:15:04Z,a",
        "2026-08-21T07:15:04Z,a,b,c",
        "2026-08-21T07:15:04Z,,b",
        "2026-08-21T07:15:04Z,a,",
        "2026-13-21T07:15:04Z,a,b",
        "0001-01-01T00:00:00+14:00,a,b",
        "2026-08-21T07:15:04+99:00,a,b",
    ],
)
def test_other_text_is_malformed(text: str) -> None:
    with pytest.raises(CodecError):
        nodelock.decode(text)


TERMS = Terms(timeout_seconds=300, abandoned_seconds=20, scheduler_name="hami-scheduler")


def owner(
    *, node: str | None = None, phase: str = "", scheduler: str = "theirs", status: str = "Pending"
) -> Pod:
    pod = make_pod("train-0", namespace="team-a", node=node, annotations={BIND_PHASE_KEY: phase})
    return msgspec.structs.replace(
        pod,
        spec=msgspec.structs.replace(pod.spec, scheduler_name=scheduler),
        status=PodStatus(phase=status),
    )


def stale(
    lock: NodeLock | None, pod: Pod | None = None, *, age: float = 1, seen: float = 1
) -> Stale | None:
    return nodelock.why_stale(lock, pod, node="n", age_seconds=age, seen_seconds=seen, terms=TERMS)


def test_lock_nobody_can_read_stands_for_a_while() -> None:
    assert stale(None, seen=9.9) is None
    assert stale(None, seen=10) is Stale.MALFORMED


def test_lock_of_a_living_pod_expires_by_our_own_clock_alone() -> None:
    legacy = NodeLock(taken_at=NOW)

    assert stale(OURS, owner(), age=300, seen=300) is None
    assert stale(OURS, owner(), age=9e9) is None
    assert stale(OURS, owner(), age=-9e9, seen=301) is Stale.EXPIRED
    assert stale(legacy, age=300) is None
    assert stale(legacy, age=301) is Stale.EXPIRED


@pytest.mark.parametrize(
    ("pod", "seen", "reason"),
    [
        pytest.param(None, 0, Stale.GONE, id="gone"),
        pytest.param(owner(status="Failed"), 0, Stale.OVER, id="over"),
        pytest.param(
            owner(node="n", phase="allocating", status="Running"), 10, Stale.SERVED, id="running"
        ),
        pytest.param(owner(node="m"), 0, Stale.ELSEWHERE, id="elsewhere"),
        pytest.param(owner(node="n", phase="allocating"), 299, None, id="on-its-way"),
        pytest.param(owner(node="n", phase="success"), 9, None, id="just-served"),
        pytest.param(owner(node="n", phase="success"), 10, Stale.SERVED, id="served"),
        pytest.param(owner(node="n", phase="failed"), 10, Stale.SERVED, id="refused"),
        pytest.param(owner(), 299, None, id="another-schedulers"),
        pytest.param(owner(scheduler="hami-scheduler"), 19, None, id="being-bound"),
        pytest.param(
            owner(scheduler="hami-scheduler"), 20, Stale.ABANDONED, id="nobody-is-binding-it"
        ),
    ],
)
def test_lock_means_nothing_once_its_pod_cannot_need_it(
    pod: Pod | None, seen: float, reason: Stale | None
) -> None:
    assert stale(OURS, pod, seen=seen) is reason


names = st.from_regex(r"[a-z0-9][-a-z0-9.]{0,30}", fullmatch=True)
times = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)).map(
    lambda t: t.replace(microsecond=0, tzinfo=UTC)
)


@given(taken_at=times, namespace=names, name=names)
def test_what_is_written_is_read_back(taken_at: datetime, namespace: str, name: str) -> None:
    lock = NodeLock(taken_at=taken_at, namespace=namespace, name=name)

    assert nodelock.decode(nodelock.encode(lock)) == lock


@given(any_text)
def test_any_text_is_a_lock_or_malformed(text: str) -> None:
    try:
        nodelock.decode(text)
    except CodecError:
        return
