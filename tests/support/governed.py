"""Containers that keep simulated GPUs busy, and a governor over them; no cluster."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

import native
from hami.config import NodeAgentSettings
from hami.nodeagent import region
from hami.nodeagent.governor.loop import Governed, Governor
from hami.nodeagent.governor.suspicion import Suspicion
from hami.nodeagent.governor.tenants import Tenant
from hami.nodeagent.governor.usage import DeviceReading, UsageDriver
from hami.nodeagent.nvml import Nvml
from hami.sandbox.gpu import node as gpu_node
from tests.support.gpu import SHIM
from tests.support.gpus import Gpus, simulated_gpus

SOON = 30.0
LOAD = Path(__file__).parent / "programs" / "load.c"


@functools.cache
def load_program() -> Path:
    """The compiled program that keeps a GPU busy."""
    native.build()
    target = Path(tempfile.mkdtemp(prefix="hami-load-")) / "load"
    native.compile_c(target, [LOAD], [])
    return target


@dataclass(slots=True)
class Container:
    """A region, and what runs under it."""

    tenant: Tenant
    gpus: Gpus
    gpu: int
    shim: bool = True
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, microseconds: int = 1000, mode: str = "eager", *, size: int = 0) -> int:
        """Start a process; its pid, once it is set up."""
        environment = {
            "PATH": os.environ["PATH"],
            **self.gpus.environment,
            **({"LD_PRELOAD": str(SHIM)} if self.shim else {}),
            "HAMI_REGION_DIR": str(self.tenant.directory),
            "NVIDIA_VISIBLE_DEVICES": str(self.gpu),
        }
        process = subprocess.Popen(
            [str(load_program()), str(microseconds), mode, str(size)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process.pid

    def stop(self) -> None:
        """End all its processes."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()
        self.processes.clear()

    def busy_ns(self) -> int:
        """Device time that its processes have used, by the simulated GPU's own books."""
        pids = {process.pid for process in self.processes}
        return sum(
            met.busy_ns
            for met in gpu_node.read_processes(self.gpus.state, self.gpu)
            if met.pid in pids
        )


@dataclass(slots=True)
class Bench:
    """Containers of one test, and their governor."""

    path: Path
    governor: Governor
    suspicions: list[Suspicion]
    containers: list[Container]
    gpus: Gpus

    def drop(self, container: Container) -> None:
        """End a container; the governor forgets it with its next tick."""
        container.stop()
        self.containers.remove(container)

    def container(
        self, limit: int = 0, *, gpu: int = 0, weight: int = 0, **region_options: Any
    ) -> Container:
        """A container with one GPU; the governor knows it from its next tick on."""
        directory = Path(tempfile.mkdtemp(prefix="container-", dir=self.path))
        device = region.RegionDevice(uuid=self.gpus.uuids[gpu], core_limit_permille=limit)
        region.create(directory, devices=[device], weight=weight, **region_options)
        made = Container(Tenant.open(directory), self.gpus, gpu)
        self.containers.append(made)
        return made

    def of(self, container: Container) -> Governed:
        """How the governor has it. Raises LookupError before it has."""
        known = {id(governed.tenant): governed for governed in self.governor.status()}
        return known[id(container.tenant)]

    async def shares(self, wanted: Mapping[int, float], *, within: float) -> None:
        """Return once the containers, by number, use so many percent of their device."""
        met: list[float] = []

        async def right() -> bool:
            nonlocal met
            met = await self.use(*(self.containers[number] for number in wanted))
            return all(
                abs(use - share) <= within for use, share in zip(met, wanted.values(), strict=True)
            )

        await eventually(right, lambda: met)

    async def use(self, *containers: Container, seconds: float = 1.5) -> list[float]:
        """Percent of a device that each uses now."""
        before, began = [c.busy_ns() for c in containers], time.monotonic_ns()
        await anyio.sleep(seconds)
        passed = time.monotonic_ns() - began
        return [
            (container.busy_ns() - start) / passed * 100
            for container, start in zip(containers, before, strict=True)
        ]


async def eventually(condition: Callable[[], Any], met: Callable[[], object] = lambda: "") -> None:
    """Return once the condition holds; what was met instead, if that takes too long.

    Until the governor knows a container, nothing holds of it.
    """
    try:
        with anyio.fail_after(SOON):
            while True:
                with contextlib.suppress(LookupError):
                    holds = condition()
                    if holds is True or (not isinstance(holds, bool) and await holds):
                        return
                await anyio.sleep(0.02)
    except TimeoutError as error:
        raise AssertionError(f"not within {SOON} s; met {met()}") from error


@asynccontextmanager
async def governed(
    path: Path,
    *,
    driver: UsageDriver | None = None,
    models: Sequence[str] = (),
    **settings: Any,
) -> AsyncIterator[Bench]:
    """A governor at work over the containers that the test makes."""
    configuration = NodeAgentSettings(**settings)
    suspicions: list[Suspicion] = []
    containers: list[Container] = []
    gpus = simulated_gpus(*models)

    class Source:
        async def refresh(self) -> Sequence[Tenant]:
            return [container.tenant for container in containers]

    governor = Governor(
        Source(), driver or Nvml(configuration), configuration, report=suspicions.append
    )
    bench = Bench(path, governor, suspicions, containers, gpus)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(governor.run)
            yield bench
            tasks.cancel_scope.cancel()
    finally:
        for container in containers:
            container.stop()
            container.tenant.close()


@dataclass(slots=True)
class ScriptedDriver:
    """A driver that answers what it is told to."""

    readings: dict[str, DeviceReading] = field(default_factory=dict)
    error: Exception | None = None
    asked: int = 0

    async def process_use(
        self, since_us: Mapping[str, int], *, memory: bool
    ) -> Mapping[str, DeviceReading]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.readings
