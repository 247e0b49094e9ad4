"""The agent is killed between any two steps of Allocate, and started again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import yaml

from hami.config import Settings
from hami.core import codec
from hami.core.vendors.nvidia import NVIDIA
from hami.crashpoints import ENV
from hami.errors import CodecError
from hami.kube.resources import NODES
from hami.nodeagent import claims, region
from hami.nodeagent.allocator import STEPS
from tests.support.agent import RESOURCE, agent_settings, bound_pod
from tests.support.gpus import Gpus, create_gpus
from tests.support.kube import SOON
from tests.support.node import NODE, NodeBench, eventually, open_node

pytestmark = pytest.mark.slow
START_SECONDS = 6 * SOON
"""A process with all its imports, on a busy machine."""


@contextmanager
def agent_process(
    directory: Path, gpus: Gpus, *, crash_at: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """``hami node-agent``, as a DaemonSet runs it."""
    environment = {**os.environ, **gpus.environment, ENV: crash_at}
    with (directory / "agent.log").open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "hami",
                "node-agent",
                "--config",
                str(directory / "config.yaml"),
            ],
            env=environment,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def open_machine() -> AsyncIterator[tuple[NodeBench, Path, Gpus]]:
    """A node without an agent, and the directory with what an agent needs."""
    async with open_node() as node:
        directory = node.kubelet.settings.root
        gpus = create_gpus(directory / "gpus", "t4", "t4", node_name=NODE)
        settings = Settings(
            kube=node.client.settings,
            node_agent=agent_settings(
                node.kubelet.settings, directory / "vgpu", pending_pod_seconds=SOON
            ),
        )
        config = yaml.safe_dump(msgspec.to_builtins(settings))
        await anyio.Path(directory / "config.yaml").write_text(config)
        yield node, directory, gpus


async def offered(node: NodeBench, count: int) -> None:
    """Return once the kubelet offers so many devices."""

    def said() -> str:
        status = (node.find(NODES, NODE) or {}).get("status", {})
        value: str = status.get("allocatable", {}).get(RESOURCE, "")
        return value

    with anyio.fail_after(START_SECONDS):
        while said() != str(count):  # noqa: ASYNC110 - the server's store announces nothing
            await anyio.sleep(0.05)


async def logged(directory: Path, text: str) -> None:
    """Return once the agent has written this to its log."""
    log = anyio.Path(directory / "agent.log")
    with anyio.fail_after(START_SECONDS):
        while text not in await log.read_text():  # noqa: ASYNC110 - files announce nothing
            await anyio.sleep(0.05)


async def settled(node: NodeBench, pod: str) -> dict[str, Any]:
    """The pod, once it runs or has failed."""
    return await node.pod(pod, lambda p: p["status"].get("phase") in {"Running", "Failed"})


def claimant(region: Path) -> str | None:
    """The pod that a region is for; None while the agent is removing it."""
    try:
        return claims.read(region).pod
    except CodecError:
        return None


@pytest.mark.parametrize("step", STEPS)
async def test_agent_killed_in_the_middle_doubles_nothing_and_forgets_nothing(step: str) -> None:
    async with open_machine() as (node, directory, gpus):
        with agent_process(directory, gpus, crash_at=step) as agent:
            await offered(node, 20)
            await node.create(bound_pod("victim", [[(gpus.uuids[0], 3000)]]))
            assert await anyio.to_thread.run_sync(agent.wait) == -9

        victim = await settled(node, "victim")
        assert victim["status"]["phase"] == "Failed"
        assert victim["status"]["reason"] == "UnexpectedAdmissionError"
        await offered(node, 0)

        with agent_process(directory, gpus):
            await offered(node, 20)
            await node.create(bound_pod("next", [[(gpus.uuids[0], 2000)]], bind_time=200))
            assert (await settled(node, "next"))["status"]["phase"] == "Running"

            regions = directory / "vgpu" / "containers"
            owners = {claims.read(path).pod: path for path in regions.iterdir()}
            limits = [d.memory_limit_bytes for d in region.read_usage(owners["next"]).devices]
            assert limits == [2000 * 2**20]
            await node.delete("victim", grace=0)
            await eventually(
                lambda: [claimant(path) for path in regions.iterdir()] == ["next"],
                lambda: list(regions.iterdir()),
            )


def said_once(directory: Path) -> tuple[object, ...]:
    """What a control file says that no governor changes by the tick."""
    path = directory / region.CONTROL
    control = region.decode_control(path, path.read_bytes())
    return (
        *(control.pod_uid, control.pod_namespace, control.pod_name, control.container_name),
        *(control.priority, control.policy, control.flags, control.weight),
        region.devices_of(control),
    )


async def test_restarted_agent_leaves_running_pods_as_they_are() -> None:
    async with open_machine() as (node, directory, gpus):
        with agent_process(directory, gpus):
            await offered(node, 20)
            await node.create(bound_pod("a", [[(gpus.uuids[0], 3000)]]))
            assert (await settled(node, "a"))["status"]["phase"] == "Running"
            (path,) = (directory / "vgpu" / "containers").iterdir()
            before = said_once(path)
        await offered(node, 0)

        with agent_process(directory, gpus):
            await offered(node, 20)
            await node.create(bound_pod("b", [[(gpus.uuids[0], 100)]]))
            assert (await settled(node, "b"))["status"]["phase"] == "Running"

        pod = await settled(node, "a")
        assert pod["status"]["phase"] == "Running"
        assert pod["metadata"]["annotations"][codec.BIND_PHASE_KEY] == "success"
        assert pod["metadata"]["annotations"][NVIDIA.to_allocate_key] == ";"
        assert said_once(path) == before


async def test_unknown_crash_point_is_refused_at_the_start() -> None:
    async with open_machine() as (_, directory, gpus):
        with agent_process(directory, gpus, crash_at="allocate.nowhere") as agent:
            assert await anyio.to_thread.run_sync(agent.wait) == 2

        log = await anyio.Path(directory / "agent.log").read_text()
        assert "HAMI_CRASH_AT: expected one of allocate.consumed" in log


async def test_signal_ends_the_agent_in_order() -> None:
    async with open_machine() as (node, directory, gpus):
        with agent_process(directory, gpus) as agent:
            await offered(node, 20)
            agent.terminate()
            assert await anyio.to_thread.run_sync(agent.wait) == 0

        sockets = [path.name for path in node.plugins.glob("hami-*.sock")]
        assert sockets == []


async def test_agent_waits_for_a_driver_that_comes_late() -> None:
    async with open_machine() as (node, directory, gpus):
        hidden = gpus.state.rename(gpus.state.with_suffix(".hidden"))
        with agent_process(directory, gpus) as agent:
            await logged(directory, "devices_not_read")
            assert agent.poll() is None

            hidden.rename(gpus.state)

            await offered(node, 20)
