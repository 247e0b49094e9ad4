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

import numpy as np

from hami.core import topology

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
    options = parser.parse_args(arguments)
    print(
        f"{'candidates':>10} {'count':>6} {'first ms':>9} {'later ms':>9} {'plain ms':>9} {'x':>7}"
    )
    for size in options.candidates:
        scores = np.random.default_rng(size).integers(0, 1900, (size, size)).astype(np.float64)
        rows = scores.tolist()
        for count in range(1, size + 1):
            topology._sets.cache_clear()
            first = milliseconds(lambda: topology.choose_set(scores, range(size), count), 1)  # noqa: B023
            later = milliseconds(lambda: topology.choose_set(scores, range(size), count))  # noqa: B023
            plain = milliseconds(lambda: enumerate_sets(rows, count), 1)  # noqa: B023
            print(
                f"{size:>10} {count:>6} {first:>9.3f} {later:>9.3f} {plain:>9.2f} "
                f"{plain / later:>7.0f}"
            )
    for size in (32, 64, 128):
        scores = np.random.default_rng(size).integers(0, 1900, (size, size)).astype(np.float64)
        count = size // 4
        later = milliseconds(lambda: topology.choose_set(scores, range(size), count))  # noqa: B023
        print(f"{size:>10} {count:>6} {'':>9} {later:>9.3f}   grown and exchanged")


if __name__ == "__main__":
    main(sys.argv[1:])
