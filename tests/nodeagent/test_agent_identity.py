"""Whose devices are these? A kubelet that a test scripts asks in any order, and tells the truth."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest

from hami.core import codec
from hami.core.vendors.nvidia import NVIDIA
from hami.kube.resources import PODS
from hami.nodeagent import claims, region
from hami.nodeagent.proto.deviceplugin_pb2 import (
    AllocateRequest,
    ContainerAllocateRequest,
    ContainerPreferredAllocationRequest,
    PreferredAllocationRequest,
    PreStartContainerRequest,
)
from tests.support.agent import AgentBench, agent_settings, bound_pod, running_agent
from tests.support.gpus import simulated_gpus
from tests.support.node import eventually, open_node
from tests.support.scripted_kubelet import ScriptedKubelet

ELSEWHERE = "pods that the node's own kubelet leaves alone"


@dataclass(slots=True)
class IdentityBench:
    """An agent, and a kubelet that does as the test says."""

    agent: AgentBench
    kubelet: ScriptedKubelet
    plugin: Any

    @property
    def gpus(self) -> tuple[str, ...]:
        return self.agent.gpus.uuids

    async def bind(self, name: str, *devices: tuple[str, int], bind_time: int = 100) -> None:
        """A pod of one container, or as many as there are devices if ``devices`` are lists."""
        await self.bind_layout(name, [list(devices)], bind_time=bind_time)

    async def bind_layout(
        self, name: str, layout: list[list[tuple[str, int]]], *, bind_time: int = 100, init: int = 0
    ) -> None:
        await self.agent.node.create(bound_pod(name, layout, bind_time=bind_time, init=init))
        pods = self.agent.agent.pods
        await pods.wait_for(lambda: pods.get("default", name), timeout_seconds=10)

    async def allocate(self, *ids: str, holder: tuple[str, str] | None = None) -> Any:
        """What the plugin answers; the kubelet records the holder, as it does on success."""
        request = AllocateRequest(container_requests=[ContainerAllocateRequest(devices_ids=ids)])
        (answer,) = (await self.plugin.Allocate(request)).container_responses
        if holder is not None:
            self.kubelet.held[holder] = ids
        return answer

    async def start(self, *ids: str) -> None:
        await self.plugin.PreStartContainer(PreStartContainerRequest(devices_ids=ids))

    async def refusal(self, *ids: str) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.start(*ids)
        return caught.value.details() or ""

    def limit(self, answer: Any) -> int | None:
        """MiB in the region that a container was given, whoever's it is by now."""
        control = next(m for m in answer.mounts if m.container_path.endswith("/control"))
        directory = self.agent.regions / control.host_path.split("/")[-2]
        (device,) = region.read_usage(directory).devices
        assert device.memory_limit_bytes is not None
        return device.memory_limit_bytes // 2**20

    async def preferred(self, available: list[str]) -> list[str]:
        """The one id that the plugin would rather see taken."""
        wanted = ContainerPreferredAllocationRequest(
            available_deviceIDs=available, allocation_size=1
        )
        request = PreferredAllocationRequest(container_requests=[wanted])
        (answer,) = (await self.plugin.GetPreferredAllocation(request)).container_responses
        return list(answer.deviceIDs)

    def status(self, pod: str) -> dict[str, Any]:
        obj = self.agent.node.find(PODS, pod)
        assert obj is not None
        found: dict[str, Any] = obj.get("status", {})
        return found

    async def set_status(self, pod: str, status: dict[str, Any]) -> None:
        """As the kubelet reports it; known to the agent on return."""
        path = PODS.path("default", pod, subresource="status")
        await self.agent.node.client.patch(path, {"status": status})
        pods = self.agent.agent.pods
        phase = status["phase"]
        await pods.wait_for(
            lambda: (p := pods.get("default", pod)) and p.status.phase == phase, timeout_seconds=10
        )

    def phase(self, pod: str) -> str | None:
        return self.agent.annotation(pod, codec.BIND_PHASE_KEY)

    def line(self, pod: str) -> str | None:
        return self.agent.annotation(pod, NVIDIA.to_allocate_key)

    def checks(self, result: str) -> float:
        return self.agent.count("hami_agent_identity_checks_total", result=result)


