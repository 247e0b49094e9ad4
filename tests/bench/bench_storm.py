"""What a storm of watch events does to the extender's answers.

``python -m tests.bench.bench_storm [--nodes 5000] [--pods 30000] [--json FILE]``

In the storm every node is updated once in ten seconds, and 500 pod events come each second: every
fifth a pod that ends and one that takes its place. Pods are scheduled at a steady pace all the
time. Quiet and stormy spells take turns on the same processes, so that whatever else the machine
does falls on both; the ratio of their p99 is what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from typing import Any

import msgspec

from tests.bench import crowd, harness
from tests.bench.driver import Driver, Times, warm_up
from tests.bench.harness import Controller, Http, Questions

SIGNATURES = 100
CALM_SECONDS = 1.0
"""For what a storm left behind."""


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    spells = 2 * options.rounds
    pending = SIGNATURES + spells * options.spell
    async with (
        harness.standin(
            nodes=options.nodes, pods=options.pods, pending=pending, signatures=SIGNATURES
        ) as api,
        harness.controller(api) as controller,
    ):
        gc.collect()
        gc.freeze()
        driver, switch = Driver(controller), Http(api)
        questions = Questions(harness.node_names(options.nodes))
        pods = iter([crowd.pending_pod(i, signatures=SIGNATURES) for i in range(pending)])
        await warm_up(driver, [next(pods) for _ in range(SIGNATURES)], questions)
        times: dict[bool, list[Times]] = {False: [], True: []}
        cpu = {False: 0.0, True: 0.0}
        for turn in range(spells):
            stormy = bool(turn % 2)
            await _set_storm(switch, options, on=stormy)
            await asyncio.sleep(CALM_SECONDS)
            driver.times = Times()
            spell = [next(pods) for _ in range(options.spell)]
            cpu[stormy] += await _spell(driver, controller, spell, questions, options.rate)
            times[stormy].append(driver.times)
        counts = await switch.get("/bench/counts")
        await driver.close()
        await switch.close()
    return _figures(options, times, cpu, msgspec.json.decode(counts))


async def _set_storm(switch: Http, options: argparse.Namespace, *, on: bool) -> None:
    rates = {"nodes": options.nodes / 10, "pods": options.pod_events} if on else {}
    body = {"nodes": 0, "pods": 0} | rates
    await switch.post("/bench/storm", msgspec.json.encode(body))


async def _spell(
    driver: Driver,
    controller: Controller,
    pods: list[dict[str, Any]],
    questions: Questions,
    rate: float,
) -> float:
    """Schedule the pods at the rate; the share of a core that the controller took."""
    busy, started = controller.cpu_seconds, time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number, pod in enumerate(pods):
            await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
            node = await driver.decide(pod, questions)
            if node:
                tasks.create_task(driver.bind(pod, node))
    return (controller.cpu_seconds - busy) / (time.perf_counter() - started)


def _figures(
    options: argparse.Namespace,
    times: dict[bool, list[Times]],
    cpu: dict[bool, float],
    counts: dict[str, int],
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "nodes": options.nodes,
        "pods": options.pods,
        "node_events_per_second": options.nodes / 10,
        "pod_events_per_second": options.pod_events,
        "scheduled_per_second": options.rate,
        "requests": counts,
    }
    for stormy, name in ((False, "quiet"), (True, "storm")):
        found[name] = {
            "filter": harness.summary([s for each in times[stormy] for s in each.filter]),
            "decide": harness.summary([s for each in times[stormy] for s in each.decide]),
            "bind": harness.summary([s for each in times[stormy] for s in each.bind]),
            "refused": sum(len(each.errors) for each in times[stormy]),
            "cores": round(cpu[stormy] / options.rounds, 2),
        }
    for verb in ("filter", "decide", "bind"):
        found[f"{verb}_p99_ratio"] = round(
            found["storm"][verb]["p99_ms"] / found["quiet"][verb]["p99_ms"], 2
        )
    return found


def lines(found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name in ("quiet", "storm"):
        row = {"": name}
        for verb in ("filter", "decide", "bind"):
            figures = found[name][verb]
            row[f"{verb} ms"] = f"{figures['p50_ms']} / {figures['p99_ms']}"
        rows.append({**row, "refused": found[name]["refused"], "cores": found[name]["cores"]})
    ratio = {f"{verb} ms": f"x {found[f'{verb}_p99_ratio']}" for verb in ("filter", "decide")}
    return [*rows, {"": "p99 ratio", **ratio, "bind ms": f"x {found['bind_p99_ratio']}"}]


async def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--pods", type=int, default=30_000)
    parser.add_argument("--pod-events", type=int, default=500, help="a second")
    parser.add_argument("--rate", type=float, default=40.0, help="pods scheduled a second")
    parser.add_argument("--spell", type=int, default=400, help="pods in each spell")
    parser.add_argument("--rounds", type=int, default=3, help="spells of each kind")
    harness.add_json(parser)
    options = parser.parse_args(arguments)
    found = await measure(options)
    harness.print_rows(lines(found))
    harness.write_json(options.json, found)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
