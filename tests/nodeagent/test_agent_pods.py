"""Pods get their devices: from the annotation to a running process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from hami.core import codec
from hami.core.vendors.nvidia import NVIDIA
from hami.nodeagent import claims, region
from hami.nodeagent.controlfile import ControlFile
from hami.sandbox.gpu.node import PROBE
from hami.sandbox.runtime import Isolation, Runtime
from tests.support.agent import bound_pod, open_agent
from tests.support.gpus import A100_MIB
from tests.support.node import eventually

OUT_OF_MEMORY = 2


async def test_container_gets_its_devices_and_limits() -> None:
    async with open_agent() as bench:
        first, second, _ = bench.gpus.uuids

        await bench.node.create(
            bound_pod("a", [[(second, 3000), (first, 2000)]], run="env; sleep 1000")
        )

        await bench.node.phase("a", "Running")
        log = await bench.node.logged("a", "HAMI_REGION_DIR", "c0")
        assert f"NVIDIA_VISIBLE_DEVICES={second},{first}" in log
        assert "CUDA_DEVICE_MEMORY_LIMIT_0=3000m" in log
        assert "CUDA_DEVICE_MEMORY_LIMIT_1=2000m" in log
        assert bench.annotation("a", NVIDIA.to_allocate_key) == ";"
        assert bench.annotation("a", codec.BIND_PHASE_KEY) == "success"
        (directory,) = bench.regions.iterdir()
        use = region.read_usage(directory)
        assert [(d.uuid, d.memory_limit_bytes) for d in use.devices] == [
            (second, 3000 * 2**20),
            (first, 2000 * 2**20),
        ]


async def test_region_allows_managed_memory_where_more_is_offered_than_there_is() -> None:
    async with open_agent(memory_scaling=2) as bench:
        first, *_ = bench.gpus.uuids

        await bench.node.create(bound_pod("a", [[(first, 60_000)]], run="sleep 1000"))

        await bench.node.phase("a", "Running")
        (directory,) = bench.regions.iterdir()
        with ControlFile(directory) as control:
            assert control.control.flags == region.Flag.OVERSUBSCRIBE
        (device,) = region.read_usage(directory).devices
        assert device.physical_bytes == A100_MIB * 2**20


async def test_kubelet_hands_out_ids_of_the_very_devices_of_the_allocation() -> None:
    async with open_agent() as bench:
        _, second, third = bench.gpus.uuids

        await bench.node.create(bound_pod("a", [[(third, 100), (second, 100)]]))

        await bench.node.phase("a", "Running")
        (directory,) = bench.regions.iterdir()
        claim = claims.read(directory)
        assert claim.ids == tuple(sorted((f"{third}-0", f"{second}-0")))
        assert bench.count("hami_agent_identity_checks_total", result="confirmed") == 1


async def test_every_container_in_turn_gets_its_own_part() -> None:
    async with open_agent() as bench:
        first, second, _ = bench.gpus.uuids
        layout = [[(first, 100)], [], [(second, 200), (first, 200)], [(first, 300)]]

        await bench.node.create(bound_pod("a", layout, init=1))

        pod = await bench.node.phase("a", "Running")
        uid = pod["metadata"]["uid"]
        limits = {
            path.name: [d.memory_limit_bytes for d in region.read_usage(path).devices]
            for path in bench.regions.iterdir()
        }
        assert limits == {
            f"{uid}_c0": [100 * 2**20],
            f"{uid}_c2": [200 * 2**20] * 2,
            f"{uid}_c3": [300 * 2**20],
        }
        assert bench.annotation("a", NVIDIA.to_allocate_key) == ";;;;"
        assert bench.annotation("a", codec.BIND_PHASE_KEY) == "success"


@pytest.mark.parametrize("isolation", Isolation)
async def test_process_in_the_container_sees_its_limit_and_is_held_to_it(
    isolation: Isolation,
) -> None:
    runtime = Runtime(isolation=isolation)
    async with open_agent(node_options={"runtime": runtime}) as bench:
        first = bench.gpus.uuids[0]

        await bench.node.create(bound_pod("a", [[(first, 3000)]], run=f"{PROBE} --fill"))

        await bench.node.phase("a", "Succeeded")
        (device,) = json.loads(await bench.node.log("a", "c0"))["devices"]
        limit = 3000 * 2**20
        assert device["uuid"] == first
        assert device["cuda"] == {"total": limit, "free": limit, "device_total": limit}
        assert device["nvml"] == {"total": limit, "free": limit, "used": 0}
        assert device["fill"]["bytes"] == limit
        assert device["fill"]["one_more_byte"] == OUT_OF_MEMORY


async def test_region_is_removed_once_its_pod_is_gone() -> None:
    async with open_agent() as bench:
        await bench.node.create(bound_pod("a", [[(bench.gpus.uuids[0], 100)]]))
        await bench.node.phase("a", "Running")

        await bench.node.delete("a")

        await bench.node.gone("a")
        removed = "hami_agent_regions_removed_total"
        await eventually(lambda: bench.count(removed) == 1, lambda: list(bench.regions.iterdir()))
        assert list(bench.regions.iterdir()) == []


async def test_region_is_removed_once_its_pod_is_over() -> None:
    async with open_agent() as bench:
        await bench.node.create(bound_pod("a", [[(bench.gpus.uuids[0], 100)]], run="true"))

        await bench.node.phase("a", "Succeeded")

        removed = "hami_agent_regions_removed_total"
        await eventually(lambda: bench.count(removed) == 1, lambda: list(bench.regions.iterdir()))
        assert list(bench.regions.iterdir()) == []


async def test_pod_that_comes_again_under_its_name_leaves_no_region_of_its_former_life() -> None:
    async with open_agent(reconcile_seconds=1) as bench:
        for _ in range(4):
            await bench.node.create(bound_pod("web-0", [[(bench.gpus.uuids[0], 100)]]))
            await bench.node.phase("web-0", "Running")
            await bench.node.delete("web-0", grace=0)
            await bench.node.gone("web-0")
        await bench.node.create(bound_pod("web-0", [[(bench.gpus.uuids[0], 100)]]))
        pod = await bench.node.phase("web-0", "Running")

        (left,) = await eventually(
            lambda: found if len(found := list(bench.regions.iterdir())) == 1 else None,
            lambda: list(bench.regions.iterdir()),
        )

        assert left.name == f"{pod['metadata']['uid']}_c0"


async def test_memory_of_a_killed_process_is_shown_and_then_given_back() -> None:
    async with open_agent(reconcile_seconds=0.2) as bench:
        hold = f"{PROBE} --allocate 700 --hold 0 & echo holder $!; sleep 1000"
        await bench.node.create(bound_pod("a", [[(bench.gpus.uuids[0], 3000)]], run=hold))
        await bench.node.phase("a", "Running")
        (directory,) = bench.regions.iterdir()

        def used() -> int:
            return region.read_usage(directory).used_bytes(0)

        await eventually(lambda: used() == 700 * 2**20, used)
        (process,) = region.read_usage(directory).processes
        os.kill(host_pid_of(process), signal.SIGKILL)

        await eventually(lambda: used() == 0, used)


def host_pid_of(process: region.ProcessUse) -> int:
    """The same process, as this machine counts it."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            namespace = (status.parent / "ns" / "pid").readlink().name
            pids = next(x for x in status.read_text().splitlines() if x.startswith("NSpid:"))
            own = f"pid:[{process.pid_namespace}]", process.pid
            if (namespace, int(pids.split()[-1])) == own:
                return int(status.parent.name)
    raise AssertionError(f"no process {process}")
