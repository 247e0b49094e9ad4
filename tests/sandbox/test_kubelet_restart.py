"""What survives a kubelet, and what others learn through its pod-resources API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import msgspec
import pytest

from hami.nodeagent.proto.podresources_pb2 import (
    AllocatableResourcesRequest,
    GetPodResourcesRequest,
    ListPodResourcesRequest,
)
from hami.nodeagent.proto.podresources_pb2_grpc import PodResourcesListerStub
from hami.sandbox.kubelet.checkpoint import FILE_NAME
from tests.support.device_plugin import RESOURCE, DevicePlugin
from tests.support.node import NodeBench, container, make_pod, open_node


@asynccontextmanager
async def asking(bench: NodeBench) -> AsyncIterator[PodResourcesListerStub]:
    """The pod-resources API, by a new connection."""
    socket = bench.kubelet.settings.pod_resources / "kubelet.sock"
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(f"unix:{socket}", options=options) as channel:
        yield PodResourcesListerStub(channel)  # type: ignore[no-untyped-call]


async def held(bench: NodeBench) -> dict[str, list[str]]:
    """The devices of each pod as the pod-resources API tells them."""
    async with asking(bench) as stub:
        answer = await stub.List(ListPodResourcesRequest())
    return {
        f"{pod.namespace}/{pod.name}": [
            device
            for each in pod.containers
            for entry in each.devices
            for device in entry.device_ids
        ]
        for pod in answer.pod_resources
    }


async def test_pod_resources_tell_who_has_what() -> None:
    async with open_node() as bench:
        cards = DevicePlugin(bench.plugins, ["card-0", "card-1"], numa={"card-0": 1})
        async with cards.serving():
            await bench.offers(RESOURCE, capacity="2", allocatable="2")
            await bench.create(make_pod("a", container(cards=1)))
            await bench.create(make_pod("b"))
            await bench.phase("a", "Running")
            await bench.phase("b", "Running")
            assert await held(bench) == {"default/a": ["card-0"], "default/b": []}

            async with asking(bench) as stub:
                one = await stub.Get(GetPodResourcesRequest(pod_name="a", pod_namespace="default"))
                entry = one.pod_resources.containers[0].devices[0]
                assert (entry.resource_name, entry.topology.nodes[0].ID) == (RESOURCE, 1)
                everything = await stub.GetAllocatableResources(AllocatableResourcesRequest())
                assert [list(each.device_ids) for each in everything.devices] == [
                    ["card-0"],
                    ["card-1"],
                ]
                with pytest.raises(grpc.aio.AioRpcError, match="not found"):
                    await stub.Get(GetPodResourcesRequest(pod_name="x", pod_namespace="default"))


async def test_pod_resources_forget_a_pod_that_ended() -> None:
    async with open_node() as bench, DevicePlugin(bench.plugins, ["card-0"]).serving():
        await bench.offers(RESOURCE, capacity="1", allocatable="1")
        await bench.create(make_pod("a", container(run="true", cards=1)))
        await bench.phase("a", "Succeeded")
        assert await held(bench) == {}


async def test_a_restart_forgets_plugins_and_remembers_allocations() -> None:
    async with open_node() as bench:
        cards = DevicePlugin(bench.plugins, ["card-0", "card-1"])
        async with cards.serving():
            await bench.offers(RESOURCE, capacity="2", allocatable="2")
            await bench.create(make_pod("a", container(cards=1)))
            await bench.phase("a", "Running")
            before = await held(bench)

            await bench.kubelet.restart()
            await bench.offers(RESOURCE, capacity="0", allocatable="0")
            assert await held(bench) == before
            assert not cards.socket.exists()

        async with cards.serving():
            await bench.offers(RESOURCE, capacity="2", allocatable="2")
            await bench.create(make_pod("b", container(cards=1)))
            await bench.phase("b", "Running")
            assert cards.allocations == [["card-0"], ["card-1"]]


async def test_a_restart_leaves_containers_running() -> None:
    async with open_node() as bench:
        await bench.create(make_pod("a", container(run="echo up; exec sleep 1000")))
        pod = await bench.phase("a", "Running")
        await bench.kubelet.restart()
        await bench.create(make_pod("b"))
        await bench.phase("b", "Running")
        again = await bench.phase("a", "Running")
        assert again["status"]["containerStatuses"] == pod["status"]["containerStatuses"]
        assert await bench.log("a") == "up\n"


async def test_an_allocate_lost_in_a_restart_is_made_again() -> None:
    async with open_node() as bench:
        cards = DevicePlugin(bench.plugins, ["card-0"])
        async with cards.serving():
            await bench.offers(RESOURCE, capacity="1", allocatable="1")
            cards.hold_allocations()
            await bench.create(make_pod("a", container(cards=1)))
            await cards.asked.wait()
            await bench.kubelet.restart()
            cards.release_allocations()
        pod = await bench.phase("a", "Failed")
        assert "no healthy devices present" in pod["status"]["message"]


async def test_the_checkpoint_has_the_kubelets_shape() -> None:
    async with open_node() as bench:
        cards = DevicePlugin(bench.plugins, ["card-0"])
        async with cards.serving():
            cards.response.envs["A"] = "b"
            await bench.offers(RESOURCE, capacity="1", allocatable="1")
            await bench.create(make_pod("a", container(cards=1)))
            pod = await bench.phase("a", "Running")
            file = msgspec.json.decode((bench.plugins / FILE_NAME).read_bytes())
    entry = file["Data"]["PodDeviceEntries"][0]
    assert entry["PodUID"] == pod["metadata"]["uid"]
    assert entry["ContainerName"] == "main"
    assert entry["ResourceName"] == RESOURCE
    assert entry["DeviceIDs"] == {"-1": ["card-0"]}
    assert file["Data"]["RegisteredDevices"] == {RESOURCE: ["card-0"]}


@pytest.mark.parametrize("content", [b"", b"{", b'{"Data":{},"Checksum":1}', b"\xff\xfe"])
async def test_a_broken_checkpoint_is_reported_and_the_node_works(content: bytes) -> None:
    async with open_node() as bench:
        (bench.plugins / FILE_NAME).write_bytes(content)
        await bench.kubelet.restart()
        async with DevicePlugin(bench.plugins, ["card-0"]).serving():
            await bench.offers(RESOURCE, capacity="1", allocatable="1")
            await bench.create(make_pod("a", container(cards=1)))
            await bench.phase("a", "Running")
