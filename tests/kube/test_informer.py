"""The store follows the cluster, and handlers are told every difference."""

from __future__ import annotations

import anyio
import pytest

from hami.core.objects import ObjectMeta, Pod
from hami.errors import CodecError
from hami.kube.client import KubeClient
from hami.kube.informer import Informer
from hami.kube.watching import Added, Bookmark, Deleted, Event, Key, Listed, Modified, Unreadable
from tests.support.cluster import Cluster
from tests.support.kube import (
    annotate,
    create_pod,
    delete_pod,
    eventually,
    following,
    pod_informer,
    value_of,
)


class Told:
    """Keeps what a handler is told, in order."""

    def __init__(self, informer: Informer[Pod]) -> None:
        self.calls: list[str] = []
        informer.add_handler(self.on_set, self.on_delete)

    def on_set(self, pod: Pod, old: Pod | None) -> None:
        note = pod.annotations.get("note", "-")
        before = old.annotations.get("note", "-") if old else "new"
        self.calls.append(f"{pod.metadata.name}: {before} -> {note}")

    def on_delete(self, pod: Pod) -> None:
        self.calls.append(f"{pod.metadata.name}: gone")


async def test_a_list_of_several_pages_fills_the_store(
    client: KubeClient, cluster: Cluster
) -> None:
    for number in range(7):
        await create_pod(client, f"pod-{number}", cluster.namespace)
    informer = pod_informer(client, cluster.namespace, page_size=3)

    assert not informer.synced
    async with following(informer):
        assert informer.synced
        assert {pod.metadata.name for pod in informer.list()} == {f"pod-{n}" for n in range(7)}


async def test_handlers_see_creation_change_and_deletion(
    client: KubeClient, cluster: Cluster
) -> None:
    informer = pod_informer(client, cluster.namespace)
    told = Told(informer)

    async with following(informer):
        await create_pod(client, "a", cluster.namespace)
        await annotate(client, "a", cluster.namespace, note="1")
        await delete_pod(client, "a", cluster.namespace)
        await eventually(informer, lambda: told.calls[-1:] == ["a: gone"])

    assert told.calls == ["a: new -> -", "a: - -> 1", "a: gone"]
    assert informer.list() == ()


async def test_a_late_handler_is_told_what_is_there(client: KubeClient, cluster: Cluster) -> None:
    await create_pod(client, "a", cluster.namespace)
    informer = pod_informer(client, cluster.namespace)

    async with following(informer):
        told = Told(informer)

    assert told.calls == ["a: new -> -"]


async def test_selectors_narrow_what_is_seen(client: KubeClient, cluster: Cluster) -> None:
    await create_pod(client, "in", cluster.namespace, labels={"app": "x"})
    await create_pod(client, "out", cluster.namespace, labels={"app": "y"})
    informer = pod_informer(
        client,
        cluster.namespace,
        label_selector="app=x",
        field_selector="status.phase!=Succeeded",
    )

    async with following(informer):
        assert [pod.metadata.name for pod in informer.list()] == ["in"]
        await client.patch(
            f"/api/v1/namespaces/{cluster.namespace}/pods/out",
            {"metadata": {"labels": {"app": "x"}}},
        )
        await eventually(informer, lambda: informer.get(cluster.namespace, "out"))


async def test_bookmarks_keep_a_quiet_informer_fresh(client: KubeClient, cluster: Cluster) -> None:
    informer = pod_informer(client, cluster.namespace, watch_seconds=1.0)

    async with following(informer):
        before = informer.resource_version
        await create_pod(client, "a", cluster.namespace)
        await eventually(informer, lambda: informer.resource_version != before)
        bookmarks = client.metrics.watch_events.labels("pods", "bookmark")._value.get
        seen = bookmarks()
        await eventually(informer, lambda: bookmarks() > seen)
        assert informer.last_event_age < 10


