"""Pods of a node whose API server, annotations or disk are not at their best."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from hami.core import codec
from hami.core.vendors.nvidia import NVIDIA
from hami.kube.resources import PODS
from hami.nodeagent import claims, region
from hami.sandbox.apiserver.faults import Drop, Fault
from tests.support.agent import AgentBench, bound_pod, open_agent
from tests.support.node import eventually

pytestmark = pytest.mark.faults


def granted_devices(bench: AgentBench) -> dict[str, tuple[str, ...]]:
    """By pod, as the regions have it."""
    found = [claims.read(path) for path in bench.regions.iterdir()]
    return {claim.pod: claim.devices for claim in found}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(status=409, times=1), id="a conflict"),
        pytest.param(Fault(status=500, times=2), id="an internal error, twice"),
        pytest.param(Fault(status=429, times=1, retry_after_seconds=0), id="too many requests"),
        pytest.param(Fault(drop=Drop.BEFORE, times=1), id="a connection cut before the write"),
        pytest.param(Fault(drop=Drop.AFTER, times=1), id="a connection cut after the write"),
    ],
)
async def test_pod_is_allocated_once_in_spite_of(fault: Fault) -> None:
    async with open_agent() as bench:
        fault.verb, fault.resource = "patch", "pods"
        bench.node.server.faults.add(fault)

        await bench.node.create(bound_pod("a", [[(bench.gpus.uuids[0], 100)]]))

        await bench.node.phase("a", "Running")
        assert fault.hits
        assert bench.annotation("a", NVIDIA.to_allocate_key) == ";"
        assert bench.annotation("a", codec.BIND_PHASE_KEY) == "success"
        assert len(list(bench.regions.iterdir())) == 1
        assert bench.count("hami_agent_allocations_total", result="granted") == 1


async def test_pod_fails_with_the_reason_where_nothing_can_be_written_and_the_next_one_runs() -> (
    None
):
    async with open_agent() as bench:
        gpu = bench.gpus.uuids[0]
        fault = bench.node.server.faults.add(Fault(verb="patch", resource="pods", status=503))
        await bench.node.create(bound_pod("a", [[(gpu, 100)]]))
        pod = await bench.node.phase("a", "Failed")
        assert pod["status"]["reason"] == "UnexpectedAdmissionError"
        assert "503" in pod["status"]["message"]

        bench.node.server.faults.remove(fault)
        await bench.node.create(bound_pod("b", [[(gpu, 100)]]))

        await bench.node.phase("b", "Running")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("x,NVIDIA,1:;", id="a field missing"),
        pytest.param("x,NVIDIA,1,99999999999:;", id="a number too large"),
        pytest.param("x,NVIDIA,-5,0:;", id="negative memory"),
        pytest.param(";;;x,NVIDIA,1,1:;", id="more containers than there are"),
        pytest.param("", id="nothing"),
        pytest.param("\0,;:", id="no text"),
        pytest.param("x,NVIDIA,1,1:" * 4000 + ";", id="as long as may be"),
    ],
)
async def test_pod_with_a_broken_annotation_fails_and_disturbs_no_other(text: str) -> None:
    async with open_agent(pending_pod_seconds=0.2) as bench:
        gpu = bench.gpus.uuids[0]
        broken = bound_pod("broken", [[(gpu, 100)]], annotations={NVIDIA.to_allocate_key: text})

        await bench.node.create(broken)
        pod = await bench.node.phase("broken", "Failed")
        await bench.node.create(bound_pod("good", [[(gpu, 100)]]))
        await bench.node.phase("good", "Running")

        assert pod["status"]["reason"] == "UnexpectedAdmissionError"
        assert "no pod bound to node" in pod["status"]["message"]
        assert granted_devices(bench) == {"good": (gpu,)}


@pytest.mark.parametrize(
    ("devices", "says"),
    [
        pytest.param([("GPU-elsewhere", 100)], "is not on this node", id="another node's device"),
        pytest.param([("{gpu}", 100), ("{gpu}", 100)], "twice", id="one device twice"),
    ],
)
async def test_allocation_that_cannot_be_kept_fails_its_pod_with_the_reason(
    devices: list[tuple[str, int]], says: str
) -> None:
    async with open_agent() as bench:
        named = [(uuid.format(gpu=bench.gpus.uuids[0]), memory) for uuid, memory in devices]

        await bench.node.create(bound_pod("a", [named]))

        pod = await bench.node.phase("a", "Failed")
        assert says in pod["status"]["message"]
        assert bench.annotation("a", codec.BIND_PHASE_KEY) == "failed"
        (event,) = await bench.events("AllocateFailed")
        assert says in event["message"]


async def test_region_that_cannot_be_made_fails_its_pod_with_the_reason() -> None:
    async with open_agent() as bench:
        bench.regions.rmdir()
        bench.regions.write_text("in the way")

        await bench.node.create(bound_pod("a", [[(bench.gpus.uuids[0], 100)]]))

        pod = await bench.node.phase("a", "Failed")
        assert "preparing region" in pod["status"]["message"]
        assert bench.annotation("a", codec.BIND_PHASE_KEY) == "failed"


async def test_pods_in_flight_together_get_each_their_own() -> None:
    async with open_agent(pending_pod_seconds=5) as bench:
        pods = {f"p{i}": bench.gpus.uuids[i % 3] for i in range(6)}
        for number, (name, gpu) in enumerate(pods.items()):
            await bench.node.create(bound_pod(name, [[(gpu, 100 + number)]], bind_time=number))

        for name in pods:
            await bench.node.phase(name, "Running")

        assert granted_devices(bench) == {name: (gpu,) for name, gpu in pods.items()}
        limits = {
            claims.read(path).pod: region.read_usage(path).devices[0].memory_limit_bytes
            for path in bench.regions.iterdir()
        }
        assert limits == {f"p{i}": (100 + i) * 2**20 for i in range(6)}


async def test_node_is_told_of_its_devices_once_the_server_takes_it() -> None:
    async with open_agent(health_calm_seconds=60) as bench:
        await bench.registered(True, True, True)
        fault = Fault(verb="patch", resource="nodes", status=500, times=2)
        bench.node.server.faults.add(fault)

        bench.gpus.report_xid(0, 79)

        await bench.registered(False, True, True)
        assert fault.hits == 2


async def test_entry_left_by_an_agent_that_died_is_consumed_by_the_clock() -> None:
    """The container runs, so its line in the annotation must not go on holding others back."""
    async with open_agent() as bench:
        await bench.node.create(bound_pod("a", [[(bench.gpus.uuids[0], 100)]]))
        await bench.node.phase("a", "Running")
        record = bench.annotation("a", NVIDIA.allocated_key)
        bench.agent.housekeeper._finder._consumed.clear()  # as after a restart
        body: dict[str, Any] = {
            "metadata": {
                "annotations": {
                    NVIDIA.to_allocate_key: record,
                    codec.BIND_PHASE_KEY: "allocating",
                }
            }
        }

        await bench.node.client.patch(PODS.path("default", "a"), body)

        await eventually(
            lambda: bench.annotation("a", codec.BIND_PHASE_KEY) == "success",
            lambda: bench.annotation("a", codec.BIND_PHASE_KEY),
        )
        assert bench.annotation("a", NVIDIA.to_allocate_key) == ";"


async def test_usage_file_that_a_container_made_longer_is_cut_back() -> None:
    async with open_agent() as bench:
        await bench.node.create(bound_pod("a", [[(bench.gpus.uuids[0], 100)]]))
        await bench.node.phase("a", "Running")
        (directory,) = bench.regions.iterdir()
        usage = directory / "usage"
        size = usage.stat().st_size

        with usage.open("ab") as file:
            file.write(b"x" * 10_000_000)

        await eventually(lambda: usage.stat().st_size == size, lambda: usage.stat().st_size)
        assert region.read_usage(directory).processes == ()


async def test_room_that_a_container_set_aside_behind_its_usage_file_is_given_back() -> None:
    """``fallocate`` can take the host's disk without the file getting longer."""
    async with open_agent() as bench:
        await bench.node.create(bound_pod("a", [[(bench.gpus.uuids[0], 100)]]))
        await bench.node.phase("a", "Running")
        (directory,) = bench.regions.iterdir()
        usage = directory / "usage"
        size, bound = usage.stat().st_size, 4 * 2**20

        keep_size = 1
        with usage.open("r+b") as file:
            done = ctypes.CDLL(None, use_errno=True).fallocate(
                file.fileno(), keep_size, ctypes.c_int64(0), ctypes.c_int64(64 * 2**20)
            )
        if done != 0:
            pytest.skip("this file system sets no room aside")

        await eventually(
            lambda: usage.stat().st_blocks * 512 < bound, lambda: usage.stat().st_blocks * 512
        )
        assert usage.stat().st_size == size
        assert region.read_usage(directory).processes == ()


async def test_nobody_else_on_the_host_reaches_what_containers_write() -> None:
    """A container may make its usage file a program with the set-user-id bit."""
    async with open_agent() as bench:
        assert bench.regions.stat().st_mode & 0o777 == 0o700


async def test_usage_file_that_a_container_replaced_by_a_link_is_not_followed() -> None:
    """It cannot be done through the mount; but nothing here may depend on that."""
    async with open_agent() as bench:
        await bench.node.create(bound_pod("a", [[(bench.gpus.uuids[0], 100)]]))
        await bench.node.phase("a", "Running")
        (directory,) = bench.regions.iterdir()
        target = directory.parent.parent / "precious"
        target.write_bytes(b"x" * 10_000_000)
        (directory / "usage").unlink()
        (directory / "usage").symlink_to(target)

        await eventually(
            lambda: bench.count("hami_agent_malformed_regions_total") > 1, lambda: None
        )
        assert target.stat().st_size == 10_000_000