@asynccontextmanager
async def open_bench(**settings: Any) -> AsyncIterator[IdentityBench]:
    kubelet = ScriptedKubelet()
    # The simulated node runs under another name: its kubelet must not touch this agent's pods.
    async with open_node(node_name="another-node") as node:
        root = node.kubelet.settings.root
        directory = root / "scripted"
        config = agent_settings(
            node.kubelet.settings,
            root / "vgpu",
            kubelet_dir=str(directory),
            pod_resources_socket=str(directory / "kubelet.sock"),
            pending_pod_seconds=0.2,
            reconcile_seconds=60,
            **settings,
        )
        await node.client.post(
            "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}
        )
        async with (
            kubelet.serving(directory),
            running_agent(node, simulated_gpus(), config) as agent,
            agent.plugin() as plugin,
        ):
            yield IdentityBench(agent, kubelet, plugin)


async def test_right_guess_is_confirmed() -> None:
    async with open_bench() as bench:
        await bench.bind("a", (bench.gpus[0], 3000))
        await bench.allocate(f"{bench.gpus[0]}-0", holder=("a", "c0"))

        await bench.start(f"{bench.gpus[0]}-0")

        assert bench.checks("confirmed") == 1


async def test_twin_that_came_out_of_turn_gets_its_own_limits_and_the_other_its_turn() -> None:
    async with open_bench() as bench:
        gpu = bench.gpus[0]
        await bench.bind("first", (gpu, 3000), bind_time=1)
        await bench.bind("second", (gpu, 2000), bind_time=2)

        answer = await bench.allocate(f"{gpu}-0", holder=("second", "c0"))
        assert bench.limit(answer) == 3000  # guessed by the time of binding
        await bench.start(f"{gpu}-0")

        assert bench.limit(answer) == 2000
        assert (bench.phase("second"), bench.phase("first")) == ("success", "allocating")
        other = await bench.allocate(f"{gpu}-1", holder=("first", "c0"))
        await bench.start(f"{gpu}-1")
        assert bench.limit(other) == 3000
        assert bench.limit(answer) == 2000
        assert bench.phase("first") == "success"
        assert (bench.checks("repaired"), bench.checks("confirmed")) == (1, 1)


async def test_twins_that_were_both_taken_for_each_other_are_exchanged() -> None:
    async with open_bench() as bench:
        gpu = bench.gpus[0]
        await bench.bind("first", (gpu, 3000), bind_time=1)
        await bench.bind("second", (gpu, 2000), bind_time=2)
        one = await bench.allocate(f"{gpu}-0", holder=("second", "c0"))
        two = await bench.allocate(f"{gpu}-1", holder=("first", "c0"))

        await bench.start(f"{gpu}-0")
        await bench.start(f"{gpu}-1")

        assert (bench.limit(one), bench.limit(two)) == (2000, 3000)
        assert (bench.phase("first"), bench.phase("second")) == ("success", "success")
        assert bench.checks("repaired") == 2
        owners = sorted(claims.read(path).pod for path in bench.agent.regions.iterdir())
        assert owners == ["first", "second"]


async def test_restarted_container_keeps_what_it_was_given_after_an_exchange() -> None:
    async with open_bench() as bench:
        gpu = bench.gpus[0]
        await bench.bind("first", (gpu, 3000), bind_time=1)
        await bench.bind("second", (gpu, 2000), bind_time=2)
        answer = await bench.allocate(f"{gpu}-0", holder=("second", "c0"))
        await bench.start(f"{gpu}-0")

        await bench.start(f"{gpu}-0")

        assert bench.limit(answer) == 2000
        assert bench.checks("confirmed") == 1


async def test_container_with_another_pods_devices_is_refused_and_the_pod_told() -> None:
    async with open_bench() as bench:
        one, two, _ = bench.gpus
        await bench.bind("first", (one, 3000), bind_time=1)
        await bench.bind("second", (two, 2000), bind_time=2)
        await bench.allocate(f"{one}-0", holder=("second", "c0"))

        said = await bench.refusal(f"{one}-0")

        assert "prepared for default/first" in said
        assert bench.checks("refused") == 1
        assert bench.phase("second") == "failed"
        (event,) = await bench.agent.events("DevicesMismatched")
        assert event["involvedObject"]["name"] == "second"


