"""How exactly compute limits hold, how soon, and what they cost: the governor over simulated GPUs.

    python -m tests.bench.bench_share [--full] [--seconds S] [--json FILE]

Real processes under the real shim launch as much as they are let, each share on a GPU of its own,
several at a time; what they used is read from the simulated GPUs' own books. ``--full`` tries every
share with every length of kernel and number of processes.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from hami.config import NodeAgentSettings
from hami.nodeagent import region
from hami.nodeagent.governor.loop import Governor
from hami.nodeagent.governor.tenants import Tenant
from hami.nodeagent.region import Policy
from hami.sandbox.gpu import node as gpu_node
from tests.bench import harness
from tests.support import governed
from tests.support.governed import Bench, Container, ScriptedDriver

SHARES = (10, 30, 50, 70, 90)
FULL_SHARES = tuple(range(10, 91, 10))
GPUS = 4
"""Of the machine; so many shares are tried at a time."""
WARM_SECONDS = 2.0
PAIR_WARM_SECONDS = 6.0
SETTLE_WITHIN = 5.0
"""Points; a share has settled when every half second is as near to it as that."""
STEP_SECONDS = 0.1
KERNELS = 160


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of work."""

    microseconds: int
    mode: str
    processes: int


QUICK = (
    Case(5, "eager", 1),
    Case(50, "eager", 1),
    Case(1000, "eager", 1),
    Case(1000, "eager", 8),
    Case(50_000, "eager", 2),
    Case(5, "graph", 1),
    Case(50, "graph", 8),
    Case(1000, "graph", 1),
)
FULL = tuple(
    Case(microseconds, mode, processes)
    for mode, lengths in (
        ("eager", (5, 50, 500, 5000, 50_000)),
        ("graph", (5, 50, 500, 2500)),
    )
    for microseconds in lengths
    for processes in (1, 2, 4, 8)
)
PAIRS = ((30, 70), (10, 90))


async def share_errors(
    bench: Bench, case: Case, shares: Sequence[int], seconds: float
) -> list[dict[str, Any]]:
    """What each share came to."""
    found = []
    for start in range(0, len(shares), GPUS):
        wanted = shares[start : start + GPUS]
        containers = [
            bench.container(share * 10, gpu=gpu, policy=Policy.FORCE)
            for gpu, share in enumerate(wanted)
        ]
        await launch(containers, case)
        await anyio.sleep(WARM_SECONDS)
        # Of long kernels enough, that one more or less is no matter.
        used = await bench.use(*containers, seconds=max(seconds, case.microseconds * KERNELS / 1e6))
        for share, container, met in zip(wanted, containers, used, strict=True):
            each = [process.pid for process in container.processes]
            found.append(
                {
                    "kernel us": case.microseconds,
                    "mode": case.mode,
                    "processes": case.processes,
                    "share": share,
                    "used": round(met, 2),
                    "error": round(met - share, 2),
                    "starved": starved(bench, container, each),
                }
            )
            bench.drop(container)
    return found


def starved(bench: Bench, container: Container, pids: Sequence[int]) -> int:
    """Processes that got less than a quarter of what would be an even part."""
    busy = [
        process.busy_ns
        for process in gpu_node.read_processes(bench.gpus.state, container.gpu)
        if process.pid in pids
    ]
    return len(pids) - sum(one * len(pids) * 4 >= sum(busy) for one in busy)


async def launch(containers: Sequence[Container], case: Case) -> None:
    """Start the processes of all of them."""
    for container in containers:
        for _ in range(case.processes):
            await anyio.to_thread.run_sync(container.start, case.microseconds, case.mode)


async def pairs(bench: Bench, seconds: float) -> list[dict[str, Any]]:
    """Two containers on one GPU, each with four processes."""
    found = []
    for low, high in PAIRS:
        for case in (Case(1000, "eager", 4), Case(50, "graph", 4)):
            containers = [bench.container(share * 10, gpu=0) for share in (low, high)]
            await launch(containers, case)
            await anyio.sleep(PAIR_WARM_SECONDS)
            one, other = await bench.use(*containers, seconds=2 * seconds)
            for container in containers:
                bench.drop(container)
            found.append(
                {
                    "shares": f"{low}/{high}",
                    "kernel us": case.microseconds,
                    "mode": case.mode,
                    "used": f"{one:.2f}/{other:.2f}",
                    "ratio error %": round(abs(other / one / (high / low) - 1) * 100, 2),
                }
            )
    return found


