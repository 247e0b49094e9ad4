"""What memory beyond the device costs: time of a kernel as its process holds more and more.

    python -m tests.bench.bench_oversubscription [--json FILE]

On the simulated GPU, whose kernels use all managed memory of their process and wait for what has to
come over a bus of 25 GB/s (docs/simulated-gpu.md). A device of 1000 MiB; one container that holds
more or less than that, of the first priority or the second; and one of each beside a third.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import native
from hami.nodeagent.region import Flag
from hami.sandbox.gpu import catalogue
from tests.bench import harness
from tests.support.gpu import MIB, Client, Container, Machine

POOLER: Final = Path(__file__).parents[1] / "shim/programs/pooler.c"
DEVICE_MIB: Final = 1000
PIECE_MIB: Final = 50
HELD_MIB: Final = (500, 900, 1100, 1500, 2000)
KERNEL_US: Final = 5000
KERNELS: Final = 5
SHARED_MIB: Final = 400


class Tenant:
    """A process of a container that may hold twice the device."""

    def __init__(self, container: Container, program: Path) -> None:
        self.client = Client(program, container.environment)
        self.client.ask("init", 0)
        self.held_mib = 0

    def hold(self, mib: int) -> None:
        while self.held_mib < mib:
            if self.client.ask("alloc", PIECE_MIB * MIB)[0] != 0:
                raise SystemExit(f"{self.held_mib} MiB and no more")
            self.held_mib += PIECE_MIB

    def kernel_ms(self) -> float:
        """Of one kernel, the memory already in its place."""
        self.client.ask("kernel", 1, KERNEL_US)
        return self.client.ask("kernel", KERNELS, KERNEL_US)[1] / KERNELS / 1e6


def tenant(machine: Machine, program: Path, priority: int) -> Tenant:
    name = f"priority-{priority}-{len(list(machine.path.iterdir()))}"
    limit = 2 * DEVICE_MIB * MIB
    return Tenant(
        machine.container(limit, name=name, flags=Flag.OVERSUBSCRIBE, priority=priority), program
    )


def alone(machine: Machine, program: Path, rounds: int) -> list[dict[str, Any]]:
    figures = []
    for priority in (0, 1):
        one = tenant(machine, program, priority)
        for mib in HELD_MIB:
            one.hold(mib)
            times = [one.kernel_ms() for _ in range(rounds)]
            figures.append(row("alone", priority, mib, times))
        one.client.stop()
    return figures


def together(machine: Machine, program: Path, rounds: int) -> list[dict[str, Any]]:
    """Beside a neighbour that leaves 400 MiB each takes as much; then the neighbour goes."""
    neighbour = tenant(machine, program, 1)
    neighbour.hold(DEVICE_MIB - SHARED_MIB)
    pair = [tenant(machine, program, priority) for priority in (0, 1)]
    for mib in range(PIECE_MIB, SHARED_MIB + 1, PIECE_MIB):
        for one in pair:
            one.hold(mib)
    figures = []
    for scene in ("beside a neighbour", "the neighbour gone"):
        times = [[one.kernel_ms() for one in pair] for _ in range(rounds)]
        figures += [
            row(scene, priority, SHARED_MIB, [took[priority] for took in times])
            for priority in (0, 1)
        ]
        neighbour.client.stop()
    for one in pair:
        one.client.stop()
    return figures


def row(scene: str, priority: int, mib: int, times: Sequence[float]) -> dict[str, Any]:
    return {
        "scene": scene,
        "priority": priority,
        "held_mib": mib,
        "of_device": mib / DEVICE_MIB,
        "kernel_ms": round(statistics.median(times), 2),
        "alone_on_the_device_ms": KERNEL_US / 1000,
    }


def run(rounds: int) -> list[dict[str, Any]]:
    native.build()
    small = replace(
        catalogue.get("h100"), memory_bytes=(DEVICE_MIB + 24) * MIB, reserved_bytes=24 * MIB
    )
    with tempfile.TemporaryDirectory() as name:
        program = Path(name) / "pooler"
        native.compile_c(program, [POOLER], ["-pthread"])
        machine = Machine.create(Path(name), [small])
        return [*alone(machine, program, rounds), *together(machine, program, rounds)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    harness.add_json(parser)
    options = parser.parse_args()
    figures = run(options.rounds)
    harness.write_json(options.json, figures)
    harness.print_rows(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
