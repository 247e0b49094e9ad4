"""What a scrape of the controller's metrics costs in a large cluster.

``python -m tests.bench.bench_scrape [--nodes 5000] [--pods 30000]``

In this process, nodes of eight devices with pods on them. *copy* is what the event loop does, the
rest a worker thread; *first* and *next* are the text of all gauges, next with one node in fifty
changed since. *library* makes the same lines of devices and containers with prometheus_client.
Seconds of the processor's time, for the machine may have other work.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from hami import metrics
from hami.controllers.echoes import Echoes
from hami.controllers.exporter import Exporter, Watched
from hami.controllers.gaugetext import (
    CONTAINER_GAUGES,
    DEVICE_GAUGES,
    DeviceUse,
    Labels,
    container_views,
    device_views,
)
from hami.core.cache import AllocationCache
from hami.core.objects import Pod
from hami.kube.metrics import KubeMetrics
from hami.kube.store import Store
from hami.metrics import Metric
from tests.bench import harness
from tests.support.builders import VENDORS, given, make_allocation, make_devices

DEVICES = 8
V = TypeVar("V")


class WithLibrary(Collector):
    """The gauges of devices and containers, as families of the library."""

    def __init__(self, cache: AllocationCache) -> None:
        self._cache = cache

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        table = self._cache.table
        devices = [
            view
            for name in table.rows
            for view in device_views(
                name,
                (
                    DeviceUse(device=d, slots=u.slots, memory=u.memory, cores=u.cores)
                    for d, u in zip(table.devices(name), table.used(name).values(), strict=True)
                ),
            )
        ]
        containers = [
            view for r in self._cache.reservations() for view in container_views(r.allocation)
        ]
        yield from families(DEVICE_GAUGES, devices)
        yield from families(CONTAINER_GAUGES, containers)


def families(
    gauges: Mapping[Metric, Callable[[V], float | None]], views: list[tuple[Labels, V]]
) -> Iterator[GaugeMetricFamily]:
    for row, value in gauges.items():
        family = GaugeMetricFamily(row.name, row.help, labels=row.labels)
        for labels, view in views:
            number = value(view)
            if number is not None:
                family.add_metric([labels[name] for name in row.labels], number)
        yield family


def cluster(nodes: int, pods: int) -> AllocationCache:
    cache = AllocationCache()
    for n in range(nodes):
        cache.set_node(node_name(n), make_devices(DEVICES, prefix=f"GPU-7d1f0a52-4c1e-{n:05}"))
    for p in range(pods):
        confirm(cache, p, p % nodes)
    return cache


def node_name(number: int) -> str:
    return f"gpu-node-{number:05}.example.internal"


def confirm(cache: AllocationCache, pod: int, node: int) -> None:
    share = given(f"GPU-7d1f0a52-4c1e-{node:05}-{pod % DEVICES}", memory=3000, cores=10)
    cache.confirm(make_allocation([share], uid=f"uid-{pod:06}", node=node_name(node)))


def timed(figures: dict[str, float], what: str, call: Callable[[], Any]) -> Any:
    started = time.process_time()
    result = call()
    figures[what] = round(time.process_time() - started, 3)
    print(f"{what:<14} {figures[what]:8.3f} s", flush=True)
    return result


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--pods", type=int, default=30_000)
    harness.add_json(parser)
    options = parser.parse_args(arguments)
    figures: dict[str, float] = {}
    cache = cluster(options.nodes, options.pods)
    registry, own = CollectorRegistry(), CollectorRegistry()
    pods: Store[Pod] = Store("pods", metrics=KubeMetrics(own))
    echoes = Echoes(pods, metrics.histogram(metrics.WATCH_SECONDS, own))
    watched = Watched(silent_seconds={}, queues={}, echoes=echoes)
    exporter = Exporter(cache, watched, vendors=VENDORS, legacy=False, registry=registry)

    def scrape() -> list[bytes]:
        return [generate_latest(registry), *exporter.text()]

    timed(figures, "first copy", exporter.copy)
    size = sum(map(len, timed(figures, "first scrape", scrape)))
    for node in range(0, options.nodes, 50):
        confirm(cache, options.pods + node, node)
    timed(figures, "next copy", exporter.copy)
    timed(figures, "next scrape", scrape)
    library = CollectorRegistry()
    library.register(WithLibrary(cache))
    timed(figures, "library", lambda: generate_latest(library))
    print(f"{size / 2**20:.0f} MiB of text")
    harness.write_json(options.json, figures)


if __name__ == "__main__":
    main(sys.argv[1:])