async def settling(bench: Bench) -> dict[str, Any]:
    """Seconds until a share is kept: from the first launch on, and after a change."""
    found = {}
    container = bench.container(200, gpu=0, policy=Policy.FORCE)
    for name, share in (("first launch, 20 %", 20), ("20 % to 70 %", 70), ("70 % to 30 %", 30)):
        container.tenant.control.set_core_limit(0, share * 10)
        if not container.processes:
            await launch([container], Case(1000, "eager", 2))
        found[name] = await settled(container, share)
    bench.drop(container)
    return found


async def settled(container: Container, share: float) -> float:
    """Seconds until every further half second is near the share."""
    marks = [(time.monotonic(), container.busy_ns())]
    while marks[-1][0] - marks[0][0] < 4:
        await anyio.sleep(STEP_SECONDS)
        marks.append((time.monotonic(), container.busy_ns()))
    last = 0.0
    for start, end in zip(marks, marks[5:], strict=False):
        used = (end[1] - start[1]) / (end[0] - start[0]) / 1e7
        if abs(used - share) > SETTLE_WITHIN:
            last = start[0] - marks[0][0] + STEP_SECONDS
    return round(last, 1)


async def whole_device(bench: Bench, seconds: float) -> dict[str, Any]:
    """What a container that may have all of a GPU loses, against no shim at all: by turns."""
    case, used = Case(1000, "eager", 2), {True: [], False: []}  # type: tuple[Case, dict[bool, list[float]]]
    for shim in (False, True) * 3:
        container = bench.container(1000, gpu=0)
        container.shim = shim
        await launch([container], case)
        await anyio.sleep(0.5)
        used[shim] += await bench.use(container, seconds=seconds / 2)
        bench.drop(container)
    plain, limited = (statistics.median(used[shim]) for shim in (False, True))
    return {
        "without the shim": round(plain, 2),
        "with it": round(limited, 2),
        "lost %": round((1 - limited / plain) * 100, 2),
    }


async def governor_cost(gpus: int = 8, containers: int = 10) -> dict[str, Any]:
    """Percent of a core, with so many containers on each GPU, all of them at work."""
    with tempfile.TemporaryDirectory() as place:
        tenants = []
        for number in range(gpus * containers):
            directory = Path(place) / str(number)
            directory.mkdir()
            device = region.RegionDevice(uuid=f"GPU-{number // containers}", core_limit_permille=90)
            region.create(directory, devices=[device], policy=Policy.FORCE)
            tenants.append(Tenant.open(directory))

        class Source:
            async def refresh(self) -> Sequence[Tenant]:
                return tenants

        settings = NodeAgentSettings()
        governor = Governor(Source(), ScriptedDriver(), settings)
        for _ in range(5):
            await governor.tick()
        rounds, began = 50, time.process_time()
        for _ in range(rounds):
            await governor.tick()
        tick = (time.process_time() - began) / rounds
        for tenant in tenants:
            tenant.close()
    return {
        "containers": gpus * containers,
        "ms of CPU a tick": round(tick * 1000, 2),
        "percent of a core": round(tick / settings.governor_seconds * 100, 2),
    }


async def measure(*, full: bool, seconds: float) -> dict[str, Any]:
    shares, cases = (FULL_SHARES, FULL) if full else (SHARES, QUICK)
    with tempfile.TemporaryDirectory() as place:
        async with governed.governed(Path(place), models=["h100"] * GPUS) as bench:
            rows = []
            for case in cases:
                rows += await share_errors(bench, case, shares, seconds)
            found = {
                "shares": rows,
                "mean error": round(statistics.fmean(abs(row["error"]) for row in rows), 2),
                "worst error": max((row["error"] for row in rows), key=abs),
                "pairs": await pairs(bench, seconds),
                "settle s": await settling(bench),
                "whole device": await whole_device(bench, seconds),
            }
    return {**found, "cost": await governor_cost()}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="every combination: about an hour")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    harness.add_json(parser)
    options = parser.parse_args(arguments)
    found = asyncio.run(measure(full=options.full, seconds=options.seconds))
    harness.print_rows(found["shares"])
    harness.print_rows(found["pairs"])
    for name in ("mean error", "worst error", "settle s", "whole device", "cost"):
        print(name, found[name])
    harness.write_json(options.json, found)


if __name__ == "__main__":
    main(sys.argv[1:])
