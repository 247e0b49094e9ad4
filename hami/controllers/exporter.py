"""What the controller knows, as Prometheus gauges, under the names that HAMi's dashboards know.

``refresh`` copies the numbers on the event loop, between two requests; ``collect`` and ``text``
make of the copy what is scraped, in whatever thread does so. So a scrape never sees half a change,
and nobody waits for it. The many lines of devices and containers are text at once (``gaugetext``).
"""

from __future__ import annotations

import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from hami import __version__, gauges, metrics
from hami.controllers.echoes import Echoes
from hami.controllers.fragmentation import by_model
from hami.controllers.gaugetext import (
    CONTAINER_GAUGES,
    DEVICE_GAUGES,
    ZONE,
    DeviceUse,
    GaugeText,
    Labels,
    clean,
    container_views,
    device_views,
)
from hami.controllers.leadership import Leadership
from hami.core.allocation import MigInstance, MigReservation
from hami.core.cache import AllocationCache, Reservation, State
from hami.core.device import Device, MigProfile
from hami.core.quantity import BYTES_PER_MIB
from hami.core.quota import Ceiling, QuotaUse, resource_names
from hami.core.table import Columns
from hami.core.vendor import VendorTable
from hami.core.words import Words
from hami.gauges import Older
from hami.metrics import Metric

NODES_SHOWN: Final = 200
"""With devices that they do not register; the others are summed up."""
OTHERS: Final = "(others)"

