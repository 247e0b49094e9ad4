"""What the cache holds, as Prometheus gauges, under the names that HAMi's dashboards know.

``refresh`` copies the numbers on the event loop, between two requests; ``collect`` turns the copy
into text's raw material in whatever thread scrapes. So a scrape never sees half a change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from hami import __version__, metrics
from hami.controllers.leadership import Leadership
from hami.core.cache import AllocationCache, Reservation, State
from hami.core.device import Device
from hami.core.quantity import BYTES_PER_MIB
from hami.core.quota import Ceiling, QuotaUse, resource_names
from hami.core.table import Ints
from hami.core.vendor import VendorTable
from hami.metrics import Metric

ZONE = "vGPU"
NODES_SHOWN: Final = 200
"""With devices that they do not register; the others are summed up."""
OTHERS: Final = "(others)"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """The cache at one moment."""

    devices: tuple[tuple[str, int, tuple[Device, ...]], ...] = ()
    """Each node's name, row, and devices in column order."""
    used_slots: Ints
    used_memory: Ints
    used_cores: Ints
    reservations: tuple[Reservation, ...] = ()
    quotas: tuple[tuple[str, tuple[Ceiling, ...], QuotaUse], ...] = ()
    """Each namespace with its ceilings and usage."""
    generation: int = 0
    silent_seconds: tuple[tuple[str, float], ...] = ()


