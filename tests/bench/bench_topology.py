"""How long it takes to find the devices that belong together, against trying every set in turn.

``python -m tests.bench.bench_topology [--candidates 8 16]``

For each count of devices: the first call (which makes the table of sets), a later one, and plain
enumeration, in milliseconds; then larger machines, where not every set is tried.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np

from hami.core import topology
from tests.bench import harness

ROUNDS = 20


def milliseconds(call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The median of some calls."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) * 1000


def enumerate_sets(scores: list[list[float]], count: int) -> tuple[int, ...]:
    """The plain way."""
    return max(
        combinations(range(len(scores)), count),
        key=lambda chosen: sum(scores[a][b] for a, b in combinations(chosen, 2)),
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, nargs="+", default=[8, 16])
    harness.add_json(parser)
    options = parser.parse_args(arguments)
    found: list[dict[str, Any]] = []
    for size in options.candidates:
        scores = np.random.default_rng(size).integers(0, 1900, (size, size)).astype(np.float64)
        rows = scores.tolist()
        for count in range(1, size + 1):
            topology._sets.cache_clear()
            first = milliseconds(lambda: topology.choose_set(scores, range(size), count), 1)  # noqa: B023
            later = milliseconds(lambda: topology.choose_set(scores, range(size), count))  # noqa: B023
            plain = milliseconds(lambda: enumerate_sets(rows, count), 1)  # noqa: B023
            found.append(
                {
                    "candidates": size,
                    "count": count,
                    "first ms": round(first, 3),
                    "later ms": round(later, 3),
                    "plain ms": round(plain, 2),
                    "x": round(plain / later),
                }
            )
    for size in (32, 64, 128):
        scores = np.random.default_rng(size).integers(0, 1900, (size, size)).astype(np.float64)
        count = size // 4
        later = milliseconds(lambda: topology.choose_set(scores, range(size), count))  # noqa: B023
        found.append({"candidates": size, "count": count, "later ms": round(later, 3)})
    harness.print_rows(found)
    harness.write_json(options.json, found)


if __name__ == "__main__":
    main(sys.argv[1:])
