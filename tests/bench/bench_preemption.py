"""How long it takes to choose a node and victims among all nodes of a cluster.

``python -m tests.bench.bench_preemption [--nodes 5000] [--pods 30000]``

Nodes of eight devices, all in use, by pods of one or of four priorities; *crowded* is every eighth
node with eight times as many pods. The cost includes making arrays of the pods, which is done for
each preemptor. For comparison: one question for each node, whether the pod fits without all lesser
pods, in a loop. *busy* is the processor's time, which other work on the machine does not stretch.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from hami.core import preemption, whatif
from hami.core.allocation import Charge
from hami.core.device import DeviceUuid, PodRequest
from hami.core.table import DeviceTable
from hami.core.victims import Budget, Victim
from tests.bench import harness
from tests.support.builders import asking, make_demand, make_devices, make_pod_request

ROUNDS = 7
SHARES = [(0, 1), (2, 3), (4,), (5,), (6,), (7,)]
"""The devices of one pod after the other, so that six pods use all eight."""
BUDGETS = [Budget(allowed=n) for n in (0, 1, 5)]


def cluster(
    nodes: int,
    pods: int,
    *,
    priorities: Sequence[int],
    crowded: bool = False,
    budgets: bool = False,
) -> tuple[DeviceTable, dict[str, list[Victim]]]:
    """A full cluster: pods fill the nodes evenly, or every eighth node."""
    table = DeviceTable()
    victims: dict[str, list[Victim]] = {}
    for number in range(nodes):
        name = f"node-{number:05}"
        table.set_node(name, make_devices(8, prefix=name))
        victims[name] = []
    names = list(victims)[:: 8 if crowded else 1]
    random = np.random.default_rng(1)
    memory = random.integers(4, 20, pods) * 1000
    for number in range(pods):
        name = names[number % len(names)]
        uuids = [DeviceUuid(f"{name}-{i}") for i in SHARES[number // len(names) % len(SHARES)]]
        victims[name].append(
            Victim(
                uid=f"{random.integers(2**60):016x}-{number:06}",
                pod=f"team/pod-{number}",
                priority=int(random.choice(priorities)),
                started=float(number),
                charges={
                    uuid: Charge(slots=1, memory=int(memory[number]) // 4, cores=10)
                    for uuid in uuids
                },
                budgets=(number % 3,) if budgets and number % 5 == 0 else (),
            )
        )
    for name, own in victims.items():
        for each in own:
            table.charge(name, each.charges, sign=1)
    return table, victims


def milliseconds(
    table: DeviceTable, request: PodRequest, victims: dict[str, list[Victim]]
) -> tuple[float, float, preemption.Plan | None]:
    """The median of some choices, by the clock and busy, and the choice."""
    seconds, busy, plan = [], [], None
    for _ in range(ROUNDS):
        started, before = time.perf_counter(), time.process_time()
        plan = preemption.choose(table, request, 1000, victims, BUDGETS)
        seconds.append(time.perf_counter() - started)
        busy.append(time.process_time() - before)
    return statistics.median(seconds) * 1000, statistics.median(busy) * 1000, plan


def one_by_one(table: DeviceTable, request: PodRequest, victims: dict[str, list[Victim]]) -> float:
    """Busy milliseconds for a question a node."""
    started = time.process_time()
    for name, own in victims.items():
        whatif.fits_without(table, request, name, [[v.charges for v in own]])
    return (time.process_time() - started) * 1000


CASES: dict[str, dict[str, Any]] = {
    "four priorities": {"priorities": (0, 10, 20, 30)},
    "one priority": {"priorities": (0,)},
    "budgets": {"priorities": (0, 10, 20, 30), "budgets": True},
    "crowded": {"priorities": (0, 10, 20, 30), "crowded": True},
    "crowded, one priority": {"priorities": (0,), "crowded": True},
}
ASKS = {
    f"{count} whole": make_pod_request(asking(make_demand(count, percent=100, cores=100)))
    for count in (1, 8)
}


def measure(what: str, nodes: int, pods: int) -> list[dict[str, Any]]:
    """One row for each request."""
    rows = []
    table, victims = cluster(nodes, pods, **CASES[what])
    victims = {name: own for name, own in victims.items() if own}
    gc.collect()
    gc.freeze()  # as a controller does once it has synced
    for asked, request in ASKS.items():
        taken, busy, plan = milliseconds(table, request, victims)
        loop = one_by_one(table, request, victims)
        found = 0 if plan is None else len(plan.victims)
        rows.append(
            {
                "": what,
                "asked": asked,
                "ms": round(taken, 1),
                "busy ms": round(busy, 1),
                "loop ms": round(loop),
                "victims": found,
            }
        )
    return rows


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--pods", type=int, default=30_000)
    harness.add_json(parser)
    options = parser.parse_args(arguments)
    print(f"{options.nodes} nodes, {options.pods} pods")
    rows = [row for what in CASES for row in measure(what, options.nodes, options.pods)]
    harness.print_rows(rows)
    harness.write_json(options.json, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
