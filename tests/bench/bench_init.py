"""What the shim adds to a program's start: from cuInit to the first answer about memory.

    python -m tests.bench.bench_init [--processes N...] [--rounds N] [--json FILE]

So many processes of one container begin at the same moment and stay. *clock* is what each waited
for, other processes' turns on the same cores included; *cpu* is what it used of a core itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench import harness, shimbench

PROCESSES = (1, 8, 64, 300, 1100)
ROUNDS = {1: 60, 8: 20, 64: 5, 300: 3}
"""So that each size has some hundred processes; others: one."""


def start(program: Path, environment: Mapping[str, str], count: int) -> list[tuple[float, float]]:
    """Microseconds of clock and of processor, of each process."""
    gate, opened = os.pipe()
    processes = [
        subprocess.Popen(
            [program],
            env=dict(environment),
            stdin=gate,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    os.close(gate)
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        os.close(opened)
        answers = [process.stdout.readline().split() for process in processes if process.stdout]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()
    return [(float(clock), float(cpu)) for clock, cpu in answers]


def measure(bed: shimbench.Bed, count: int, rounds: int) -> dict[str, Any]:
    """One row: the two ways take turns."""
    program = bed.program("init_bench")
    plain: list[tuple[float, float]] = []
    shim: list[tuple[float, float]] = []
    for number in range(rounds):
        plain += start(program, bed.plain, count)
        shim += start(program, bed.with_shim(f"{count}-{number}"), count)
    row: dict[str, Any] = {"processes": count}
    for name, column in (("clock", 0), ("cpu", 1)):
        without, with_it = (_cuts([row[column] for row in rows]) for rows in (plain, shim))
        for cut in ("p50", "p99"):
            row[f"{name}_{cut}_plain_us"] = without[cut]
            row[f"{name}_{cut}_added_us"] = round(with_it[cut] - without[cut], 1)
    return row


def _cuts(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles([*values, *values], n=100, method="inclusive")
    return {"p50": round(cuts[49], 1), "p99": round(cuts[98], 1)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=list(PROCESSES))
    parser.add_argument("--rounds", type=int, help="instead of some hundred processes a size")
    harness.add_json(parser)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        bed = shimbench.Bed.make(Path(name))
        rows = [
            measure(bed, count, options.rounds or ROUNDS.get(count, 1))
            for count in options.processes
        ]
    harness.write_json(options.json, rows)
    harness.print_rows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
