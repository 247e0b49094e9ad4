"""What this node's devices and containers use, for Prometheus: a collector over the last reading.

``refresh`` reads regions and driver, ``collect`` prints what was read, from whatever thread. Only
containers of pods that exist are shown, so the labels are bounded by what the node can run. Names
and labels are the compatible ones (see ``hami.metrics``), the constant ``zone`` among them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Final

import anyio
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as MetricFamily
from prometheus_client.registry import Collector

from hami import metrics
from hami.core.objects import Pod
from hami.errors import DeviceError
from hami.kube.informer import Informer
from hami.logs import get_logger
from hami.metrics import Metric
from hami.nodeagent.governor import gauges
from hami.nodeagent.governor.loop import Governor
from hami.nodeagent.inventory import Inventory
from hami.nodeagent.nvml import DeviceUse, Nvml
from hami.nodeagent.regions import Regions
from hami.nodeagent.samples import ContainerSample

log = get_logger(__name__)

ZONE: Final = "vGPU"


class Exporter(Collector):
    """The measuring half of ``/metrics``."""

    def __init__(
        self,
        *,
        node_name: str,
        nvml: Nvml,
        inventory: Inventory,
        regions: Regions,
        pods: Informer[Pod],
        governor: Governor,
    ) -> None:
        self._node_name = node_name
        self._nvml = nvml
        self._inventory = inventory
        self._regions = regions
        self._pods = pods
        self._governor = governor
        self._use: tuple[DeviceUse, ...] = ()
        self._samples: tuple[ContainerSample, ...] = ()
        self._here: frozenset[str] = frozenset()
        self._turn = anyio.Lock()
        self._began = float("-inf")

    async def refresh(self) -> None:
        """Read everything anew; what cannot be read is left out of this scrape.

        Whoever asks while a reading is under way shares the next one with all who wait: anybody on
        the network may scrape, and Allocate needs the same files.
        """
        asked = time.monotonic()
        async with self._turn:
            if self._began < asked:
                self._began = time.monotonic()
                await self._read()

    async def _read(self) -> None:
        self._here = frozenset(pod.metadata.uid for pod in self._pods.list())
        try:
            self._use = await self._nvml.use()
        except DeviceError as error:
            self._use = ()
            log.warning("device_use_not_read", error=str(error))
        samples = await self._regions.samples({use.device.uuid: use for use in self._use})
        self._samples = tuple(sample for sample in samples if sample.claim.uid in self._here)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing: names are known only to ``collect``, which must not run at registration."""
        return ()

    def collect(self) -> Iterator[MetricFamily]:
        """The last reading."""
        yield self._health()
        yield from self._host()
        yield from self._containers()
        yield from gauges.families(self._governor, self._here, zone=ZONE)

    def _health(self) -> GaugeMetricFamily:
        healthy = sum(device.healthy for device in self._inventory.devices)
        family = _family(metrics.DEVICES, zone=False)
        family.add_metric(["healthy"], healthy)
        family.add_metric(["unhealthy"], len(self._inventory.devices) - healthy)
        return family

    def _host(self) -> Iterator[GaugeMetricFamily]:
        for row, values in (
            (metrics.HOST_MEMORY, [use.memory_used_bytes for use in self._use]),
            (metrics.HOST_UTILIZATION, [use.utilization_percent for use in self._use]),
            (metrics.HOST_MEMORY_UTILIZATION, [u.memory_utilization_percent for u in self._use]),
        ):
            family = _family(row)
            for use, value in zip(self._use, values, strict=True):
                if value is not None:
                    device = use.device
                    labels = [self._node_name, str(device.index), device.uuid, device.model]
                    family.add_metric([*labels, ZONE], value)
            yield family

    def _containers(self) -> Iterator[GaugeMetricFamily]:
        used = _family(metrics.CONTAINER_MEMORY)
        used_old = _family(metrics.CONTAINER_MEMORY_OLD)
        limit = _family(metrics.CONTAINER_LIMIT)
        enforcement = _family(metrics.CONTAINER_ENFORCEMENT)
        for sample in self._samples:
            claim = sample.claim
            whose = [claim.namespace, claim.pod, claim.container]
            enforcement.add_metric([*whose, claim.backend, ZONE], 1)
            for index, device in enumerate(sample.devices):
                labels = [*whose, str(index), device.uuid]
                used.add_metric([*labels, ZONE], device.used_bytes)
                used_old.add_metric([*labels, ZONE], device.used_bytes)
                if device.limit_bytes is not None:
                    limit.add_metric([*labels, ZONE], device.limit_bytes)
        yield from (used, used_old, limit, enforcement)


def _family(row: Metric, *, zone: bool = True) -> GaugeMetricFamily:
    return GaugeMetricFamily(
        row.name, row.help, labels=[*row.labels, "zone"] if zone else list(row.labels)
    )
