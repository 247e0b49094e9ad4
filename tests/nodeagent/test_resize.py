"""Resized allocations reach running containers."""

from __future__ import annotations

import json

from hami.core.codec_resize import RESIZE_APPLIED_KEY, RESIZE_STATUS_KEY
from hami.core.vendors.nvidia import NVIDIA
from hami.kube.patching import patch_metadata
from hami.kube.resources import PODS, ObjectRef
from hami.nodeagent import region
from hami.sandbox.gpu.node import PROBE
from tests.support.agent import AgentBench, bound_pod, open_agent, running_agent
from tests.support.node import eventually

MIB = 2**20
USED = 1000


async def resize(bench: AgentBench, memory: int, cores: int = 0) -> None:
    """What the controller writes once it has accepted."""
    await patch_metadata(
        bench.node.client,
        ObjectRef(resource=PODS, name="a", namespace="default"),
        annotations={
            NVIDIA.allocated_key: f"{bench.gpus.uuids[0]},NVIDIA,{memory},{cores}:;",
            RESIZE_STATUS_KEY: '{"request":"x","state":"accepted"}',
        },
    )


async def applied(bench: AgentBench, wanted: dict[str, int]) -> None:
    def said() -> object:
        return json.loads(bench.annotation("a", RESIZE_APPLIED_KEY) or "{}").get("c0")

    await eventually(lambda: said() == wanted, said)


async def test_running_container_grows_and_shrinks_below_its_use_and_nothing_is_killed() -> None:
    async with open_agent() as bench:
        hold = f"exec {PROBE} --allocate {USED} --hold 0"
        await bench.node.create(bound_pod("a", [[(bench.gpus.uuids[0], 3000)]], run=hold))
        await bench.node.phase("a", "Running")
        await bench.node.logged("a", "}", "c0")
        (directory,) = bench.regions.iterdir()
        assert bench.annotation("a", RESIZE_APPLIED_KEY) is None

        await resize(bench, 6000, 50)
        await applied(bench, {"gpumem": 6000, "gpucores": 50})
        used = region.read_usage(directory).used_bytes(0)
        await resize(bench, 500, 20)
        beyond = -(-(used - 500 * MIB) // MIB)
        await applied(bench, {"gpumem": 500, "gpucores": 20, "blocked": beyond})

        assert beyond >= USED - 500
        assert region.read_usage(directory).used_bytes(0) == used
        await bench.node.phase("a", "Running")
        async with running_agent(bench.node, bench.gpus, bench.settings):
            await resize(bench, 2000)
            await applied(bench, {"gpumem": 2000, "gpucores": 0})
        await bench.node.delete("a")
        await bench.node.gone("a")
