"""Every write carries what it was decided on, and says so when that is over."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import msgspec
import pytest

from hami.core.objects import ObjectMeta, Pod
from hami.errors import ConflictError, KubeError, NotFoundError
from hami.kube import patching
from hami.kube.client import KubeClient
from hami.kube.resources import NODES, PODS, ObjectRef
from tests.support.cluster import Cluster
from tests.support.kube import annotate, create_pod, delete_pod

NODE = "hami-test-node"


async def read(client: KubeClient, name: str, namespace: str) -> Pod:
    return msgspec.json.decode(await client.get(PODS.path(namespace, name)), type=Pod)


@pytest.fixture
async def node(client: KubeClient) -> AsyncIterator[str]:
    """A node that no kubelet serves and nothing is scheduled to."""
    body = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE},
        "spec": {"unschedulable": True},
    }
    await client.post(NODES.path(), body)
    yield NODE
    await client.delete(NODES.path(name=NODE))


async def test_annotations_and_labels_are_set_and_removed(
    client: KubeClient, cluster: Cluster
) -> None:
    made = await create_pod(
        client, "a", cluster.namespace, annotations={"old": "1", "kept": "2"}, labels={"l": "1"}
    )

    body = await patching.patch_metadata(
        client,
        ObjectRef.to(PODS, made),
        annotations={"old": None, "new": "3"},
        labels={"l": None, "m": "x"},
    )

    changed = msgspec.json.decode(body, type=Pod).metadata
    assert (changed.annotations, changed.labels) == ({"kept": "2", "new": "3"}, {"m": "x"})


async def test_a_version_that_is_over_is_a_conflict_and_writes_nothing(
    client: KubeClient, cluster: Cluster
) -> None:
    made = await create_pod(client, "a", cluster.namespace)
    await annotate(client, "a", cluster.namespace, by="somebody else")

    with pytest.raises(ConflictError):
        await patching.patch_metadata(
            client,
            ObjectRef.to(PODS, made),
            annotations={"by": "us"},
            resource_version=made.metadata.resource_version,
        )

    assert (await read(client, "a", cluster.namespace)).annotations == {"by": "somebody else"}


async def test_another_life_of_the_name_is_a_conflict_and_writes_nothing(
    client: KubeClient, cluster: Cluster
) -> None:
    first = await create_pod(client, "a", cluster.namespace)
    await delete_pod(client, "a", cluster.namespace)
    await create_pod(client, "a", cluster.namespace)

    with pytest.raises(ConflictError):
        await patching.patch_metadata(client, ObjectRef.to(PODS, first), annotations={"by": "us"})

    assert not (await read(client, "a", cluster.namespace)).annotations


async def test_what_is_gone_is_not_found(client: KubeClient, cluster: Cluster) -> None:
    made = await create_pod(client, "a", cluster.namespace)
    await delete_pod(client, "a", cluster.namespace)

    with pytest.raises(NotFoundError):
        await patching.patch_metadata(client, ObjectRef.to(PODS, made), annotations={"x": "1"})


async def test_a_json_patch_is_applied_only_where_its_tests_hold(
    client: KubeClient, cluster: Cluster
) -> None:
    made = await create_pod(client, "a", cluster.namespace, annotations={"hami.io/x": "1"})
    ref, path = ObjectRef.to(PODS, made), patching.annotation_path("hami.io/x")

    def swap(old: str, new: str) -> list[dict[str, object]]:
        return [patching.expect(path, old), {"op": "replace", "path": path, "value": new}]

    await patching.json_patch(client, ref, swap("1", "2"))
    with pytest.raises(ConflictError):
        await patching.json_patch(client, ref, swap("1", "3"))

    assert (await read(client, "a", cluster.namespace)).annotations == {"hami.io/x": "2"}


async def test_an_invalid_result_of_a_json_patch_is_no_conflict(
    client: KubeClient, cluster: Cluster
) -> None:
    made = await create_pod(client, "a", cluster.namespace)
    label = [{"op": "add", "path": "/metadata/labels", "value": {"l": "x" * 64}}]

    with pytest.raises(KubeError) as refusal:
        await patching.json_patch(client, ObjectRef.to(PODS, made), label)

    assert (type(refusal.value), refusal.value.status) == (KubeError, 422)


async def test_a_status_is_merged_and_the_rest_left_alone(client: KubeClient, node: str) -> None:
    ref = ObjectRef(resource=NODES, name=node)

    await patching.patch_status(client, ref, {"capacity": {"hami.io/test": "4"}})
    body = await patching.patch_status(client, ref, {"allocatable": {"hami.io/test": "3"}})

    changed = json.loads(body)
    assert changed["status"]["capacity"]["hami.io/test"] == "4"
    assert changed["status"]["allocatable"]["hami.io/test"] == "3"
    assert changed["spec"]["unschedulable"] is True


async def test_a_pod_is_bound_once(client: KubeClient, cluster: Cluster, node: str) -> None:
    made = await create_pod(client, "a", cluster.namespace)
    ref = ObjectRef.to(PODS, made)

    await patching.bind(client, ref, uid=made.metadata.uid, node=node)

    assert (await read(client, "a", cluster.namespace)).spec.node_name == node
    with pytest.raises(ConflictError):
        await patching.bind(client, ref, uid=made.metadata.uid, node=node)


async def test_another_life_of_a_pod_is_not_bound(
    client: KubeClient, cluster: Cluster, node: str
) -> None:
    made = await create_pod(client, "a", cluster.namespace)

    with pytest.raises(ConflictError):
        await patching.bind(client, ObjectRef.to(PODS, made), uid="another-life", node=node)

    assert not (await read(client, "a", cluster.namespace)).spec.node_name


class Contended:
    """A pod whose counter somebody else bumps before each of our first ``rivals`` writes."""

    def __init__(self, client: KubeClient, namespace: str, *, rivals: int) -> None:
        self._client = client
        self._namespace = namespace
        self.rivals = rivals
        self.reads = 0

    async def get(self) -> Pod:
        self.reads += 1
        return await read(self._client, "a", self._namespace)

    def change(self, pod: Pod) -> tuple[ObjectMeta, str]:
        return pod.metadata, str(int(pod.annotations["count"]) + 1)

    async def write(self, wanted: tuple[ObjectMeta, str]) -> bytes:
        meta, count = wanted
        if self.rivals:
            self.rivals -= 1
            await annotate(self._client, "a", self._namespace, count=count)
        ref = ObjectRef(resource=PODS, name=meta.name, namespace=meta.namespace)
        version = meta.resource_version
        return await patching.patch_metadata(
            self._client, ref, annotations={"count": count}, resource_version=version
        )


async def test_a_lost_race_is_read_and_decided_again(client: KubeClient, cluster: Cluster) -> None:
    await create_pod(client, "a", cluster.namespace, annotations={"count": "0"})
    race = Contended(client, cluster.namespace, rivals=3)

    body = await patching.update_with_retry(race.get, race.change, race.write)

    assert race.reads == 4
    assert msgspec.json.decode(body or b"", type=Pod).annotations == {"count": "4"}


async def test_eviction_is_of_one_life_and_can_be_tried(
    client: KubeClient, cluster: Cluster
) -> None:
    made = await create_pod(client, "a", cluster.namespace)
    ref = ObjectRef.to(PODS, made)

    with pytest.raises(ConflictError):
        await patching.evict(client, ref, uid="another")
    await patching.evict(client, ref, uid=made.metadata.uid, dry_run=True)
    assert (await read(client, "a", cluster.namespace)).metadata.deletion_timestamp is None
    await patching.evict(client, ref, uid=made.metadata.uid)
    with pytest.raises(NotFoundError):
        await patching.evict(client, ref, uid=made.metadata.uid)


async def test_a_pod_is_nominated_and_not_any_more(client: KubeClient, cluster: Cluster) -> None:
    made = await create_pod(client, "a", cluster.namespace)
    ref = ObjectRef.to(PODS, made)

    await patching.nominate(client, ref, node="n1")
    assert (await read(client, "a", cluster.namespace)).status.nominated_node_name == "n1"
    await patching.nominate(client, ref, node=None)
    assert (await read(client, "a", cluster.namespace)).status.nominated_node_name is None


async def test_a_race_lost_every_time_is_given_up(client: KubeClient, cluster: Cluster) -> None:
    await create_pod(client, "a", cluster.namespace, annotations={"count": "0"})
    race = Contended(client, cluster.namespace, rivals=100)

    with pytest.raises(ConflictError):
        await patching.update_with_retry(race.get, race.change, race.write, attempts=3)

    assert race.reads == 3


async def test_nothing_to_change_is_nothing_written() -> None:
    async def get() -> int:
        return 7

    async def write(_: object) -> str:
        raise AssertionError("nothing was to be written")

    def leave(_: int) -> object | None:
        return None

    assert await patching.update_with_retry(get, leave, write) is None
