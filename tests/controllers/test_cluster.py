"""The controller against whatever cluster the tests are given, a real one included.

The nodes are objects without a kubelet, made for the test and removed after it; their pods are
bound but never run.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import msgspec
import pytest

from hami.config import ControllerSettings, Settings
from hami.core import codec
from hami.core.vendors.nvidia import NVIDIA
from hami.kube.client import KubeClient, connect
from hami.kube.resources import NODES, PODS
from tests.support.cluster import open_cluster
from tests.support.controller import Controller, Usage, gpus, node_object, pod_object, running
from tests.support.kube import until

pytestmark = pytest.mark.cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A namespace, a node of two devices, and a client."""

    settings: Settings
    client: KubeClient
    namespace: str
    node: str

    async def create(self, name: str, **asked: Any) -> dict[str, Any]:
        pod = pod_object(name, namespace=self.namespace, **asked)
        return decoded(await self.client.post(PODS.path(self.namespace), pod))

    async def get(self, name: str) -> dict[str, Any]:
        return decoded(await self.client.get(PODS.path(self.namespace, name)))

    async def delete(self, name: str) -> None:
        await self.client.delete(PODS.path(self.namespace, name), {"gracePeriodSeconds": 0})

    async def usage(self, controller: Controller) -> Usage:
        """Of the test's own node."""
        return {
            key: used for key, used in (await controller.usage()).items() if key[0] == self.node
        }


def decoded(body: bytes) -> dict[str, Any]:
    return msgspec.json.decode(body, type=dict[str, Any])


@asynccontextmanager
async def stage(**controller: Any) -> AsyncIterator[Stage]:
    async with open_cluster() as cluster, connect(cluster.settings) as client:
        name = f"hami-test-{uuid.uuid4().hex[:8]}"
        own = ControllerSettings(
            host="127.0.0.1", port=0, health_host="127.0.0.1", health_port=0, **controller
        )
        await client.post(NODES.path(), node_object(name, gpus(name)))
        try:
            yield Stage(
                settings=Settings(kube=cluster.settings, controller=own),
                client=client,
                namespace=cluster.namespace,
                node=name,
            )
        finally:
            with anyio.move_on_after(10, shield=True):
                await client.delete(NODES.path(name=name))


async def test_pod_is_filtered_bound_and_counted() -> None:
    async with stage() as scene, running(scene.settings) as controller:
        pod = await scene.create("p", gpus=2, memory=8000, cores=30)

        answer = await controller.filter(pod, [scene.node, "no-such-node"])
        assert answer["NodeNames"] == [scene.node]
        assert await controller.bind(pod, scene.node) == ""
        assert await controller.bind(pod, scene.node) == "", "bound is bound"

        bound = await scene.get("p")
        annotations = bound["metadata"]["annotations"]
        assert bound["spec"]["nodeName"] == scene.node
        assert bound["metadata"]["labels"][codec.NODE_KEY] == scene.node
        assert annotations[codec.BIND_PHASE_KEY] == "allocating"
        assert len(codec.decode_allocation(annotations[NVIDIA.allocated_key], NVIDIA.name)[0]) == 2
        assert {slots for slots, _, _ in (await scene.usage(controller)).values()} == {1}


async def test_pod_that_was_made_again_is_not_the_one_that_was_meant() -> None:
    async with stage() as scene, running(scene.settings) as controller:
        old = await scene.create("p")
        await controller.filter(old, [scene.node])
        await scene.delete("p")
        await scene.create("p")

        assert "created again" in await controller.bind(old, scene.node)
        assert not (await scene.get("p"))["spec"].get("nodeName")


async def test_twin_waits_until_the_first_is_allocated() -> None:
    async with stage() as scene, running(scene.settings) as controller:
        first, second = [await scene.create(name) for name in ("first", "second")]
        assert await controller.bind(first, scene.node) == ""
        answers: list[str] = []

        async def bind() -> None:
            answers.append(await controller.bind(second, scene.node))

        async with anyio.create_task_group() as group:
            group.start_soon(bind)
            await controller.filter(await scene.create("probe", gpus=2), [scene.node])
            assert not answers
            patch = {"metadata": {"annotations": {codec.BIND_PHASE_KEY: "success"}}}
            await scene.client.patch(PODS.path(scene.namespace, "first"), patch)
        assert answers == [""]


async def test_next_controller_counts_the_same_and_frees_what_is_gone() -> None:
    async with stage() as scene:
        async with running(scene.settings) as controller:
            for name, count in (("a", 1), ("b", 2)):
                pod = await scene.create(name, gpus=count)
                assert await controller.bind(pod, scene.node) == ""
            before = await scene.usage(controller)
        async with running(scene.settings) as controller:
            assert await scene.usage(controller) == before
            for name in ("a", "b"):
                await scene.delete(name)

            async def freed() -> bool:
                return not await scene.usage(controller)

            await until(freed)