class Exporter(Collector):
    """Collects from the last copy."""

    def __init__(
        self,
        cache: AllocationCache,
        *,
        silent_seconds: Mapping[str, Callable[[], float]],
        vendors: VendorTable,
        registry: CollectorRegistry,
    ) -> None:
        """Register as a collector.

        Args:
            cache: What to show.
            silent_seconds: For each resource, how long ago the API server was heard about it.
            vendors: This site's table, for the names of what quotas limit.
            registry: Where to register.
        """
        self._cache = cache
        self._silent_seconds = silent_seconds
        self._vendors = vendors
        self._copy = self._take()
        registry.register(self)

    async def refresh(self) -> None:
        """Copy the cache as it is now."""
        self._copy = self._take()

    def _take(self) -> _Copy:
        table, book = self._cache.table, self._cache.quotas
        return _Copy(
            devices=tuple((name, row, table.devices(name)) for name, row in table.rows.items()),
            used_slots=table.columns.used_slots.copy(),
            used_memory=table.columns.used_memory.copy(),
            used_cores=table.columns.used_cores.copy(),
            reservations=tuple(self._cache.reservations()),
            quotas=tuple(
                (name, book.ceilings(name), book.used(name)) for name in sorted(book.namespaces())
            ),
            generation=int(table.generations.max()),
            silent_seconds=tuple((name, age()) for name, age in self._silent_seconds.items()),
        )

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing, so that registering does not collect."""
        return ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Every gauge of the last copy."""
        copy = self._copy
        yield _family(metrics.BUILD, [((__version__,), 1)])
        yield _family(metrics.CACHE_GENERATION, [((), copy.generation)])
        yield _family(metrics.INFORMER_AGE, [((name,), age) for name, age in copy.silent_seconds])
        states = Counter(reservation.state.value for reservation in copy.reservations)
        yield _family(metrics.RESERVATIONS, [((s,), n) for s, n in states.items()])
        yield _family(metrics.UNKNOWN_DEVICES, _unknown(copy))
        yield from _node_families(copy)
        yield from _pod_families(copy)
        yield from _quota_families(copy, self._vendors)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One device with what is used of it."""

    key: tuple[str, ...]
    device: Device
    slots: int
    memory: int
    cores: int


def _rows(copy: _Copy) -> Iterator[_Row]:
    for name, row, devices in copy.devices:
        used = zip(
            devices,
            copy.used_slots[row].tolist(),
            copy.used_memory[row].tolist(),
            copy.used_cores[row].tolist(),
            strict=False,  # a row is as wide as the widest node
        )
        for device, slots, memory, cores in used:
            key = (name, device.uuid, str(device.index), device.model, ZONE)
            yield _Row(key=key, device=device, slots=slots, memory=memory, cores=cores)


def _node_families(copy: _Copy) -> Iterator[GaugeMetricFamily]:
    rows = tuple(_rows(copy))
    yield _family(
        metrics.GPU_MEMORY_LIMIT, [(r.key, r.device.memory * BYTES_PER_MIB) for r in rows]
    )
    yield _family(metrics.GPU_CORE_LIMIT, [(r.key, r.device.cores) for r in rows])
    yield _family(
        metrics.GPU_MEMORY_ALLOCATED,
        [((*r.key, str(r.cores)), r.memory * BYTES_PER_MIB) for r in rows],
    )
    yield _family(metrics.GPU_SHARED, [(r.key, r.slots) for r in rows])
    yield _family(metrics.GPU_CORE_ALLOCATED, [(r.key, r.cores) for r in rows])
    yield _family(
        metrics.NODE_GPU_OVERVIEW,
        [((*r.key, str(r.cores), str(r.device.memory)), r.memory * BYTES_PER_MIB) for r in rows],
    )
    yield _family(
        metrics.NODE_GPU_MEMORY_RATIO,
        [(r.key, r.memory / r.device.memory) for r in rows if r.device.memory > 0],
    )


def _unknown(copy: _Copy) -> list[tuple[tuple[str], float]]:
    """How many devices pods hold on each node that does not have them, the most first."""
    there = {(name, device.uuid) for name, _, devices in copy.devices for device in devices}
    held = {(r.allocation.node, uuid) for r in copy.reservations for uuid in r.charges}
    counts = Counter(node for node, _ in held - there)
    nodes = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    found = [((node,), float(count)) for node, count in nodes[:NODES_SHOWN]]
    rest = sum(count for _, count in nodes[NODES_SHOWN:])
    return [*found, ((OTHERS,), float(rest))] if rest else found


def _pod_families(copy: _Copy) -> Iterator[GaugeMetricFamily]:
    rows = [
        ((a.namespace, a.node, a.name, str(position), device.uuid, ZONE), device)
        for a in (r.allocation for r in copy.reservations if r.state is not State.HELD)
        for position, devices in enumerate(a.containers)
        for device in devices
    ]
    yield _family(
        metrics.VGPU_MEMORY_ALLOCATED, [(key, d.memory * BYTES_PER_MIB) for key, d in rows]
    )
    yield _family(metrics.VGPU_CORE_ALLOCATED, [(key, d.cores) for key, d in rows])


def _quota_families(copy: _Copy, vendors: VendorTable) -> Iterator[GaugeMetricFamily]:
    used, most = [], []
    for namespace, ceilings, use in copy.quotas:
        limits = {(c.vendor, c.kind): c.most for c in ceilings}
        for vendor in vendors.values():
            amount = use.get(vendor.name)
            for kind, name in resource_names(vendor):
                limit = limits.get((vendor.name, kind))
                if limit is not None:
                    most.append(((namespace, name, ZONE), limit))
                if limit is not None or amount is not None:
                    value = 0 if amount is None else amount.of(kind)
                    used.append(((namespace, name, str(limit or 0), ZONE), value))
    yield _family(metrics.QUOTA_USED, used)
    yield _family(metrics.QUOTA_LIMIT, most)


class LeadershipExporter(Collector):
    """Who leads; asked at the scrape itself, for a reign may end by the clock."""

    def __init__(self, leadership: Leadership, registry: CollectorRegistry) -> None:
        self._leadership = leadership
        registry.register(self)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing, so that registering does not collect."""
        return ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges; each process tells of itself alone."""
        own = self._leadership
        yield _family(metrics.LEADER, [((own.identity,), float(own.is_leader))])
        yield _family(metrics.LEADER_TERM, [((), own.term)])


def _family(row: Metric, samples: Iterable[tuple[tuple[str, ...], float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(row.name, row.help, labels=row.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family
