"""The device-plugin protocol, as a kubelet sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import grpc
import grpc.aio
import pytest

from hami.nodeagent.proto.deviceplugin_pb2 import (
    AllocateRequest,
    ContainerAllocateRequest,
    ContainerPreferredAllocationRequest,
    Empty,
    ListAndWatchResponse,
    PreferredAllocationRequest,
    PreStartContainerRequest,
)
from tests.support.agent import (
    SOCKET,
    AgentBench,
    agent_settings,
    bound_pod,
    open_agent,
    running_agent,
)
from tests.support.gpus import simulated_gpus
from tests.support.kube import SOON, until
from tests.support.node import eventually, open_node
from tests.support.scripted_kubelet import ScriptedKubelet

SLOTS = 10


def health_of(answer: ListAndWatchResponse) -> dict[str, str]:
    return {device.ID: device.health for device in answer.devices}


async def first_of(stream: AsyncIterator[Any]) -> dict[str, str]:
    with anyio.fail_after(SOON):
        return health_of(await anext(aiter(stream)))


async def refusal(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    return caught.value.details() or ""


def allocate(*ids: str) -> AllocateRequest:
    return AllocateRequest(container_requests=[ContainerAllocateRequest(devices_ids=ids)])


async def test_plugin_asks_to_be_consulted_before_allocation_and_start() -> None:
    async with open_agent() as bench, bench.plugin() as plugin:
        options = await plugin.GetDevicePluginOptions(Empty())

    assert options.pre_start_required
    assert options.get_preferred_allocation_available


async def test_every_device_is_offered_as_often_as_it_may_be_shared() -> None:
    async with open_agent() as bench, bench.plugin() as plugin:
        offered = await first_of(plugin.ListAndWatch(Empty()))

        assert offered == {
            f"{uuid}-{number}": "Healthy" for uuid in bench.gpus.uuids for number in range(SLOTS)
        }


async def test_every_stream_hears_of_every_change() -> None:
    async with open_agent() as bench, bench.plugin() as plugin:
        streams = [aiter(plugin.ListAndWatch(Empty())) for _ in range(3)]
        for stream in streams:
            await first_of(stream)

        bench.gpus.report_xid(1, 79)

        sick = {f"{bench.gpus.uuids[1]}-{number}" for number in range(SLOTS)}
        for stream in streams:
            told = await first_of(stream)
            assert {name for name, health in told.items() if health == "Unhealthy"} == sick
        for stream in streams:
            assert set((await first_of(stream)).values()) == {"Healthy"}


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        pytest.param(["GPU-00000000-0"], "device of this node", id="unknown device"),
        pytest.param(["nonsense"], "expected a device id", id="no device id"),
        pytest.param(["{gpu}"], "expected a device", id="uuid without a number"),
        pytest.param([], "each device id once", id="no ids"),
        pytest.param(["{gpu}-0", "{gpu}-0"], "each device id once", id="one id twice"),
        pytest.param(["{gpu}-0"], "no pod bound to node node-1 waits", id="nobody waits"),
        pytest.param(["x" * 100_000], "expected a device id", id="huge id"),
    ],
)
async def test_malformed_allocation_is_refused_in_words_and_disturbs_nothing(
    ids: list[str], says: str
) -> None:
    async with open_agent(pending_pod_seconds=0.1) as bench, bench.plugin() as plugin:
        named = [text.format(gpu=bench.gpus.uuids[0]) for text in ids]

        assert says in await refusal(plugin.Allocate(allocate(*named)))

        assert bench.count("hami_agent_allocations_total", result="failed") == 1
        await bench.node.create(bound_pod("a", [[(bench.gpus.uuids[0], 100)]]))
        await bench.node.phase("a", "Running")


async def test_wrong_number_of_devices_is_refused_and_names_who_is_being_allocated() -> None:
    async with open_agent(pending_pod_seconds=0.1) as bench, bench.plugin() as plugin:
        first, second, _ = bench.gpus.uuids
        pod = bound_pod("a", [[(first, 100)]])
        pod["spec"]["containers"][0]["resources"] = {}  # the kubelet has nothing to ask for
        await bench.node.create(pod)
        await bench.node.phase("a", "Running")

        said = await refusal(plugin.Allocate(allocate(f"{first}-0", f"{second}-0")))

        assert "waits for 2 devices" in said
        assert "being allocated: default/a" in said


async def test_allocation_waits_for_a_pod_that_the_watch_shows_late() -> None:
    async with open_agent(pending_pod_seconds=SOON) as bench, bench.plugin() as plugin:
        first = bench.gpus.uuids[0]
        granted: list[Any] = []

        async def ask() -> None:
            granted.append(await plugin.Allocate(allocate(f"{first}-0")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            pod = bound_pod("late", [[(first, 100)]])
            pod["spec"]["containers"][0]["resources"] = {}
            await bench.node.create(pod)

        (container,) = granted[0].container_responses
        assert container.envs["NVIDIA_VISIBLE_DEVICES"] == first


async def test_preference_follows_the_allocation_and_is_empty_where_nobody_waits() -> None:
    async with open_agent(pending_pod_seconds=0.1) as bench, bench.plugin() as plugin:
        first, second, _ = bench.gpus.uuids

        def ask() -> Any:
            request = ContainerPreferredAllocationRequest(
                available_deviceIDs=[f"{u}-{n}" for u in (first, second) for n in range(SLOTS)],
                must_include_deviceIDs=[f"{second}-7"],
                allocation_size=1,
            )
            return plugin.GetPreferredAllocation(
                PreferredAllocationRequest(container_requests=[request])
            )

        (nobody,) = (await ask()).container_responses
        assert list(nobody.deviceIDs) == []
        pod = bound_pod("a", [[(second, 100)]])
        pod["spec"]["containers"][0]["resources"] = {}
        await bench.node.create(pod)
        (preferred,) = (await ask()).container_responses
        assert list(preferred.deviceIDs) == [f"{second}-7"]


async def test_container_start_with_devices_that_nobody_prepared_is_let_through_with_a_count() -> (
    None
):
    """Containers that another agent allocated, before this one took over the node."""
    async with open_agent() as bench, bench.plugin() as plugin:
        ids = [f"{bench.gpus.uuids[0]}-0"]

        await plugin.PreStartContainer(PreStartContainerRequest(devices_ids=ids))

        assert bench.count("hami_agent_identity_checks_total", result="unconfirmed") == 1


async def test_where_identity_is_required_an_unknown_container_may_not_start() -> None:
    async with open_agent(require_identity=True) as bench, bench.plugin() as plugin:
        ids = [f"{bench.gpus.uuids[0]}-0"]

        said = await refusal(plugin.PreStartContainer(PreStartContainerRequest(devices_ids=ids)))

        assert "is not certain" in said


async def registrations(bench: AgentBench, count: int) -> None:
    name = "hami_agent_kubelet_registrations_total"
    await eventually(
        lambda: bench.count(name, result="registered") >= count,
        lambda: bench.count(name, result="registered"),
    )


async def test_plugin_comes_back_after_a_kubelet_restart() -> None:
    async with open_agent() as bench:
        await bench.node.kubelet.restart()

        await registrations(bench, 2)
        await bench.allocatable(3 * SLOTS)
        await bench.node.create(bound_pod("a", [[(bench.gpus.uuids[0], 100)]]))
        await bench.node.phase("a", "Running")


async def test_restart_of_the_kubelet_leaves_running_containers_alone() -> None:
    async with open_agent() as bench:
        await bench.node.create(bound_pod("a", [[(bench.gpus.uuids[0], 100)]]))
        await bench.node.phase("a", "Running")
        (region,) = bench.regions.iterdir()
        before = (region / "control").stat()

        await bench.node.kubelet.restart()
        await registrations(bench, 2)
        await bench.allocatable(3 * SLOTS)

        await bench.node.phase("a", "Running")
        assert (region / "control").stat() == before


async def test_plugin_comes_back_when_its_socket_was_removed() -> None:
    async with open_agent() as bench:
        (bench.node.plugins / SOCKET).unlink()

        await registrations(bench, 2)
        await bench.allocatable(3 * SLOTS)


async def test_plugin_registers_again_while_the_kubelet_does_not_listen() -> None:
    kubelet = ScriptedKubelet()
    async with open_node() as node:
        directory = node.kubelet.settings.root / "deaf"
        settings = agent_settings(
            node.kubelet.settings,
            node.kubelet.settings.root / "vgpu",
            kubelet_dir=str(directory),
            kubelet_silence_seconds=0.1,
        )
        async with (
            kubelet.serving(directory),
            running_agent(node, simulated_gpus(), settings),
        ):
            await eventually(lambda: len(kubelet.registered) > 2, lambda: kubelet.registered)

    request = kubelet.registered[-1]
    assert (request.version, request.endpoint) == ("v1beta1", SOCKET)
    assert request.resource_name == "nvidia.com/gpu"
    assert request.options.pre_start_required


async def test_agent_is_ready_only_while_the_kubelet_knows_it() -> None:
    async with open_agent() as bench:
        assert await bench.get("/readyz") == (200, "ok\n")

        (bench.node.plugins / "kubelet.sock").unlink()

        async def unready() -> bool:
            return await bench.get("/readyz") == (
                503,
                "not ready: not registered with the kubelet\n",
            )

        await until(unready)
        assert await bench.get("/healthz") == (200, "ok\n")
