"""How long a controller takes from its start until it is ready, and how much memory it holds then.

``python -m tests.bench.bench_cold_start [--nodes 5000] [--pods 20000] [--json FILE]``

The cluster: nodes of eight devices; pods of which three in four run with one shared device, the
rest use none; everyday annotations on each. The API server is the sandbox's, in this process, on
the same cores: its share of the time is told by *list*, the same lists fetched and not decoded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hami.core import codec
from hami.core.vendors.nvidia import NVIDIA
from hami.kube.client import connect
from hami.kube.resources import NODES, PODS
from hami.sandbox.apiserver import ApiServer
from tests.support import controller as controllers
from tests.support.commands import command


async def measure(nodes: int, pods: int) -> dict[str, Any]:
    async with ApiServer(event_window=100_000).running() as server:
        seed(server, nodes, pods)
        with TemporaryDirectory() as directory:
            settings = controllers.settings_for(server, Path(directory))
            async with connect(settings.kube) as client:
                started = time.perf_counter()
                for resource in (NODES, PODS):
                    async for _ in client.list_pages(resource.path()):
                        pass
                list_seconds = time.perf_counter() - started
            started = time.perf_counter()
            async with command("controller", settings, Path(directory)) as process:
                synced = await process.logged("controller_synced")
                ready_seconds = time.perf_counter() - started
                memory = resident_mib(process.process.pid)
    assert (synced["nodes"], synced["pods"]) == (nodes, pods)
    return {
        "nodes": nodes,
        "pods": pods,
        "reservations": synced["reservations"],
        "ready_seconds": round(ready_seconds, 2),
        "sync_seconds": synced["seconds"],
        "list_seconds": round(list_seconds, 2),
        "resident_mib": memory,
    }


def seed(server: ApiServer, nodes: int, pods: int) -> None:
    for i in range(nodes):
        name = f"gpu-node-{i:05}"
        devices = controllers.gpus(name, 8, memory=81_559)
        server.store.create(controllers.node_object(name, devices))
    for i in range(pods):
        node, device = f"gpu-node-{i % nodes:05}", (i // nodes) % 8
        pod = controllers.pod_object(f"pod-{i}", memory=3000)
        annotations = {"prometheus.io/scrape": "true", "example.com/checksum": "0" * 64}
        if i % 4:
            record = f"GPU-{node}-{device},NVIDIA,3000,0:;"
            annotations |= {
                codec.NODE_KEY: node,
                codec.BIND_PHASE_KEY: "success",
                NVIDIA.allocated_key: record,
                NVIDIA.to_allocate_key: ";",
            }
        pod["metadata"]["annotations"] = annotations
        pod["spec"]["nodeName"] = node
        pod["status"] = {"phase": "Running"}
        server.store.create(pod)


def resident_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) // 1024


async def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--pods", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    result = await measure(options.nodes, options.pods)
    for key, value in result.items():
        print(f"{key:<14} {value:>10}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
