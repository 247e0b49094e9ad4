"""A Lease seen through the watch, and its age by one's own clock."""

from __future__ import annotations

from typing import Any

import anyio

from hami.kube.client import KubeClient
from hami.kube.leasewatch import DEFAULT_SECONDS, LeaseWatch, steady_clock
from hami.kube.resources import LEASES
from tests.support.cluster import Cluster
from tests.support.kube import SOON


class Scene:
    def __init__(self, client: KubeClient, cluster: Cluster) -> None:
        self.now = 0.0
        self.client = client
        self.namespace = cluster.namespace
        self.watch = LeaseWatch(
            client, namespace=cluster.namespace, name="scheduler", clock=lambda: self.now
        )

    async def create(self, name: str = "scheduler", **spec: Any) -> None:
        body = {"apiVersion": LEASES.api_version, "kind": "Lease", "metadata": {"name": name}}
        await self.client.post(LEASES.path(self.namespace), {**body, "spec": spec})

    async def patch(self, **spec: Any) -> None:
        await self.client.patch(LEASES.path(self.namespace, "scheduler"), {"spec": spec})

    async def until_holder(self, holder: str) -> None:
        with anyio.fail_after(SOON):
            while self.watch.holder != holder:
                await self.watch.changed()


async def test_it_follows_who_holds_the_lease(client: KubeClient, cluster: Cluster) -> None:
    scene = Scene(client, cluster)
    await scene.create("another", holderIdentity="nobody-of-ours")

    async with anyio.create_task_group() as group:
        await group.start(scene.watch.run)
        assert (scene.watch.holder, scene.watch.lease) == ("", None)
        await scene.create(holderIdentity="a_1", leaseDurationSeconds=7)
        await scene.until_holder("a_1")
        assert scene.watch.seconds_left == 7.0
        await scene.patch(holderIdentity="b_1")
        await scene.until_holder("b_1")
        await scene.patch(holderIdentity="")
        await scene.until_holder("")
        assert scene.watch.seconds_left == 0.0
        await scene.patch(holderIdentity="a_2")
        await scene.until_holder("a_2")
        await client.delete(LEASES.path(cluster.namespace, "scheduler"))
        await scene.until_holder("")
        group.cancel_scope.cancel()


async def test_it_is_over_by_its_own_clock_unless_it_changes(
    client: KubeClient, cluster: Cluster
) -> None:
    scene = Scene(client, cluster)
    await scene.create(holderIdentity="a_1", renewTime="2001-01-01T00:00:00.000000Z")

    async with anyio.create_task_group() as group:
        await group.start(scene.watch.run)
        assert scene.watch.seconds_left == DEFAULT_SECONDS, "times in the Lease are not compared"
        scene.now += DEFAULT_SECONDS - 1
        assert scene.watch.seconds_left == 1.0
        changed = scene.watch.lease
        await scene.patch(renewTime="2001-01-01T00:00:02.000000Z")
        with anyio.fail_after(SOON):
            while scene.watch.lease is changed:
                await scene.watch.changed()
        assert scene.watch.seconds_left == DEFAULT_SECONDS
        scene.now += DEFAULT_SECONDS
        assert scene.watch.seconds_left == 0.0
        group.cancel_scope.cancel()


def test_the_clock_goes_on() -> None:
    before = steady_clock()

    assert steady_clock() >= before
