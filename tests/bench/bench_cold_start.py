"""How long a controller takes from its start until it is ready, and how much memory it holds then.

``python -m tests.bench.bench_cold_start [--nodes 1000 5000] [--pods-per-node 6] [--json FILE]``

Nodes of eight devices with six running pods each, as large as everyday ones. The API server is the
stand-in, in a process of its own. *list* is what its part costs: the same lists fetched by this
process, and not decoded. *sync* is the controller's lists, decoding and counting.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from tempfile import TemporaryDirectory
from typing import Any

from hami.config import KubeSettings
from hami.kube.client import connect
from hami.kube.resources import NODES, PODS
from tests.bench import harness


async def measure(nodes: int, pods: int) -> dict[str, Any]:
    async with harness.standin(nodes=nodes, pods=pods) as api:
        list_seconds = await lists(api)
        async with harness.controller(api) as controller:
            synced = controller.logged("controller_synced")
            memory = controller.resident_mib
            ready_seconds = controller.ready_seconds
    assert synced is not None
    assert (synced["nodes"], synced["pods"]) == (nodes, pods)
    return {
        "nodes": nodes,
        "pods": pods,
        "reservations": synced["reservations"],
        "ready_seconds": round(ready_seconds, 2),
        "sync_seconds": round(synced["seconds"], 2),
        "list_seconds": round(list_seconds, 2),
        "resident_mib": round(memory, 1),
    }


async def lists(api: str) -> float:
    """Seconds that it takes to fetch everything."""
    with TemporaryDirectory() as directory:
        kubeconfig = harness.write_kubeconfig(directory, api)
        async with connect(KubeSettings(kubeconfig=kubeconfig)) as client:
            started = time.perf_counter()
            for resource in (NODES, PODS):
                async for _ in client.list_pages(resource.path()):
                    pass
            return time.perf_counter() - started


async def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1000, 5000, 10_000])
    parser.add_argument("--pods-per-node", type=int, default=6)
    harness.add_json(parser)
    options = parser.parse_args(arguments)
    rows = [await measure(nodes, nodes * options.pods_per_node) for nodes in options.nodes]
    harness.print_rows(rows)
    harness.write_json(options.json, rows)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
