"""How long nobody decides when the leading controller stops, or is killed.

``python -m tests.bench.bench_failover [--nodes 500] [--pods 3000] [--rounds 5] [--json FILE]``

Two controllers in processes of their own, each with a pod object of its own. The time runs from
when the Lease is free (given back, or not renewed for its whole duration) until the other answers
filter; it is asked every few milliseconds. The API server is the sandbox's, in this process.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hami.sandbox.apiserver import ApiServer
from tests.bench import crowd, harness
from tests.support.commands import Process
from tests.support.controller import Controller, controller_process, pod_object
from tests.support.leaders import candidate_settings, leads

DURATION_SECONDS = 4.0
TIMES = {
    "lease_duration_seconds": DURATION_SECONDS,
    "lease_renew_seconds": 3.0,
    "lease_retry_seconds": 1.0,
}
ASK_SECONDS = 0.005


def seed(server: ApiServer, nodes: int, pods: int) -> None:
    """Fill the cluster with nodes and with pods that run on them."""
    for number in range(nodes):
        server.store.create(crowd.node(number))
    for number in range(pods):
        server.store.create(crowd.running_pod(number, nodes, pods))


class Lease:
    """The controllers' Lease, as the API server has it."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def spec(self) -> dict[str, Any]:
        found = self._server.store.find("leases", "hami-controller", "default")
        return dict(found["spec"]) if found else {}

    async def given_back(self) -> float:
        """When it was seen free."""
        await as_soon_as(lambda: not self.spec().get("holderIdentity"))
        return time.perf_counter()

    async def renewed(self) -> float:
        """When the next renewal was seen."""
        before = self.spec().get("renewTime")
        await as_soon_as(lambda: self.spec().get("renewTime") != before)
        return time.perf_counter()


async def as_soon_as(condition: Callable[[], bool]) -> None:
    while True:
        if condition():
            return
        await asyncio.sleep(0.001)


async def until_leads(controller: Controller) -> None:
    while True:
        if await leads(controller):
            return
        await asyncio.sleep(ASK_SECONDS)


async def measure(nodes: int, pods: int, rounds: int) -> dict[str, Any]:
    async with ApiServer(event_window=100_000).running() as server:
        seed(server, nodes, pods)
        with TemporaryDirectory() as directory:
            given_back = [
                s async for s in failovers(server, Path(directory), rounds, signal.SIGTERM)
            ]
            killed = [s async for s in failovers(server, Path(directory), rounds, signal.SIGKILL)]
    return {
        "nodes": nodes,
        "pods": pods,
        "rounds": rounds,
        **summary("given_back", given_back),
        **summary("killed", killed),
    }


async def failovers(
    server: ApiServer, place: Path, rounds: int, how: signal.Signals
) -> AsyncIterator[float]:
    """Seconds from the free Lease to the other's answer, once a round; both are started anew."""
    lease = Lease(server)
    for number in range(rounds):
        async with AsyncExitStack() as stack:
            names = [f"{how.name.lower()}-{number}-{side}" for side in "ab"]
            leader, process = await stack.enter_async_context(candidate(server, place, names[0]))
            await until_leads(leader)
            follower, _ = await stack.enter_async_context(candidate(server, place, names[1]))
            if how is signal.SIGKILL:
                renewed = await lease.renewed()
                process.process.send_signal(how)
                free_at = renewed + DURATION_SECONDS
            else:
                process.process.send_signal(how)
                free_at = await lease.given_back()
            await until_leads(follower)
            yield time.perf_counter() - free_at


def candidate(
    server: ApiServer, place: Path, name: str
) -> AbstractAsyncContextManager[tuple[Controller, Process]]:
    """A controller in a process, and in a pod, of its own."""
    server.store.create(pod_object(name, gpus=0, memory=None))
    settings = candidate_settings(server, place / name, **TIMES)
    environment = {"POD_NAME": name, "POD_NAMESPACE": "default"}
    return controller_process(settings, place / name, environment=environment)


def summary(title: str, seconds: list[float]) -> dict[str, float]:
    return {
        f"{title}_p50_ms": round(statistics.median(seconds) * 1000, 1),
        f"{title}_max_ms": round(max(seconds) * 1000, 1),
    }


async def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--pods", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    harness.add_json(parser)
    options = parser.parse_args(arguments)
    result = await measure(options.nodes, options.pods, options.rounds)
    for key, value in result.items():
        print(f"{key:<18} {value:>10}")
    harness.write_json(options.json, result)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
