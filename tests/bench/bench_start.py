"""From a pod's creation to its container running, through the whole sandbox.

Usage: python tests/bench/bench_start.py [--json] [--single 20] [--burst 200]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence

import anyio

from hami import logs
from hami.config import LogSettings
from hami.sandbox.cluster import Sandbox
from tests.support.sandbox import gpu, inside, make_pod

NODES, GPUS = 4, 8


async def main(single: int, burst: int) -> dict[str, dict[str, float]]:
    async with inside(nodes=NODES, gpus=GPUS, model="A100-80GB") as (sandbox, _):
        one_at_a_time = [(await start(sandbox, [f"single-{i}"]))[0] * 1000 for i in range(single)]
        together = [s * 1000 for s in await start(sandbox, [f"burst-{i}" for i in range(burst)])]
        return {
            f"one at a time ({single})": summary(one_at_a_time),
            f"burst of {burst}": summary(together),
        }


async def start(sandbox: Sandbox, names: Sequence[str]) -> list[float]:
    """Seconds from each pod's creation until it is seen running."""
    began: dict[str, float] = {}
    took: dict[str, float] = {}

    async def create(name: str) -> None:
        began[name] = anyio.current_time()
        pod = make_pod(name, limits=gpu(1, memory=1000))
        await sandbox.client.post("/api/v1/namespaces/default/pods", pod)

    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(create, name)
        with anyio.fail_after(300):
            while len(took) < len(names):
                for name in names:
                    pod = sandbox.api.store.find("pods", name)
                    if name not in took and pod and pod["status"]["phase"] == "Running":
                        took[name] = anyio.current_time() - began[name]
                await anyio.sleep(0.002)
    return [took[name] for name in names]


def summary(milliseconds: list[float]) -> dict[str, float]:
    ordered = sorted(milliseconds)
    return {
        "p50_ms": round(statistics.median(ordered), 1),
        "p99_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 1),
        "max_ms": round(ordered[-1], 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--single", type=int, default=20)
    parser.add_argument("--burst", type=int, default=200)
    options = parser.parse_args()
    logs.configure(LogSettings(level="error"))
    figures = anyio.run(main, options.single, options.burst)
    if options.json:
        print(json.dumps(figures))
    else:
        for title, row in figures.items():
            print(title, *(f"{key} {value}" for key, value in row.items()))
