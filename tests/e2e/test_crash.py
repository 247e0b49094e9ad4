"""Nothing is allocated twice and nothing is forgotten, whichever process is killed and when."""

from __future__ import annotations

import signal
from collections import Counter
from typing import Any

import aiohttp
import anyio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hami.controllers.binder import CRASH_POINTS as BIND_POINTS
from hami.core.codec import decode_allocation
from hami.core.vendors.nvidia import NVIDIA
from hami.nodeagent.allocator import STEPS as ALLOCATE_POINTS
from hami.sandbox.cluster import Sandbox
from hami.sandbox.daemon import Daemon
from tests.support.sandbox import gpu, inside, make_pod, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MIB = 2**20
CARD_MIB = 15360
SETTLED = ("Running", "Succeeded", "Failed")


async def ready(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/readyz") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


async def restart_armed(daemon: Daemon, point: str) -> None:
    """Kill the process; it comes back with a deadly point, and after that without."""
    before = daemon.restarts
    daemon.environment["HAMI_CRASH_AT"] = point
    daemon.signal(signal.SIGKILL)
    await until(lambda: daemon.restarts > before and daemon.pid, f"{daemon.name} to restart")
    del daemon.environment["HAMI_CRASH_AT"]


async def until_ready(sandbox: Sandbox) -> None:
    with anyio.fail_after(60):
        while not await ready(sandbox.controller_health_url):
            await until(lambda: sandbox.controller.pid, "the controller's process")


def pods(sandbox: Sandbox) -> list[dict[str, Any]]:
    return sandbox.api.store.list("pods", "default")


def held(sandbox: Sandbox) -> Counter[str]:
    """MiB of each device, by what the bound and unfinished pods' annotations say."""
    total: Counter[str] = Counter()
    for pod in pods(sandbox):
        if pod["status"]["phase"] in {"Succeeded", "Failed"} or not pod["spec"].get("nodeName"):
            continue
        text = pod["metadata"]["annotations"][NVIDIA.allocated_key]
        for devices in decode_allocation(text, NVIDIA.name):
            for device in devices:
                total[device.uuid] += device.memory
    return total


async def counted(sandbox: Sandbox) -> Counter[str]:
    """The same, as the controller counts it."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{sandbox.controller_health_url}/metrics") as answer,
    ):
        text = await answer.text()
    total: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        if family.name == "hami_gpu_memory_allocated_bytes":
            for sample in family.samples:
                total[sample.labels["device_uuid"]] += int(sample.value) // MIB
    return total


async def assert_sound(sandbox: Sandbox) -> None:
    """No device beyond its capacity; the controller counts exactly what pods hold."""
    truth = held(sandbox)
    assert all(mib <= CARD_MIB for mib in truth.values()), truth
    assert +(await counted(sandbox)) == +truth


@pytest.mark.parametrize("point", BIND_POINTS)
async def test_controller_killed_in_bind_loses_nothing(point: str) -> None:
    async with inside(nodes=1, gpus=2, model="T4") as (sandbox, _):
        await create(sandbox, make_pod("before", limits=gpu(1, memory=4000)))
        await until_phase(sandbox, "before", "Running")
        await restart_armed(sandbox.controller, point)
        await until_ready(sandbox)
        restarts = sandbox.controller.restarts

        await create(sandbox, make_pod("victim", limits=gpu(1, memory=9000)))

        await until(lambda: sandbox.controller.restarts > restarts, f"a crash at {point}")
        await until_phase(sandbox, "victim", *SETTLED, seconds=90)
        assert phase(sandbox, "victim") == "Running"
        assert phase(sandbox, "before") == "Running"
        await until_ready(sandbox)
        await assert_sound(sandbox)


@pytest.mark.parametrize("point", ALLOCATE_POINTS)
async def test_agent_killed_in_allocate_loses_nothing(point: str) -> None:
    async with inside(nodes=1, gpus=1, model="T4") as (sandbox, _):
        agent = sandbox.nodes["node-1"].agent
        assert agent is not None
        await restart_armed(agent, point)
        await until(lambda: offered(sandbox) == 10, "the agent to be back")
        restarts = agent.restarts

        await create(sandbox, make_pod("victim", limits=gpu(1, memory=9000)))

        await until(lambda: agent.restarts > restarts, f"a crash at {point}")
        await until_phase(sandbox, "victim", *SETTLED, seconds=90)
        status = sandbox.api.store.get("pods", "victim")["status"]
        assert status["phase"] == "Running" or status.get("message"), status
        await until(lambda: offered(sandbox) == 10, "the agent to be back")
        await create(sandbox, make_pod("next", limits=gpu(1, memory=5000)))
        await until_phase(sandbox, "next", "Running", seconds=90)
        await assert_sound(sandbox)


async def test_restarted_controller_changes_no_running_pod() -> None:
    async with inside(nodes=1, gpus=2, model="T4") as (sandbox, _):
        for i in range(4):
            await create(sandbox, make_pod(f"steady-{i}", limits=gpu(1, memory=3000)))
        for i in range(4):
            await until_phase(sandbox, f"steady-{i}", "Running")
        before = {p["metadata"]["uid"]: p["metadata"]["annotations"] for p in pods(sandbox)}

        restarts = sandbox.controller.restarts
        sandbox.controller.signal(signal.SIGKILL)
        await until(lambda: sandbox.controller.restarts > restarts, "the restart")
        await until_ready(sandbox)

        assert {p["metadata"]["uid"]: p["metadata"]["annotations"] for p in pods(sandbox)} == before
        assert {phase(sandbox, f"steady-{i}") for i in range(4)} == {"Running"}
        await assert_sound(sandbox)


async def test_limits_hold_while_the_agent_is_dead() -> None:
    async with inside(nodes=1, gpus=1, model="T4") as (sandbox, _):
        shell = "until [ -e /tmp/go-$HOSTNAME ]; do sleep 0.05; done; gpu-probe --check --fill"
        command = ["sh", "-c", shell.replace("/tmp/go-$HOSTNAME", str(sandbox.place / "go"))]
        await create(sandbox, make_pod("lonely", limits=gpu(1, memory=1000), command=command))
        await until_phase(sandbox, "lonely", "Running")

        agent = sandbox.nodes["node-1"].agent
        assert agent is not None
        agent.environment["HAMI_NODE_AGENT__NODE_NAME"] = ""
        agent.signal(signal.SIGKILL)
        (sandbox.place / "go").touch()

        await until_phase(sandbox, "lonely", "Succeeded", "Failed")
        assert phase(sandbox, "lonely") == "Succeeded"


async def create(sandbox: Sandbox, pod: dict[str, Any]) -> None:
    """Through the front door, so that the webhook sees it."""
    await sandbox.client.post("/api/v1/namespaces/default/pods", pod)


def phase(sandbox: Sandbox, name: str) -> str:
    status: dict[str, str] = sandbox.api.store.get("pods", name)["status"]
    return status["phase"]


async def until_phase(sandbox: Sandbox, name: str, *phases: str, seconds: float = 45.0) -> None:
    await until(
        lambda: phase(sandbox, name) in phases,
        f"pod {name} to be {' or '.join(phases)}",
        seconds=seconds,
    )


def offered(sandbox: Sandbox) -> int:
    node = sandbox.api.store.get("nodes", "node-1")
    return int(node["status"].get("allocatable", {}).get(NVIDIA.resources.count, 0))