async def test_pod_that_could_only_wait_for_ever_is_failed_with_the_reason() -> None:
    async with open_bench() as bench:
        one, two, _ = bench.gpus
        await bench.bind("first", (one, 3000), bind_time=1)
        await bench.bind("second", (two, 2000), bind_time=2)
        await bench.allocate(f"{one}-0", holder=("second", "c0"))

        await bench.refusal(f"{one}-0")

        status = bench.status("second")
        assert (status["phase"], status["reason"]) == ("Failed", "DevicesMismatched")
        assert "prepared for default/first" in status["message"]
        assert bench.status("first").get("phase") in (None, "Pending")


async def test_container_that_restarts_in_a_running_pod_is_refused_but_its_pod_goes_on() -> None:
    async with open_bench() as bench:
        one, two, _ = bench.gpus
        await bench.bind("first", (one, 3000), bind_time=1)
        await bench.bind("second", (two, 2000), bind_time=2)
        await bench.allocate(f"{one}-0", holder=("second", "c0"))
        await bench.set_status("second", {"phase": "Running"})

        await bench.refusal(f"{one}-0")

        assert bench.status("second")["phase"] == "Running"


async def test_container_asked_for_once_more_gets_its_own_and_not_the_next_ones() -> None:
    async with open_bench() as bench:
        gpu = bench.gpus[0]
        await bench.bind_layout("a", [[(gpu, 1000)], [(gpu, 8000)]])
        lost = await bench.allocate(f"{gpu}-0")

        again = await bench.allocate(f"{gpu}-0", holder=("a", "c0"))
        other = await bench.allocate(f"{gpu}-1", holder=("a", "c1"))
        await bench.start(f"{gpu}-0")
        await bench.start(f"{gpu}-1")

        assert again.mounts == lost.mounts
        assert (bench.limit(again), bench.limit(other)) == (1000, 8000)
        assert bench.checks("confirmed") == 2


async def test_kubelet_that_lost_an_answer_is_told_to_take_the_same_ids_again() -> None:
    async with open_bench() as bench:
        one, two, _ = bench.gpus
        await bench.bind_layout("a", [[(one, 1000)], [(two, 8000)]])
        await bench.allocate(f"{one}-3")

        everything = [f"{gpu}-{number}" for gpu in (one, two) for number in range(10)]
        assert await bench.preferred(everything) == [f"{one}-3"]
        await bench.allocate(f"{one}-3", holder=("a", "c0"))
        assert await bench.preferred([i for i in everything if i != f"{one}-3"]) == [f"{two}-0"]


async def test_containers_of_one_pod_that_were_taken_for_each_other_are_exchanged() -> None:
    async with open_bench() as bench:
        gpu = bench.gpus[0]
        await bench.bind_layout("a", [[(gpu, 1000)], [(gpu, 8000)]])
        one = await bench.allocate(f"{gpu}-0", holder=("a", "c1"))
        two = await bench.allocate(f"{gpu}-1", holder=("a", "c0"))

        await bench.start(f"{gpu}-0")
        await bench.start(f"{gpu}-1")

        assert (bench.limit(one), bench.limit(two)) == (8000, 1000)
        assert bench.checks("repaired") == 2
        assert bench.phase("a") == "success"


async def test_container_with_the_devices_of_its_neighbour_is_refused() -> None:
    async with open_bench() as bench:
        one, two, _ = bench.gpus
        await bench.bind_layout("a", [[(one, 1000)], [(two, 8000)]])
        await bench.allocate(f"{one}-0", holder=("a", "c1"))

        said = await bench.refusal(f"{one}-0")

        assert "container c1 holds devices that were prepared for default/a, container c0" in said
        assert bench.status("a")["phase"] == "Failed"


async def test_pod_that_was_mistaken_is_still_allocated_when_its_turn_comes() -> None:
    async with open_bench() as bench:
        one, two, _ = bench.gpus
        await bench.bind("first", (one, 3000), bind_time=1)
        await bench.bind("second", (two, 2000), bind_time=2)
        await bench.allocate(f"{one}-0", holder=("second", "c0"))
        await bench.refusal(f"{one}-0")

        answer = await bench.allocate(f"{one}-1", holder=("first", "c0"))
        await bench.start(f"{one}-1")

        assert bench.limit(answer) == 3000
        assert bench.phase("first") == "success"
        assert "prepared for" in await bench.refusal(f"{one}-0")  # and goes on being refused


