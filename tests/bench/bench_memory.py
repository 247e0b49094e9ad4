"""How much memory a controller holds, for each thousand nodes and each ten thousand pods.

``python -m tests.bench.bench_memory [--sizes 1000:0 5000:0 5000:10000 …] [--json FILE]``

A controller is started for each size of cluster and its resident memory read once it is ready; a
plane is laid through the figures (least squares). Pods beyond six a node are small ones. The API
server is the stand-in, in a process of its own, and its objects are as large as everyday ones.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

import numpy as np

from tests.bench import harness

SIZES = ((100, 0), (1000, 0), (5000, 0), (1000, 6000), (5000, 10_000), (5000, 30_000), (10_000, 0))


async def measure(nodes: int, pods: int) -> dict[str, Any]:
    async with (
        harness.standin(nodes=nodes, pods=pods) as api,
        harness.controller(api) as controller,
    ):
        return {
            "nodes": nodes,
            "pods": pods,
            "resident_mib": round(controller.resident_mib, 1),
            "ready_seconds": round(controller.ready_seconds, 2),
        }


def fit(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The plane: MiB of an empty controller, of 1000 nodes, of 10 000 pods."""
    sizes = [[1.0, row["nodes"] / 1000, row["pods"] / 10_000] for row in rows]
    held = [row["resident_mib"] for row in rows]
    (empty, nodes, pods), *_ = np.linalg.lstsq(np.array(sizes), np.array(held), rcond=None)
    return {
        "empty_mib": round(float(empty), 1),
        "per_1000_nodes_mib": round(float(nodes), 1),
        "per_10000_pods_mib": round(float(pods), 1),
    }


def size(text: str) -> tuple[int, int]:
    nodes, _, pods = text.partition(":")
    return int(nodes), int(pods or 0)


async def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=size, nargs="+", default=SIZES, metavar="NODES:PODS")
    harness.add_json(parser)
    options = parser.parse_args(arguments)
    rows = [await measure(nodes, pods) for nodes, pods in options.sizes]
    harness.print_rows(rows)
    plane = fit(rows)
    harness.print_rows([plane])
    harness.write_json(options.json, {"sizes": rows, "fit": plane})


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
