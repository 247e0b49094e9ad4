"""The store follows the cluster, and handlers are told every difference."""

from __future__ import annotations

import anyio
import pytest

from hami.kube import informer as informers
from hami.kube.client import KubeClient
from hami.sandbox.apiserver.faults import Distortion, Fault
from tests.support.cluster import Cluster
from tests.support.kube import (
    SOON,
    Told,
    annotate,
    create_pod,
    delete_pod,
    eventually,
    following,
    pod_informer,
)


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


@pytest.mark.faults  # needs bookmarks more often than other servers send them
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


async def test_catching_up_waits_for_the_watch_to_show_a_version(
    client: KubeClient, cluster: Cluster
) -> None:
    informer = pod_informer(client, cluster.namespace)

    async with following(informer):
        pod = await create_pod(client, "a", cluster.namespace)
        with anyio.fail_after(SOON):
            await informer.catch_up(pod.metadata.resource_version, patience_seconds=SOON)
        assert informer.get(cluster.namespace, "a") == pod


@pytest.mark.faults
async def test_catching_up_lists_anew_where_the_watch_shows_nothing(
    client: KubeClient, cluster: Cluster
) -> None:
    silent = Fault(verb="watch", resource="pods", distortion=Distortion.SILENCE)
    cluster.sandbox.faults.add(silent)
    informer = pod_informer(client, cluster.namespace)
    told = Told(informer)

    async with following(informer):
        pod = await create_pod(client, "a", cluster.namespace)
        with anyio.fail_after(SOON):
            await informer.catch_up(pod.metadata.resource_version, patience_seconds=0.05)
        assert told.calls == ["a: new -> -"]
        cluster.sandbox.faults.remove(silent)
        cluster.sandbox.faults.drop_streams()
        await delete_pod(client, "a", cluster.namespace)
        await eventually(informer, lambda: told.calls[-1:] == ["a: gone"])


@pytest.mark.parametrize(
    ("reached", "wanted", "expected"),
    [("9", "10", False), ("10", "9", True), ("10", "10", True), (None, "1", False),
     ("abc", "1", False), ("2", "abc", False)],
)  # fmt: skip
def test_versions_that_are_no_numbers_reach_nothing(
    reached: str | None, wanted: str, expected: bool
) -> None:
    assert informers._reaches(reached, wanted) is expected