async def test_pod_of_another_scheduler_cannot_run_with_what_was_prepared_for_ours() -> None:
    async with open_bench() as bench:
        await bench.bind("ours", (bench.gpus[0], 3000))
        await bench.allocate(f"{bench.gpus[0]}-0", holder=("stranger", "c0"))

        assert "pod default/stranger" in await bench.refusal(f"{bench.gpus[0]}-0")

        assert bench.line("ours") != ";"
        assert bench.phase("ours") == "allocating"


async def test_silent_kubelet_is_trusted_unless_identity_is_required() -> None:
    async with open_bench() as bench:
        await bench.bind("a", (bench.gpus[0], 3000))
        await bench.allocate(f"{bench.gpus[0]}-0")
        bench.kubelet.silent = True

        await bench.start(f"{bench.gpus[0]}-0")

        assert bench.checks("unconfirmed") == 1
    async with open_bench(require_identity=True) as bench:
        await bench.bind("a", (bench.gpus[0], 3000))
        await bench.allocate(f"{bench.gpus[0]}-0")
        bench.kubelet.silent = True

        assert "the kubelet is not itself" in await bench.refusal(f"{bench.gpus[0]}-0")


async def test_init_container_needs_no_confirmation_that_the_kubelet_never_gives() -> None:
    async with open_bench(require_identity=True) as bench:
        gpu = bench.gpus[0]
        await bench.bind_layout("a", [[(gpu, 1000)], [(gpu, 2000)]], init=1)
        await bench.allocate(f"{gpu}-0")
        await bench.start(f"{gpu}-0")
        assert bench.checks("unconfirmed") == 0

        # the app container takes over the device, as kubelets do
        await bench.allocate(f"{gpu}-0", holder=("a", "c1"))
        await bench.start(f"{gpu}-0")

        assert bench.phase("a") == "success"
        assert bench.checks("confirmed") == 1


async def test_identity_is_known_after_a_restart_of_the_agent() -> None:
    async with open_bench() as bench:
        gpu = bench.gpus[0]
        await bench.bind("first", (gpu, 3000), bind_time=1)
        await bench.bind("second", (gpu, 2000), bind_time=2)
        answer = await bench.allocate(f"{gpu}-0", holder=("second", "c0"))

        agent = bench.agent.agent
        agent.regions._claims.clear()
        await agent.regions.load()
        await bench.start(f"{gpu}-0")

        assert bench.limit(answer) == 2000


async def test_kubelet_that_lost_the_answer_gets_it_again_under_new_ids() -> None:
    async with open_bench() as bench:
        gpu = bench.gpus[0]
        await bench.bind("a", (gpu, 3000))
        lost = await bench.allocate(f"{gpu}-0")
        assert bench.phase("a") == "success"

        again = await bench.allocate(f"{gpu}-1", holder=("a", "c0"))
        await bench.start(f"{gpu}-1")

        assert again.mounts == lost.mounts
        assert again.envs == lost.envs
        assert bench.limit(again) == 3000
        assert len(list(bench.agent.regions.iterdir())) == 1
        assert bench.checks("confirmed") == 1


async def test_pod_that_the_kubelet_has_taken_up_is_not_answered_again() -> None:
    async with open_bench() as bench:
        gpu = bench.gpus[0]
        await bench.bind("a", (gpu, 3000))
        await bench.allocate(f"{gpu}-0", holder=("a", "c0"))

        with pytest.raises(grpc.aio.AioRpcError, match="no pod bound"):
            await bench.allocate(f"{gpu}-1")

        body = {"status": {"conditions": [{"type": "Initialized", "status": "True"}]}}
        path = PODS.path("default", "a", subresource="status")
        await bench.agent.node.client.patch(path, body)
        pods = bench.agent.agent.pods
        await eventually(
            lambda: (pod := pods.get("default", "a")) and pod.status.conditions, pods.list
        )
        bench.kubelet.held.clear()
        with pytest.raises(grpc.aio.AioRpcError, match="no pod bound"):
            await bench.allocate(f"{gpu}-1")


async def test_unreadable_pod_is_told_of_once_however_often_it_is_met() -> None:
    async with open_bench() as bench:
        gpu = bench.gpus[0]
        broken = bound_pod("broken", [[(gpu, 1)]], annotations={NVIDIA.to_allocate_key: "x,y:;"})
        await bench.agent.node.create(broken)
        for name in ("a", "b", "c"):
            await bench.bind(name, (gpu, 100))
            await bench.allocate(f"{gpu}-0")

        assert bench.agent.count("hami_agent_malformed_pods_total") == 1
