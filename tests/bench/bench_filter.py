"""How long the controller's filter takes, over HTTP, from a scheduler's point of view.

``python -m tests.bench.bench_filter [--nodes 100 1000 5000] [--json FILE]``

A real ``hami controller`` process against the sandbox's API server (in this process) with nodes of
eight devices. *first*: the first pod of a request signature, so every device of every node is
looked at; *next*: further pods of one signature, each held by its filter, so that one or two nodes
changed since the one before. *unfit*: like next, with a reason for every node instead. *inside* is
what the controller itself measured, from a request's headers to its answer; the rest is this
process and the kernel.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import aiohttp
import msgspec

from hami.sandbox.apiserver import ApiServer
from tests.support import controller as controllers
from tests.support.commands import command

FIRST = 60
NEXT = 400


async def measure(nodes: int) -> dict[str, Any]:
    """Of each kind of request: its time from outside, and what the controller measured of it."""
    names = [f"gpu-node-{i:05}.example.internal" for i in range(nodes)]
    async with ApiServer(event_window=100_000).running() as server:
        for name in names:
            server.store.create(
                controllers.node_object(name, controllers.gpus(name, 8, memory=81_559))
            )
        with TemporaryDirectory() as directory:
            settings = controllers.settings_for(server, Path(directory))
            async with command("controller", settings, Path(directory)) as process:
                port = (await process.logged("server_started"))["port"]
                await process.logged("controller_synced")
                gc.freeze()  # this process's pauses would count as the controller's
                outside = await ask_all(f"http://127.0.0.1:{port}", names)
    lines = [line for line in process.lines if line.get("event") == "request_answered"]
    inside = iter([cast(float, line["seconds"]) for line in lines])
    result: dict[str, Any] = {"nodes": nodes}
    for kind, seconds in outside.items():
        measured = [next(inside) for _ in seconds]
        result[kind] = summary(seconds)
        result[f"{kind}, inside"] = summary(measured)
    return result


async def ask_all(url: str, names: list[str]) -> dict[str, list[float]]:
    """The seconds of every request, by kind, in the order of asking."""
    encoded = msgspec.json.encode(names)
    async with aiohttp.ClientSession(read_bufsize=1024 * 1024) as session:

        async def ask(number: int, memory: int, what: str) -> float:
            pod = controllers.pod_object(f"{what}-{number}", memory=memory)
            pod["metadata"]["uid"] = f"{what}-{number}"
            body = b'{"Pod":%s,"Nodes":null,"NodeNames":%s}' % (msgspec.json.encode(pod), encoded)
            started = time.perf_counter()
            async with session.post(f"{url}/filter", data=body) as response:
                answer = await response.read()
            seconds = time.perf_counter() - started
            assert response.status == 200
            assert b'"Error":""' in answer, answer[-300:]
            return seconds

        return {
            "first": [await ask(i, 1000 + i, "first") for i in range(FIRST)],
            "next": [await ask(i, 3000, "next") for i in range(NEXT)],
            "unfit": [await ask(i, 90_000, "unfit") for i in range(NEXT)],
        }


def summary(seconds: list[float]) -> dict[str, float]:
    """p50, p99 and the worst, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {
        "p50_ms": round(cuts[49] * 1000, 2),
        "p99_ms": round(cuts[98] * 1000, 2),
        "max_ms": round(max(seconds) * 1000, 2),
    }


async def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    results = []
    print(f"{'nodes':>6}  {'kind':<13} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}")
    for nodes in options.nodes:
        result = await measure(nodes)
        results.append(result)
        for kind, row in list(result.items())[1:]:
            print(
                f"{nodes:>6}  {kind:<13} {row['p50_ms']:>8} {row['p99_ms']:>8} {row['max_ms']:>8}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
