"""The store makes of each event what it means, and tells handlers no more and no less."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from hami.core.objects import ObjectMeta, Pod
from hami.errors import CodecError
from hami.kube.metrics import KubeMetrics
from hami.kube.store import Store
from hami.kube.watching import Added, Bookmark, Deleted, Event, Key, Listed, Modified, Unreadable
from tests.support.kube import Told, value_of


def pod(name: str, version: str, *, uid: str = "u1", **annotations: str) -> Pod:
    return Pod(
        metadata=ObjectMeta(
            name=name, namespace="ns", uid=uid, resource_version=version, annotations=annotations
        )
    )


def listed(*pods: Pod, unreadable: tuple[Unreadable, ...] = ()) -> Listed[Pod]:
    return Listed(objects=pods, unreadable=unreadable, resource_version="9")


class Script:
    """Stands where a reflector does, and plays events."""

    def __init__(self) -> None:
        self.metrics = KubeMetrics(CollectorRegistry())
        self.store: Store[Pod] = Store("pods", metrics=self.metrics)
        self.told = Told(self.store)

    def play(self, *events: Event[Pod]) -> list[str]:
        self.told.calls.clear()
        for event in events:
            self.store.apply(event)
        return list(self.told.calls)


@pytest.fixture
def script() -> Script:
    return Script()


def test_a_relist_tells_only_what_differs_and_frees_first(script: Script) -> None:
    script.play(listed(pod("kept", "1"), pod("gone", "2"), pod("changed", "3")))

    calls = script.play(listed(pod("changed", "8", note="x"), pod("new", "7"), pod("kept", "1")))

    assert calls == ["gone: gone", "changed: - -> x", "new: new -> -"]


def test_a_relist_keeps_what_it_cannot_read(script: Script) -> None:
    script.play(listed(pod("a", "1"), pod("b", "1")))

    calls = script.play(listed(unreadable=(Unreadable(key=Key("ns", "a"), error="bad"),)))

    assert calls == ["b: gone"]
    assert script.store.get("ns", "a") == pod("a", "1")


def test_a_replaced_object_is_deleted_before_it_is_set(script: Script) -> None:
    script.play(Added(object=pod("a", "1", uid="first")))

    calls = script.play(Modified(object=pod("a", "5", uid="second", note="2")))

    assert calls == ["a: gone", "a: new -> 2"]


def test_an_event_told_twice_changes_nothing(script: Script) -> None:
    added, gone = Added(object=pod("a", "1")), Deleted(key=Key("ns", "a"), resource_version="2")

    assert script.play(added, added) == ["a: new -> -"]
    assert script.play(gone, gone) == ["a: gone"]


def test_bookmarks_and_unreadable_objects_leave_the_store_alone(script: Script) -> None:
    script.play(Added(object=pod("a", "1")))

    calls = script.play(Bookmark(resource_version="5"), Unreadable(key=Key("ns", "a"), error="bad"))

    assert calls == []
    assert script.store.get("ns", "a") == pod("a", "1")


def test_a_handler_that_refuses_an_object_stops_nobody(script: Script) -> None:
    def refuse(_: Pod, __: Pod | None) -> None:
        raise CodecError("annotation: expected a device, met nonsense")

    def refuse_deletion(_: Pod) -> None:
        raise CodecError("annotation: expected a device, met nonsense")

    script.store.add_handler(refuse, refuse_deletion)
    after = Told(script.store)

    script.play(Added(object=pod("a", "1")), Deleted(key=Key("ns", "a"), resource_version="2"))

    assert script.told.calls == after.calls == ["a: new -> -", "a: gone"]
    assert value_of(script.metrics.handler_errors, "pods") == 2


def test_a_bug_in_a_handler_is_not_hidden(script: Script) -> None:
    def broken(_: Pod, __: Pod | None) -> None:
        raise ZeroDivisionError

    script.store.add_handler(broken, lambda _: None)

    with pytest.raises(ZeroDivisionError):
        script.play(Added(object=pod("a", "1")))
