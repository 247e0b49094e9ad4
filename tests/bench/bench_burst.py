"""Many pods at once: onto one node of the whole sandbox, and onto many nodes under binpack.

``python -m tests.bench.bench_burst [--pods 80] [--rounds 3] [--identical 1000] [--json FILE]``

*one node*: as many pods as eight devices of ten slots hold, with scheduler, kubelet and agent; each
container is a process under the shim. Timed from a pod's creation until it is seen running.
*binpack*: identical pods, the sandbox's scheduler and API server (in this process) and a controller
of its own process; the nodes' kubelets and agents are a loop that says of each bound pod, after
20 ms, that it has its devices. *late* is binds that met a deadline or were refused as hopeless.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import yaml
from prometheus_client.parser import text_string_to_metric_families

from hami import logs
from hami.config import KubeSettings, LogSettings
from hami.core import codec
from hami.core.vendors.nvidia import NVIDIA
from hami.kube.client import connect
from hami.sandbox.apiserver import ApiServer
from hami.sandbox.apiserver.kinds import POD
from hami.sandbox.apiserver.records import Selection
from hami.sandbox.cluster import Sandbox
from hami.sandbox.scheduler import Scheduler, load_config
from tests.bench import harness
from tests.bench.bench_start import start
from tests.bench.harness import Http
from tests.support import controller as controllers
from tests.support.sandbox import inside

ALLOCATE_SECONDS = 0.02
BOUND_SECONDS = 300.0
LATE = ("failed", "busy")


async def one_node(pods: int, rounds: int) -> dict[str, Any]:
    """Bursts onto one node, each onto an empty one."""
    seconds: list[float] = []
    spans: list[float] = []
    late = 0.0
    for number in range(rounds):
        async with inside(nodes=1, gpus=8, model="A100-80GB") as (sandbox, _):
            began = time.perf_counter()
            seconds += await start(sandbox, [f"burst-{number}-{i}" for i in range(pods)])
            spans.append(time.perf_counter() - began)
            late += await _late(sandbox)
    return {
        "pods": pods,
        "rounds": rounds,
        "running": harness.summary(seconds),
        "all_seconds": round(max(spans), 2),
        "late": int(late),
    }


async def _late(sandbox: Sandbox) -> float:
    results = await bind_results(sandbox.controller_health_url)
    return sum(results.get(result, 0.0) for result in LATE)


async def bind_results(health_url: str) -> dict[str, float]:
    """Binds by how they ended, as the controller counted them."""
    http = Http(health_url)
    text = (await http.get("/metrics")).decode()
    await http.close()
    return {
        sample.labels["result"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "hami_bind_total"
    }


async def identical(pods: int, nodes: int, mode: str) -> dict[str, Any]:
    """Identical pods, packed onto as few nodes as hold them."""
    async with ApiServer(event_window=200_000).running() as server:
        for i in range(nodes):
            server.store.create(_node(f"node-{i:03}"))
        async with (
            harness.controller(server.url, mode=mode) as controller,
            _scheduler(server, controller.url),
            _agents(server),
        ):
            began = time.perf_counter()
            for i in range(pods):
                server.store.create(controllers.pod_object(f"same-{i}"))
            await _until_bound(server, pods)
            seconds = time.perf_counter() - began
            results = await bind_results(controller.health_url)
        used = {pod["spec"]["nodeName"] for pod in server.store.list("pods")}
    bad = sum(count for result, count in results.items() if result not in ("bound", "repeated"))
    return {
        "mode": mode,
        "pods": pods,
        "nodes": nodes,
        "seconds": round(seconds, 2),
        "pods_per_second": round(pods / seconds, 1),
        "failed": int(bad),
        "failed_percent": round(100 * bad / (bad + pods), 2),
        "late": int(sum(results.get(result, 0.0) for result in LATE)),
        "nodes_used": len(used),
    }


def _node(name: str) -> dict[str, Any]:
    node = controllers.node_object(name, controllers.gpus(name, 8, memory=81_559))
    for amounts in (node["status"]["capacity"], node["status"]["allocatable"]):
        amounts.update({"pods": "250", "cpu": "128", "memory": "1Ti"})
    return node


@asynccontextmanager
async def _scheduler(server: ApiServer, controller_url: str) -> AsyncIterator[None]:
    names = NVIDIA.resources.all()
    extender = {
        "urlPrefix": controller_url,
        "filterVerb": "filter",
        "prioritizeVerb": "prioritize",
        "bindVerb": "bind",
        "nodeCacheCapable": True,
        "weight": 1,
        "httpTimeout": "30s",
        "managedResources": [{"name": name, "ignoredByScheduler": True} for name in names],
    }
    config = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "profiles": [{"schedulerName": "hami-scheduler"}],
        "extenders": [extender],
    }
    with harness.kubeconfig(server.url) as kubeconfig:
        kube = KubeSettings(kubeconfig=kubeconfig, qps=5000, burst=5000, in_flight=90)
        async with connect(kube) as client, anyio.create_task_group() as tasks:
            await tasks.start(Scheduler(client, load_config(yaml.safe_dump(config))).run)
            yield
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def _agents(server: ApiServer) -> AsyncIterator[None]:
    """Says of each bound pod, a moment later, that it has its devices."""
    pods = server.store.collection(POD)

    def allocate(name: str) -> None:
        pod = server.store.find("pods", name)
        if pod is not None and codec.BIND_PHASE_KEY in pod["metadata"].get("annotations", {}):
            pod["metadata"]["annotations"][codec.BIND_PHASE_KEY] = "success"
            pod["status"]["phase"] = "Running"
            server.store.update(pod)

    async def follow() -> None:
        loop, told = asyncio.get_running_loop(), set[str]()
        with pods.subscribed(Selection(), pods.end) as subscription:
            while True:
                for change in subscription.take() or ():
                    name = change.record.key[1]
                    if change.record.fields["spec.nodeName"] and name not in told:
                        told.add(name)
                        loop.call_later(ALLOCATE_SECONDS, allocate, name)
                await subscription.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        yield
        tasks.cancel_scope.cancel()


async def _until_bound(server: ApiServer, count: int) -> None:
    pods, bound = server.store.collection(POD), set[str]()
    with (
        anyio.fail_after(BOUND_SECONDS),
        pods.subscribed(Selection(), 0) as subscription,
    ):
        while len(bound) < count:
            for change in subscription.take() or ():
                if change.record.fields["spec.nodeName"]:
                    bound.add(change.record.uid)
            if len(bound) < count:
                await subscription.wait()


async def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=80, help="onto one node; 0 to leave it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--identical", type=int, default=1000, help="under binpack")
    parser.add_argument("--nodes", type=int, default=40, help="for the identical ones")
    harness.add_json(parser)
    options = parser.parse_args(arguments)
    logs.configure(LogSettings(level="error"))
    found: dict[str, Any] = {"one node": None, "binpack": []}
    if options.pods:
        found["one node"] = row = await one_node(options.pods, options.rounds)
        harness.print_rows([{**row, **row["running"], "running": ""}])
    for mode in ("exclusive", "cooperative"):
        found["binpack"].append(await identical(options.identical, options.nodes, mode))
    harness.print_rows(found["binpack"])
    harness.write_json(options.json, found)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1:])