async def test_waiting_for_a_condition_is_bounded(client: KubeClient, cluster: Cluster) -> None:
    informer = pod_informer(client, cluster.namespace)

    async with following(informer):
        with pytest.raises(TimeoutError):
            await informer.wait_for(
                lambda: informer.get(cluster.namespace, "never"), timeout_seconds=0.05
            )


async def test_many_waiters_wake_on_one_change(client: KubeClient, cluster: Cluster) -> None:
    informer = pod_informer(client, cluster.namespace)
    names: list[str] = []

    async def wait() -> None:
        pod = await eventually(informer, lambda: informer.get(cluster.namespace, "a"))
        names.append(pod.metadata.name)

    async with following(informer), anyio.create_task_group() as waiters:
        for _ in range(20):
            waiters.start_soon(wait)
        await create_pod(client, "a", cluster.namespace)

    assert names == ["a"] * 20


# Without a server: what the informer makes of each event is decided by `_apply` alone, so these
# feed it values as a reflector would.


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

    def __init__(self, client: KubeClient) -> None:
        self.informer = pod_informer(client, "ns")
        self.told = Told(self.informer)

    def play(self, *events: Event[Pod]) -> list[str]:
        self.told.calls.clear()
        for event in events:
            self.informer._apply(event)
        return list(self.told.calls)


@pytest.fixture
def script(client: KubeClient) -> Script:
    return Script(client)


async def test_a_relist_tells_only_what_differs_and_frees_first(script: Script) -> None:
    script.play(listed(pod("kept", "1"), pod("gone", "2"), pod("changed", "3")))

    calls = script.play(listed(pod("changed", "8", note="x"), pod("new", "7"), pod("kept", "1")))

    assert calls == ["gone: gone", "changed: - -> x", "new: new -> -"]


async def test_a_relist_keeps_what_it_cannot_read(script: Script) -> None:
    script.play(listed(pod("a", "1"), pod("b", "1")))

    calls = script.play(listed(unreadable=(Unreadable(key=Key("ns", "a"), error="bad"),)))

    assert calls == ["b: gone"]
    assert script.informer.get("ns", "a") == pod("a", "1")


async def test_a_replaced_object_is_deleted_before_it_is_set(script: Script) -> None:
    script.play(Added(object=pod("a", "1", uid="first")))

    calls = script.play(Modified(object=pod("a", "5", uid="second", note="2")))

    assert calls == ["a: gone", "a: new -> 2"]


async def test_an_event_told_twice_changes_nothing(script: Script) -> None:
    added, gone = Added(object=pod("a", "1")), Deleted(key=Key("ns", "a"), resource_version="2")

    assert script.play(added, added) == ["a: new -> -"]
    assert script.play(gone, gone) == ["a: gone"]


async def test_bookmarks_and_unreadable_objects_leave_the_store_alone(script: Script) -> None:
    script.play(Added(object=pod("a", "1")))

    calls = script.play(Bookmark(resource_version="5"), Unreadable(key=Key("ns", "a"), error="bad"))

    assert calls == []
    assert script.informer.get("ns", "a") == pod("a", "1")


async def test_a_handler_that_refuses_an_object_stops_nobody(
    script: Script, client: KubeClient
) -> None:
    def refuse(_: Pod, __: Pod | None) -> None:
        raise CodecError("annotation: expected a device, met nonsense")

    def refuse_deletion(_: Pod) -> None:
        raise CodecError("annotation: expected a device, met nonsense")

    script.informer.add_handler(refuse, refuse_deletion)
    after = Told(script.informer)

    script.play(Added(object=pod("a", "1")), Deleted(key=Key("ns", "a"), resource_version="2"))

    assert script.told.calls == after.calls == ["a: new -> -", "a: gone"]
    assert value_of(client.metrics.handler_errors, "pods") == 2


async def test_a_bug_in_a_handler_is_not_hidden(script: Script) -> None:
    def broken(_: Pod, __: Pod | None) -> None:
        raise ZeroDivisionError

    script.informer.add_handler(broken, lambda _: None)

    with pytest.raises(ZeroDivisionError):
        script.play(Added(object=pod("a", "1")))