Samples = Iterable[tuple[tuple[str, ...], float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What else is asked at each scrape."""

    silent_seconds: Mapping[str, Callable[[], float]]
    """For each resource, how long ago the API server was heard about it."""
    queues: Mapping[str, Callable[[], int]]
    """For each queue, how many wait in it."""
    echoes: Echoes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """Everything at one moment."""

    devices: tuple[tuple[str, int, tuple[Device, ...]], ...]
    """Each node's name, row, and devices in column order."""
    generations: tuple[int, ...]
    """Of each row."""
    columns: Columns
    words: Words
    geometries: tuple[tuple[MigProfile, ...], ...]
    reservations: tuple[Reservation, ...]
    quotas: tuple[tuple[str, tuple[Ceiling, ...], QuotaUse], ...]
    """Each namespace with its ceilings and usage."""
    silent_seconds: Mapping[str, float]
    queues: Mapping[str, int]
    unseen_binds: int
    lag_seconds: float

    @property
    def generation(self) -> int:
        """Changes so far."""
        return max(self.generations, default=0)


class Exporter(Collector):
    """Collects from the last copy."""

    def __init__(
        self,
        cache: AllocationCache,
        watched: Watched,
        *,
        vendors: VendorTable,
        legacy: bool,
        registry: CollectorRegistry,
    ) -> None:
        """Register as a collector.

        Args:
            cache: What to show.
            watched: What else to show.
            vendors: This site's table, for the names of what quotas limit.
            legacy: Whether to show the older names too.
            registry: Where to register.
        """
        self._cache = cache
        self._watched = watched
        self._vendors = vendors
        self._older = gauges.OLDER if legacy else ()
        self._device_text = GaugeText(DEVICE_GAUGES, older=self._older)
        self._container_text = GaugeText(CONTAINER_GAUGES, older=self._older)
        self._copy = self._take()
        registry.register(self)

    async def refresh(self) -> None:
        """Copy everything as it is now; see ``copy``."""
        self.copy()

    def copy(self) -> None:
        """Copy everything as it is now."""
        self._copy = self._take()

    def _take(self) -> _Copy:
        table, book, watched = self._cache.table, self._cache.quotas, self._watched
        snapshot = table.copy(np.arange(len(table)))
        return _Copy(
            devices=tuple((name, row, table.devices(name)) for name, row in table.rows.items()),
            generations=tuple(snapshot.generations.tolist()),
            columns=snapshot.columns,
            words=table.words,
            geometries=tuple(table.geometries),
            reservations=tuple(self._cache.reservations()),
            quotas=tuple(
                (name, book.ceilings(name), book.used(name)) for name in sorted(book.namespaces())
            ),
            silent_seconds={name: age() for name, age in watched.silent_seconds.items()},
            queues={name: length() for name, length in watched.queues.items()},
            unseen_binds=len(watched.echoes),
            lag_seconds=watched.echoes.lag_seconds,
        )

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing, so that registering does not collect."""
        return ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Every gauge of the last copy, but for those of ``text``."""
        copy = self._copy
        yield _family(gauges.BUILD, [(_build_labels(), 1)])
        yield _family(metrics.CACHE_GENERATION, [((), copy.generation)])
        yield _family(
            metrics.INFORMER_AGE, [((name,), age) for name, age in copy.silent_seconds.items()]
        )
        yield _family(metrics.CACHE_LAG, [((), copy.lag_seconds)])
        yield _family(metrics.UNSEEN_BINDS, [((), copy.unseen_binds)])
        yield _family(metrics.QUEUES, [((name,), length) for name, length in copy.queues.items()])
        states = Counter(reservation.state.value for reservation in copy.reservations)
        yield _family(metrics.RESERVATIONS, [((s,), n) for s, n in states.items()])
        yield _family(metrics.UNKNOWN_DEVICES, _unknown(copy))
        yield from _model_families(copy)
        yield from _with_older(gauges.MIG_INSTANCE, _mig_samples(copy), self._older)
        yield from _quota_families(copy, self._vendors, self._older)

    def text(self) -> Iterator[bytes]:
        """The gauges of devices and of containers of the last copy, in pieces of text."""
        copy = self._copy
        yield from self._device_text.write(
            (name, (copy.generations[row], row), _viewer(copy, name, row, devices))
            for name, row, devices in copy.devices
        )
        yield from self._container_text.write(
            (r.allocation.uid, r.allocation, partial(container_views, r.allocation))
            for r in _shown(copy)
        )


def _build_labels() -> tuple[str, ...]:
    """Version, revision, build date, Go version, compiler and platform; a wheel knows no more."""
    compiler = f"{platform.python_implementation()} {platform.python_version()}"
    return (__version__, "", "", "", compiler, f"{sys.platform}/{platform.machine()}")


def _device_uses(copy: _Copy, row: int, devices: tuple[Device, ...]) -> Iterator[DeviceUse]:
    columns = copy.columns
    used = zip(
        devices,
        columns.used_slots[row].tolist(),
        columns.used_memory[row].tolist(),
        columns.used_cores[row].tolist(),
        strict=False,  # a row is as wide as the widest node
    )
    for device, slots, memory, cores in used:
        yield DeviceUse(device=device, slots=slots, memory=memory, cores=cores)


def _viewer(
    copy: _Copy, name: str, row: int, devices: tuple[Device, ...]
) -> Callable[[], Iterator[tuple[Labels, DeviceUse]]]:
    return lambda: device_views(name, _device_uses(copy, row, devices))


def _shown(copy: _Copy) -> Iterable[Reservation]:
    """All but holds; of two pods of one name, as there may be for a moment, the last."""
    return {
        (r.allocation.namespace, r.allocation.name): r
        for r in copy.reservations
        if r.state is not State.HELD
    }.values()


def _unknown(copy: _Copy) -> list[tuple[tuple[str], float]]:
    """How many devices pods hold on each node that does not have them, the most first."""
    there = {name: {device.uuid for device in devices} for name, _, devices in copy.devices}
    unknown: dict[str, set[str]] = {}
    for r in copy.reservations:
        known = there.get(r.allocation.node, set())
        for uuid in r.charges:
            if uuid not in known:
                unknown.setdefault(r.allocation.node, set()).add(uuid)
    nodes = sorted(unknown.items(), key=lambda item: (-len(item[1]), item[0]))
    found = [((node,), float(len(uuids))) for node, uuids in nodes[:NODES_SHOWN]]
    rest = sum(len(uuids) for _, uuids in nodes[NODES_SHOWN:])
    return [*found, ((OTHERS,), float(rest))] if rest else found


def _model_families(copy: _Copy) -> Iterator[GaugeMetricFamily]:
    models = by_model(copy.columns, copy.words, copy.geometries)
    for row, values in (
        (gauges.MODEL_FREE_MEMORY, [m.memory * BYTES_PER_MIB for m in models]),
        (gauges.MODEL_STRANDED_MEMORY, [m.stranded_memory * BYTES_PER_MIB for m in models]),
        (gauges.MODEL_FREE_CORES, [m.cores for m in models]),
        (gauges.MODEL_STRANDED_CORES, [m.stranded_cores for m in models]),
        (gauges.MODEL_STRANDED_SLICES, [m.stranded_slices for m in models]),
    ):
        yield _family(row, [((m.model,), v) for m, v in zip(models, values, strict=True)])


def _mig_samples(copy: _Copy) -> list[tuple[Labels, float]]:
    """Each MIG instance that a pod has on a known device, once."""
    if not copy.columns.mig_mask.any():
        return []
    found: dict[str, tuple[str, MigReservation, MigInstance]] = {}
    for reservation in _shown(copy):
        allocation = reservation.allocation
        for part in allocation.mig_parts():
            if part.share.instance is not None:
                instance = part.share.instance
                found[instance.uuid] = allocation.node, part, instance
    index = {(name, d.uuid): d.index for name, _, devices in copy.devices for d in devices}
    return [
        (
            {
                "node": node,
                "device_uuid": part.uuid,
                "device_index": str(index.get((node, part.uuid), "")),
                "mig_uuid": uuid,
                "profile": part.share.profile,
                "gpu_instance_id": str(instance.gpu_instance),
                "compute_instance_id": str(instance.compute_instance),
                "placement_start": str(part.share.placement.start),
                "placement_size": str(part.share.placement.size),
                "mig_name": f"{part.share.profile}-{instance.gpu_instance}",
                "zone": ZONE,
            },
            1.0,
        )
        for uuid, (node, part, instance) in found.items()
    ]


def _quota_families(
    copy: _Copy, vendors: VendorTable, older: Iterable[Older]
) -> Iterator[GaugeMetricFamily]:
    used: list[tuple[Labels, float]] = []
    most: list[tuple[Labels, float]] = []
    for namespace, ceilings, use in copy.quotas:
        limits = {(c.vendor, c.kind): c.most for c in ceilings}
        for vendor in vendors.values():
            amount = use.get(vendor.name)
            for kind, name in resource_names(vendor):
                limit = limits.get((vendor.name, kind))
                labels = {"namespace": namespace, "quota_name": name, "zone": ZONE}
                if limit is not None:
                    most.append((labels, limit))
                if limit is not None or amount is not None:
                    value = 0 if amount is None else amount.of(kind)
                    used.append(({**labels, "limit": str(limit or 0)}, value))
    yield from _with_older(gauges.QUOTA_USED, used, older)
    yield from _with_older(gauges.QUOTA_LIMIT, most, older)


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


def _with_older(
    row: Metric, samples: list[tuple[Labels, float]], older: Iterable[Older]
) -> Iterator[GaugeMetricFamily]:
    """The gauge under its name and under those it had."""
    yield _family(row, [(tuple(labels[n] for n in row.labels), value) for labels, value in samples])
    for old in older:
        if old.of is row:
            names = [name for _, name in old.labels]
            yield _family(
                old.row, [(tuple(labels[n] for n in names), value) for labels, value in samples]
            )


def _family(row: Metric, samples: Samples) -> GaugeMetricFamily:
    family = GaugeMetricFamily(row.name, row.help, labels=row.labels)
    for labels, value in samples:
        family.add_metric([clean(label) for label in labels], value)
    return family
