"""The gauges again under HAMi's older names, for dashboards that know only those.

A table from name to name and from label to label; values are the same. Off unless asked for:
``controller.legacy_metrics``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hami import metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class OldName:
    """What a gauge was called, and which of its labels it had under which names."""

    name: str
    labels: Mapping[str, str]


_DEVICE: Final = {
    "node": "nodeid",
    "device_uuid": "deviceuuid",
    "device_index": "deviceidx",
    "zone": "zone",
}
_TYPED: Final = {**_DEVICE, "device_type": "devicetype"}
_CORES: Final = {**_TYPED, "device_cores": "devicecores"}
_POD: Final = {
    "namespace": "podnamespace",
    "node": "nodename",
    "pod": "podname",
    "container_index": "containeridx",
    "device_uuid": "deviceuuid",
    "zone": "zone",
}
_QUOTA: Final = {
    "namespace": "quotanamespace",
    "quota_name": "quotaName",
    "limit": "limit",
    "zone": "zone",
}

OLD_NAMES: Final[Mapping[str, OldName]] = {
    metrics.GPU_MEMORY_LIMIT.name: OldName(name="GPUDeviceMemoryLimit", labels=_TYPED),
    metrics.GPU_CORE_LIMIT.name: OldName(name="GPUDeviceCoreLimit", labels=_TYPED),
    metrics.GPU_SHARED.name: OldName(name="GPUDeviceSharedNum", labels=_TYPED),
    metrics.GPU_CORE_ALLOCATED.name: OldName(name="GPUDeviceCoreAllocated", labels=_TYPED),
    metrics.GPU_MEMORY_ALLOCATED.name: OldName(name="GPUDeviceMemoryAllocated", labels=_CORES),
    metrics.NODE_GPU_OVERVIEW.name: OldName(
        name="nodeGPUOverview", labels={**_CORES, "device_memory_limit": "devicememorylimit"}
    ),
    metrics.NODE_GPU_MEMORY_RATIO.name: OldName(name="nodeGPUMemoryPercentage", labels=_DEVICE),
    metrics.QUOTA_USED.name: OldName(name="QuotaUsed", labels=_QUOTA),
    metrics.VGPU_MEMORY_ALLOCATED.name: OldName(name="vGPUMemoryAllocated", labels=_POD),
    metrics.VGPU_CORE_ALLOCATED.name: OldName(name="vGPUCoreAllocated", labels=_POD),
}


class OldNames(Collector):
    """Collects what another collector has, under the old names."""

    def __init__(
        self, of: Collector, *, wanted: Callable[[], bool], registry: CollectorRegistry
    ) -> None:
        self._of = of
        self._wanted = wanted
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering does not collect."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The gauges that had another name, where that is asked for."""
        for family in self._of.collect() if self._wanted() else ():
            old = OLD_NAMES.get(family.name)
            if old is not None:
                yield _renamed(family, old)


def _renamed(family: Metric, old: OldName) -> Metric:
    renamed = GaugeMetricFamily(
        old.name, f"Older name of {family.name}.", labels=tuple(old.labels.values())
    )
    for sample in family.samples:
        renamed.add_metric([sample.labels[label] for label in old.labels], sample.value)
    return renamed
