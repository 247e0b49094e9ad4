"""A controller process that is killed at any moment, and started again.

At each named step of filter, bind and undo; in the middle of requests, which the API server may
carry out when nobody waits for them any more; and at random, while everything else goes wrong too.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import anyio
import pytest

from hami.config import Settings
from hami.controllers.app import CRASH_POINTS
from hami.sandbox.apiserver import ApiServer
from hami.sandbox.apiserver.faults import Drop, Fault
from tests.faults import machine, truth
from tests.faults.machine import Machine
from tests.faults.truth import Card
from tests.support.commands import Process
from tests.support.controller import (
    Controller,
    controller_process,
    gpus,
    node_object,
    pod_object,
)
from tests.support.kube import until

pytestmark = [pytest.mark.faults, pytest.mark.slow]

NODES = ("n0", "n1")
CARDS = {str(device.uuid): Card(slots=10, memory=40_000) for name in NODES for device in gpus(name)}
HALF: dict[str, Any] = {"gpus": 2, "memory": 21_000}
"""So much that a second one does not fit beside it."""


@asynccontextmanager
async def cluster() -> AsyncIterator[ApiServer]:
    async with ApiServer().running() as server:
        for name in NODES:
            server.store.create(node_object(name, gpus(name)))
        yield server


def assert_room(server: ApiServer) -> None:
    assert truth.breaches(truth.read(server.store.list("pods")), CARDS) == []


def node_of(server: ApiServer, name: str) -> str | None:
    node: str | None = server.store.get("pods", name)["spec"].get("nodeName")
    return node


def faults_that_lead_to(point: str) -> list[Fault]:
    """What must go wrong for a bind to come to this point."""
    if point == "bind.before-reading-again":
        return [Fault(verb="patch", resource="pods", status=409)]
    if point.startswith("undo"):
        return [Fault(verb="create", resource="pods/binding", status=500)]
    return []


async def schedule(controller: Controller, pod: dict[str, Any]) -> None:
    """Filter and bind, as far as the controller lives."""
    with suppress(aiohttp.ClientError):
        answer = await controller.filter(pod, NODES)
        for node in answer.get("NodeNames") or ():
            if not await controller.bind(pod, node):
                return


async def all_are_bound(server: ApiServer, settings: Settings, directory: Path) -> None:
    """A controller that lives binds what is left, and then counts what is true."""
    async with controller_process(settings, directory) as (controller, _):

        async def bound() -> bool:
            pods = server.store.list("pods")
            for pod in pods:
                if not pod["spec"].get("nodeName"):
                    await schedule(controller, pod)
            assert_room(server)
            return all(pod["spec"].get("nodeName") for pod in pods)

        await until(bound)
        mib = 2**20
        used = truth.read(server.store.list("pods")).used()
        assert await controller.usage() == {
            place: (slots, memory * mib, cores) for place, (slots, memory, cores) in used.items()
        }
        assert await controller.value("hami_reservations", state="reserved") == 0


@pytest.mark.parametrize("point", CRASH_POINTS)
async def test_killed_at_each_step(tmp_path: Path, point: str) -> None:
    async with cluster() as server:
        settings = machine.settings_of(server, tmp_path)
        for name in ("first", "second"):
            server.store.create(pod_object(name, **HALF))
        for fault in faults_that_lead_to(point):
            server.faults.add(fault)

        async with controller_process(settings, tmp_path, crash_at=point) as (controller, process):
            await schedule(controller, server.store.get("pods", "first"))
            assert await process.wait() == -signal.SIGKILL
        server.faults.clear()

        await all_are_bound(server, settings, tmp_path)
        assert {node_of(server, "first"), node_of(server, "second")} == set(NODES)


@pytest.mark.parametrize("verb", ["patch", "create"])
async def test_request_of_a_dead_process_is_carried_out_late(tmp_path: Path, verb: str) -> None:
    """Of two pods that fit one node only one after the other, whatever comes when."""
    resource = "pods" if verb == "patch" else "pods/binding"
    async with cluster() as server:
        server.store.delete("nodes", "n1")
        settings = machine.settings_of(server, tmp_path)
        first = server.store.create(pod_object("first", **HALF))
        second = server.store.create(pod_object("second", **HALF))
        late = server.faults.add(
            Fault(verb=verb, resource=resource, name="first", drop=Drop.EARLY, delay_seconds=3.0)
        )
        async with (
            controller_process(settings, tmp_path) as (controller, process),
            anyio.create_task_group() as group,
        ):
            group.start_soon(schedule, controller, first)

            async def sent() -> bool:
                return late.hits > 0

            await until(sent)
            process.process.kill()
        server.faults.clear()

        async with controller_process(settings, tmp_path) as (controller, _):

            async def one_is_bound() -> bool:
                await schedule(controller, second)
                return bool(node_of(server, "first") or node_of(server, "second"))

            await until(one_is_bound)
            with anyio.move_on_after(3.5):
                while True:
                    assert_room(server)
                    await anyio.sleep(0.05)


@dataclass(kw_only=True)
class OwnProcess:
    """A controller that is killed."""

    controller: Controller
    process: Process

    def is_alive(self) -> bool:
        return self.process.process.returncode is None

    def trouble(self) -> None:
        return

    def calm(self) -> None:
        return

    def end(self) -> None:
        if self.is_alive():
            self.process.process.kill()


@pytest.mark.timeout(600)
async def test_killed_at_random_while_all_else_goes_wrong(tmp_path: Path) -> None:
    chosen = machine.seed()
    chance = Random(chosen)
    async with ApiServer(fault_seed=chosen).running() as server:
        settings = machine.settings_of(server, tmp_path)

        @asynccontextmanager
        async def opened(last: bool) -> AsyncIterator[OwnProcess]:
            point = "" if last or chance.random() < 0.5 else chance.choice(CRASH_POINTS)
            async with controller_process(settings, tmp_path, crash_at=point) as (asked, process):
                yield OwnProcess(controller=asked, process=process)

        afternoon = Machine(
            server=server,
            seed=chosen,
            open_controller=opened,
            steps=600,
            restart_every=80,
            quiet_every=70,
        )
        await afternoon.run()
        print(afternoon.said())
