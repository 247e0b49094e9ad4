"""Sudden death and orderly stop, of a controller process of its own.

Killed between any two steps of bind and started again: nothing is given out twice, nothing is
forgotten, and the scheduler's next try succeeds.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from hami.config import Settings
from hami.controllers.binder import CRASH_POINTS
from hami.core import codec
from hami.core.vendors.nvidia import NVIDIA
from hami.sandbox.apiserver import ApiServer
from hami.sandbox.apiserver.faults import Fault
from tests.support.commands import command
from tests.support.controller import (
    Usage,
    controller_process,
    gpus,
    node_object,
    pod_object,
)
from tests.support.kube import until

pytestmark = pytest.mark.slow

NODES = ["n0", "n1"]
MIB = 2**20
Configure = Callable[..., Settings]


def recorded_usage(server: ApiServer) -> Usage:
    """What the records of bound pods add up to: the truth that a cache must agree with."""
    total: dict[tuple[str, str], Counter[str]] = {}
    for pod in server.store.list("pods"):
        node = pod["spec"].get("nodeName")
        record = (pod["metadata"].get("annotations") or {}).get(NVIDIA.allocated_key, "")
        for devices in codec.decode_allocation(record, NVIDIA.name) if node else ():
            for device in devices:
                used = total.setdefault((node, device.uuid), Counter())
                used.update(slots=1, memory=device.memory * MIB, cores=device.cores)
    return {key: (used["slots"], used["memory"], used["cores"]) for key, used in total.items()}


@pytest.mark.parametrize("point", CRASH_POINTS)
async def test_killed_between_any_two_steps_of_bind(
    server: ApiServer, configure: Configure, tmp_path: Path, point: str
) -> None:
    settings = configure()
    before = server.store.create(pod_object("before", gpus=2, memory=30_000))
    pod = server.store.create(pod_object("p", gpus=2, memory=30_000))

    async with controller_process(settings, tmp_path) as (controller, process):
        assert await controller.bind(before, "n0") == ""
    async with controller_process(settings, tmp_path, crash_at=point) as (controller, process):
        await controller.filter(pod, NODES)
        with pytest.raises(aiohttp.ClientError):
            await controller.bind(pod, "n1")
        assert await process.wait() == -signal.SIGKILL

    async with controller_process(settings, tmp_path) as (controller, _):
        assert await controller.usage() == recorded_usage(server)
        bound = server.store.get("pods", "p")["spec"].get("nodeName")
        assert (bound == "n1") is (point == "bind.after-binding")
        if bound is None:
            answer = await controller.filter(pod, NODES)
            assert answer["NodeNames"] == ["n1"], "what the dead bind wrote holds nothing"
        assert await controller.bind(pod, "n1") == ""
        usage = await controller.usage()

    assert usage == recorded_usage(server)
    assert {key: slots for key, (slots, _, _) in usage.items()} == {
        ("n0", "GPU-n0-0"): 1,
        ("n0", "GPU-n0-1"): 1,
        ("n1", "GPU-n1-0"): 1,
        ("n1", "GPU-n1-1"): 1,
    }


async def test_restart_builds_the_same_cache_and_touches_no_pod(
    server: ApiServer, configure: Configure, tmp_path: Path
) -> None:
    settings = configure(allocate_timeout_seconds=0.01)
    server.store.create(node_object("big", gpus("big", 8)))
    sizes: list[dict[str, Any]] = [
        {"gpus": 1, "memory": 3000, "cores": 30},
        {"gpus": 2, "memory": 8000},
        {"gpus": 2, "memory": 1000, "containers": 2},
        {"gpus": 1, "memory": None},
    ]

    async with controller_process(settings, tmp_path) as (controller, process):
        for i, size in enumerate(sizes):
            pod = server.store.create(pod_object(f"p{i}", **size))
            assert await controller.bind(pod, "big") == ""
        server.store.delete("pods", "p1")

        async def settled() -> bool:
            return await controller.usage() == recorded_usage(server)

        await until(settled)
        before = await controller.usage()
        process.process.kill()
        await process.wait()
    pods = server.store.list("pods")

    async with controller_process(settings, tmp_path) as (controller, _):
        after = await controller.usage()

    assert after == before
    assert server.store.list("pods") == pods


async def test_pod_in_flight_holds_back_its_twin_over_a_restart(
    server: ApiServer, configure: Configure, tmp_path: Path
) -> None:
    first = server.store.create(pod_object("first"))
    twin = server.store.create(pod_object("twin"))

    async with controller_process(configure(), tmp_path) as (controller, _):
        assert await controller.bind(first, "n0") == ""
    settings = configure(bind_timeout_seconds=0.2)
    async with controller_process(settings, tmp_path) as (controller, _):
        assert "its twins" in await controller.bind(twin, "n0")


@pytest.mark.faults
async def test_orderly_stop_finishes_the_bind_under_way(
    server: ApiServer, configure: Configure, tmp_path: Path
) -> None:
    pod = server.store.create(pod_object("p"))
    slow = server.faults.add(Fault(verb="create", resource="pods/binding", delay_seconds=1.0))
    answers: list[str] = []

    async with controller_process(configure(), tmp_path) as (controller, process):
        async with anyio.create_task_group() as group:

            async def bind() -> None:
                answers.append(await controller.bind(pod, "n0"))

            group.start_soon(bind)

            async def under_way() -> bool:
                return slow.hits > 0

            await until(under_way)
            process.stop()
            await process.logged("stop_requested")
            async with controller.session.get(controller.health_url + "/readyz") as response:
                readiness = response.status, await response.text()
            async with aiohttp.ClientSession() as newcomer:
                with pytest.raises(aiohttp.ClientConnectionError):
                    await newcomer.get(controller.url)
        status = await process.wait()
        events = {event["reason"] for event in server.store.list("events")}

    assert answers == [""]
    assert readiness == (503, "not ready: stopping\n")
    assert status == 0
    assert server.store.get("pods", "p")["spec"]["nodeName"] == "n0"
    assert events == {"BindingSucceed"}, "what was left to say was said before the end"


@pytest.mark.faults
async def test_stop_during_the_first_list_is_orderly(
    server: ApiServer, configure: Configure, tmp_path: Path
) -> None:
    server.faults.add(Fault(verb="list", resource="pods", delay_seconds=60))

    async with command("controller", configure(), tmp_path) as process:
        await process.logged("server_started")
        process.stop()
        assert await process.wait() == 0


@pytest.mark.faults
async def test_api_server_that_never_answers_ends_the_start(
    server: ApiServer, configure: Configure, tmp_path: Path
) -> None:
    server.faults.add(Fault(verb="list", resource="pods", status=500))

    async with command("controller", configure(sync_timeout_seconds=0.5), tmp_path) as process:
        assert await process.wait() == 1

    assert any(
        "no complete list of nodes, quotas, budgets and pods within 0.5 s" in str(line)
        for line in process.lines
    )
