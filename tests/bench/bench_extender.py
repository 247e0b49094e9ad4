"""How fast the extender answers and how many pods a second go through it, over HTTP.

``python -m tests.bench.bench_extender [--nodes 100 1000 5000] [--sustain 5000] [--json FILE]``

A ``hami controller`` process with default settings, an API server stand-in that answers in 5 ms
(``standin.py``, its own process) and this process as the scheduler. Nodes have eight devices and
six running pods each. *known* is a further pod of a request that was asked for before, *new* the
first one of its request, *unfit* one that fits nowhere, so that each node has a reason. *all* nodes
are asked about, or the *sample* that kube-scheduler takes of so many by default. *through* is pods
from their first filter to the end of their last bind.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from hami.core.vendors.nvidia import NVIDIA
from tests.bench import crowd, harness
from tests.bench.driver import NO_NODE, Driver, Times, warm_up
from tests.bench.harness import Controller, Questions, sample_of

SIGNATURES = 100
BINDS = 100
WARM = 3
WAYS = (("cooperative", "binpack"), ("exclusive", "binpack"), ("cooperative", "spread"))
"""Mode and node policy; only the first where nothing is sent through."""


async def measure(
    nodes: int, *, known: int, through: int, ways: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """The rows of one size of cluster."""
    rows = []
    for mode, policy in ways:
        pending = WARM + 4 * SIGNATURES + 2 * known + BINDS + 2 * through
        async with (
            harness.standin(
                nodes=nodes,
                pods=len(crowd.MIX) * nodes,
                pending=pending,
                signatures=SIGNATURES,
                policy=policy,
            ) as api,
            harness.controller(api, mode=mode) as controller,
        ):
            gc.collect()
            gc.freeze()
            driver = Driver(controller)
            row = {"nodes": nodes, "mode": mode, "policy": policy}
            rows += await _measure(driver, controller, row, known=known, through=through)
            await driver.close()
    return rows


async def _measure(
    driver: Driver, controller: Controller, row: dict[str, Any], *, known: int, through: int
) -> list[dict[str, Any]]:
    nodes, policy = row["nodes"], row["policy"]
    names = harness.node_names(nodes)
    every, sample = Questions(names), Questions(names[: sample_of(nodes)])
    numbers = iter(range(10**9))

    def pod(memory: int | None = None) -> dict[str, Any]:
        """The next pending pod; with so much memory, it is of another request."""
        found = crowd.pending_pod(next(numbers), signatures=SIGNATURES, policy=policy)
        if memory is not None:
            limits = found["spec"]["containers"][0]["resources"]["limits"]
            limits[NVIDIA.resources.memory] = str(memory)
        return found

    await warm_up(driver, [pod() for _ in range(WARM)], every)
    rows = []
    for asked, questions in (("all", every), ("sample", sample)):
        figures = dict(row, asked=asked)
        if asked == "all":
            figures["new"] = await _times(
                driver, [pod(9000 + i) for i in range(SIGNATURES)], questions
            )
        await _times(driver, [pod() for _ in range(SIGNATURES)], questions)
        figures["known"] = await _times(driver, [pod() for _ in range(known)], questions)
        rows.append(figures)
    rows[0]["unfit"] = await _unfit(driver, pod, every)
    rows[0]["bind"] = await _binds(driver, [pod() for _ in range(BINDS)], sample)
    if through:
        for figures, questions in zip(rows, (every, sample), strict=True):
            pods = [pod() for _ in range(through)]
            busy = controller.cpu_seconds
            figures["through"] = await _through(driver, pods, questions)
            used = controller.cpu_seconds - busy
            figures["through"]["cpu_ms_per_pod"] = round(1000 * used / through, 2)
    return rows


async def _times(
    driver: Driver, pods: list[dict[str, Any]], questions: Questions
) -> dict[str, Any]:
    driver.times = Times()
    for pod in pods:
        assert await driver.decide(pod, questions), driver.times.errors[-1]
    times = driver.times
    found = {"filter": harness.summary(times.filter), "decide": harness.summary(times.decide)}
    if len(times.prioritize) > 1:
        found["prioritize"] = harness.summary(times.prioritize)
    return found


async def _unfit(
    driver: Driver, pod: Callable[[int], dict[str, Any]], questions: Questions
) -> dict[str, float]:
    driver.times = Times()
    for _ in range(SIGNATURES):
        await driver.decide(pod(crowd.MEMORY + 1), questions)
    assert set(driver.times.errors) == {NO_NODE}, driver.times.errors[:3]
    return harness.summary(driver.times.filter)


async def _binds(
    driver: Driver, pods: list[dict[str, Any]], questions: Questions
) -> dict[str, float]:
    """Binds one at a time, to a node that nobody else is bound to meanwhile."""
    driver.times = Times()
    for pod in pods:
        node = await driver.decide(pod, questions)
        assert await driver.bind(pod, node), driver.times.errors[-1]
        await asyncio.sleep(0.03)
    return harness.summary(driver.times.bind)


async def _through(
    driver: Driver, pods: list[dict[str, Any]], questions: Questions
) -> dict[str, Any]:
    driver.times = Times()
    started = time.perf_counter()
    bound = await driver.schedule(pods, lambda: questions)
    seconds = time.perf_counter() - started
    return {
        "pods": bound,
        "seconds": round(seconds, 2),
        "pods_per_second": round(bound / seconds, 1),
        "refused": len(driver.times.errors),
        "decide": harness.summary(driver.times.decide),
        "bind": harness.summary(driver.times.bind),
    }


def line(row: dict[str, Any]) -> dict[str, Any]:
    """What is printed of a row."""

    def both(figures: dict[str, Any] | None) -> str:
        return f"{figures['p50_ms']} / {figures['p99_ms']}" if figures else "-"

    known, new, through = row["known"], row.get("new", {}), row.get("through", {})
    return {
        "nodes": row["nodes"],
        "mode": row["mode"],
        "policy": row["policy"],
        "asked": row["asked"],
        "filter known": both(known["filter"]),
        "filter new": both(new.get("filter")),
        "unfit": both(row.get("unfit")),
        "prioritize": both(known.get("prioritize")),
        "decide known": both(known["decide"]),
        "bind": both(row.get("bind")),
        "pods/s": through.get("pods_per_second", "-"),
        "cpu ms/pod": through.get("cpu_ms_per_pod", "-"),
        "refused": through.get("refused", "-"),
        "bind busy": both(through.get("bind")),
    }


def way(text: str) -> tuple[str, str]:
    mode, _, policy = text.partition(":")
    return mode, policy


async def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="*", default=[100, 1000, 5000, 10_000, 20_000])
    parser.add_argument("--known", type=int, default=300, help="pods to time, of known requests")
    parser.add_argument("--sustain", type=int, nargs="*", default=[5000], help="nodes")
    parser.add_argument("--through", type=int, default=2000, help="pods to send through")
    parser.add_argument("--ways", type=way, nargs="+", default=WAYS, metavar="MODE:POLICY")
    harness.add_json(parser)
    options = parser.parse_args(arguments)
    print("p50 / p99 in ms", flush=True)
    rows = []
    for nodes in sorted({*options.nodes, *options.sustain}):
        through = options.through if nodes in options.sustain else 0
        ways = options.ways if through else options.ways[:1]
        found = await measure(nodes, known=options.known, through=through, ways=ways)
        rows += found
        harness.print_rows([line(row) for row in found])
        sys.stdout.flush()
    harness.write_json(options.json, rows)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
