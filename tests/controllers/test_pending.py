"""The book of pending pods: who is in it, what is told, and that it is bounded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hami.config import ControllerSettings
from hami.controllers import pending
from hami.controllers.pending import Asked, Outcome, PendingPods
from hami.core.device import PodRequest
from hami.core.objects import Pod
from hami.core.placement import Placer
from hami.core.request import Defaults, read_request
from hami.core.table import DeviceTable
from hami.kube.client import connect
from hami.kube.events import EventRecorder
from hami.sandbox.apiserver import ApiServer
from tests.support.builders import VENDORS, make_devices, make_pod, make_table
from tests.support.controller import settings_for

NODES = ("node-0", "node-1")
FAILED = dict.fromkeys(NODES, "2/2 CardInsufficientMemory")


@pytest.fixture
async def recorder(server: ApiServer, tmp_path: Path) -> AsyncIterator[EventRecorder]:
    async with connect(settings_for(server, tmp_path).kube) as client:
        yield EventRecorder(client, component="test")


@pytest.fixture
def table() -> DeviceTable:
    return make_table(make_devices(2, memory=1000), make_devices(2, memory=1500))


@pytest.fixture
def book(table: DeviceTable, recorder: EventRecorder) -> PendingPods:
    return PendingPods(
        table,
        Placer(table),
        vendors=VENDORS,
        defaults=Defaults(),
        settings=ControllerSettings(scheduler_name=""),
        recorder=recorder,
        wall_clock=lambda: 1000.0,
    )


def ask(pod: Pod) -> PodRequest:
    return read_request(pod, VENDORS, Defaults())


def refuse(book: PendingPods, pod: Pod) -> None:
    book.refused(pod, ask(pod), NODES, FAILED)


def test_refused_pod_stands_in_line_with_the_words_that_it_was_told(book: PendingPods) -> None:
    refuse(book, make_pod(memory=3000))

    entry = book.get("uid-pod")
    assert entry is not None
    assert entry.told == entry.decision.message
    assert entry.decision.message == (
        "no available node, 2 do not fit: 2 x CardInsufficientMemory; "
        "nearest: node-1: GPU-0 lacks 1500 MiB"
    )
    assert "uid-pod" in book.line


def test_pod_that_fits_is_not_in_line_and_will_be_told_anew(book: PendingPods) -> None:
    pod = make_pod(memory=3000)
    refuse(book, pod)
    book.fitted(pod, ask(pod), NODES, "node-1")

    entry = book.get("uid-pod")
    assert entry is not None
    assert (entry.decision.outcome, entry.told) == (Outcome.FITS, "")
    assert "uid-pod" not in book.line


def test_pod_leaves_when_it_is_bound_ends_or_is_being_deleted(book: PendingPods) -> None:
    for name in ("bound", "gone"):
        refuse(book, make_pod(name, memory=3000))
    assert len(book.line) == 2

    book.on_set(make_pod("bound", memory=3000, node="node-0"), make_pod("bound", memory=3000))
    book.on_delete(make_pod("gone", memory=3000))

    assert (len(book), len(book.line)) == (0, 0)


def test_pod_that_asks_for_no_devices_is_not_kept(book: PendingPods) -> None:
    book.on_set(make_pod(gpus=None), None)

    assert len(book) == 0


def test_change_of_the_request_is_a_new_start(book: PendingPods) -> None:
    before, after = make_pod(memory=3000), make_pod(memory=500)
    refuse(book, before)

    book.on_set(after, before)

    entry = book.get("uid-pod")
    assert entry is not None
    assert entry.decision.outcome is Outcome.UNASKED
    assert len(book.line) == 0


def test_change_that_asks_for_the_same_keeps_what_was_decided(book: PendingPods) -> None:
    before = make_pod(memory=3000)
    refuse(book, before)

    book.on_set(make_pod(memory=3000, annotations={"note": "x"}), before)

    entry = book.get("uid-pod")
    assert entry is not None
    assert entry.decision.outcome is Outcome.UNFIT
    assert len(book.line) == 1


def test_book_is_bounded_and_forgets_who_was_decided_on_longest_ago(
    book: PendingPods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "CAPACITY", 3)
    for name in "abc":
        refuse(book, make_pod(name, memory=3000))
    refuse(book, make_pod("a", memory=3000))
    refuse(book, make_pod("d", memory=3000))

    assert book.get("uid-b") is None
    assert {entry.ref.name for entry in book.entries()} == {"a", "c", "d"}
    assert len(book.line) == 3


def test_equal_pods_that_meet_the_same_share_what_was_found(book: PendingPods) -> None:
    for name in "ab":
        refuse(book, make_pod(name, memory=3000))

    one, other = (book.get(f"uid-{name}") for name in "ab")
    assert one is not None
    assert other is not None
    assert one.decision.nearest is other.decision.nearest
    assert one.decision.asked is other.decision.asked


def test_what_other_parts_say_is_in_the_line_and_bounded(book: PendingPods) -> None:
    pod = make_pod(memory=3000)
    refuse(book, pod)
    for topic in ("gang", "preemption", "quota", "fourth"):
        book.note("uid-pod", topic, f"{topic}!")
    book.note("uid-pod", "gang", "")
    book.note("nobody", "gang", "x")
    refuse(book, pod)

    entry = book.get("uid-pod")
    assert entry is not None
    assert entry.decision.message.endswith("; preemption!; quota!")


def test_failed_bind_is_remembered_and_needs_no_call(book: PendingPods) -> None:
    refuse(book, make_pod(memory=3000))
    book.bind_failed("uid-pod", "node-1", "it went wrong")
    book.bind_failed("nobody", "node-1", "it went wrong")

    entry = book.get("uid-pod")
    assert entry is not None
    assert entry.decision.outcome is Outcome.BIND_FAILED
    assert "node-1 failed: it went wrong" in entry.decision.message
    assert len(book.line) == 0


def test_asked_nodes_are_known_again_and_new_ones_count(table: DeviceTable) -> None:
    asked = Asked.about(table, ("node-1", "ghost"))
    table.set_node("new", make_devices(1))
    assert asked.count == 2
    assert asked.among(table, ("node-0", "node-1", "new")) == ("node-1", "new")

    table.remove_node("node-1")
    table.set_node("reused", make_devices(1))
    assert asked.among(table, ("node-0", "reused")) == ("reused",), "a node of its own"


def test_of_a_sample_of_many_nodes_all_count(table: DeviceTable) -> None:
    for i in range(300):
        table.set_node(f"n{i}", make_devices(1))
    few = Asked.about(table, tuple(f"n{i}" for i in range(99)))
    sample = Asked.about(table, tuple(f"n{i}" for i in range(100)))

    assert few.among(table, ("n98", "n299")) == ("n98",)
    assert sample.among(table, ("n98", "n299")) == ("n98", "n299")
    assert sample.alone(table) == tuple(f"n{i}" for i in range(100)), "who may be evicted from"
