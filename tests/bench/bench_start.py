"""From a pod's creation to its container running, through the whole sandbox.

Usage: python -m tests.bench.bench_start [--single 20] [--burst 200] [--json FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import anyio

from hami import logs
from hami.config import LogSettings
from hami.sandbox.cluster import Sandbox
from tests.bench import harness
from tests.support.sandbox import gpu, inside, make_pod

NODES, GPUS = 4, 8


async def main(single: int, burst: int) -> dict[str, dict[str, float]]:
    async with inside(nodes=NODES, gpus=GPUS, model="A100-80GB") as (sandbox, _):
        one_at_a_time = [(await start(sandbox, [f"single-{i}"]))[0] for i in range(single)]
        together = await start(sandbox, [f"burst-{i}" for i in range(burst)])
        return {
            "one at a time": harness.summary(one_at_a_time),
            f"{burst} at once": harness.summary(together),
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--single", type=int, default=20)
    parser.add_argument("--burst", type=int, default=200)
    harness.add_json(parser)
    options = parser.parse_args()
    logs.configure(LogSettings(level="error"))
    figures = anyio.run(main, options.single, options.burst)
    harness.print_rows({"": title, **row} for title, row in figures.items())
    harness.write_json(options.json, figures)
