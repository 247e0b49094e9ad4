"""The gauges about devices, containers and quotas, under the names that HAMi's dashboards know.

Rows only, like ``hami.metrics``: the names, labels and units of HAMi's exporter, its older names
for the same, and what is our own about whole models. What they show is the exporter's to know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hami.metrics import Metric

_NODE_DEVICE: Final = ("node", "device_uuid", "device_index", "device_type", "zone")
_POD_DEVICE: Final = ("namespace", "node", "pod", "container_index", "device_uuid", "zone")

GPU_MEMORY_LIMIT: Final = Metric(
    name="hami_gpu_memory_limit_bytes",
    kind="gauge",
    help="Memory that a device offers.",
    labels=_NODE_DEVICE,
)
GPU_CORE_LIMIT: Final = Metric(
    name="hami_gpu_core_limit_ratio",
    kind="gauge",
    help="Compute that a device offers, in percent (the name is a compatible one).",
    labels=_NODE_DEVICE,
)
GPU_MEMORY_ALLOCATED: Final = Metric(
    name="hami_gpu_memory_allocated_bytes",
    kind="gauge",
    help="Memory of a device that is given to pods.",
    labels=(*_NODE_DEVICE, "device_cores"),
)
GPU_SHARED: Final = Metric(
    name="hami_gpu_shared_count",
    kind="gauge",
    help="Containers that share a device.",
    labels=_NODE_DEVICE,
)
GPU_CORE_ALLOCATED: Final = Metric(
    name="hami_gpu_core_allocated_ratio",
    kind="gauge",
    help="Compute of a device that is given to pods, in percent.",
    labels=_NODE_DEVICE,
)
NODE_GPU_OVERVIEW: Final = Metric(
    name="hami_node_gpu_overview",
    kind="gauge",
    help="Memory of a device that is given to pods, in bytes, with its limit (MiB) as a label.",
    labels=(*_NODE_DEVICE, "device_cores", "device_memory_limit"),
)
NODE_GPU_MEMORY_RATIO: Final = Metric(
    name="hami_node_gpu_memory_allocated_ratio",
    kind="gauge",
    help="Share of a device's memory that is given to pods, 0 to 1.",
    labels=_NODE_DEVICE,
)
VGPU_MEMORY_ALLOCATED: Final = Metric(
    name="hami_vgpu_memory_allocated_bytes",
    kind="gauge",
    help="Device memory given to a container.",
    labels=_POD_DEVICE,
)
VGPU_CORE_ALLOCATED: Final = Metric(
    name="hami_vgpu_core_allocated_ratio",
    kind="gauge",
    help="Device compute given to a container, in percent.",
    labels=_POD_DEVICE,
)
MIG_INSTANCE: Final = Metric(
    name="hami_node_gpu_mig_instance_info",
    kind="gauge",
    help="1 for each MIG instance that a pod has.",
    labels=(
        "node",
        "device_uuid",
        "device_index",
        "mig_uuid",
        "profile",
        "gpu_instance_id",
        "compute_instance_id",
        "placement_start",
        "placement_size",
        "zone",
    ),
)
QUOTA_USED: Final = Metric(
    name="hami_resource_quota_used",
    kind="gauge",
    help="What a namespace's pods have of a resource, in MiB or percent; limit 0 is no quota.",
    labels=("namespace", "quota_name", "limit", "zone"),
)
QUOTA_LIMIT: Final = Metric(
    name="hami_resource_quota_limit",
    kind="gauge",
    help="The tightest quota of a resource in a namespace, in MiB or percent.",
    labels=("namespace", "quota_name", "zone"),
)
BUILD: Final = Metric(
    name="hami_build_info",
    kind="gauge",
    help="Always 1; what runs is in the labels. What this build does not have is empty.",
    labels=("version", "revision", "build_date", "go_version", "compiler", "platform"),
)

# -- whole models: what is free, and what of it nobody can have ---------------------------------

_MODEL: Final = ("device_type",)

MODEL_FREE_MEMORY: Final = Metric(
    name="hami_model_free_memory_bytes",
    kind="gauge",
    help="Free memory of the usable shared devices of a model.",
    labels=_MODEL,
)
MODEL_STRANDED_MEMORY: Final = Metric(
    name="hami_model_stranded_memory_bytes",
    kind="gauge",
    help="The part of it on devices without a free slot or without free compute.",
    labels=_MODEL,
)
MODEL_FREE_CORES: Final = Metric(
    name="hami_model_free_cores",
    kind="gauge",
    help="Free compute of the usable shared devices of a model, in percent of a device.",
    labels=_MODEL,
)
MODEL_STRANDED_CORES: Final = Metric(
    name="hami_model_stranded_cores",
    kind="gauge",
    help="The part of it on devices without a free slot or without free memory.",
    labels=_MODEL,
)
MODEL_STRANDED_SLICES: Final = Metric(
    name="hami_model_stranded_mig_slices",
    kind="gauge",
    help="Free MIG slices of a model's usable devices that no profile can reach any more.",
    labels=_MODEL,
)


# -- older names --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Older:
    """An older name of a gauge, with what its labels were called."""

    name: str
    of: Metric
    labels: tuple[tuple[str, str], ...]
    """Older and present name of each."""

    @property
    def row(self) -> Metric:
        """The same as a row."""
        older = tuple(name for name, _ in self.labels)
        return Metric(name=self.name, kind="gauge", help=self.of.help, labels=older)


_ZONE: Final = ("zone", "zone")
_CARD: Final = (
    ("nodeid", "node"),
    ("deviceuuid", "device_uuid"),
    ("deviceidx", "device_index"),
    _ZONE,
)
_TYPED_CARD: Final = (*_CARD, ("devicetype", "device_type"))
_CORES: Final = ("devicecores", "device_cores")
_CONTAINER: Final = (
    ("podnamespace", "namespace"),
    ("nodename", "node"),
    ("podname", "pod"),
    ("containeridx", "container_index"),
    ("deviceuuid", "device_uuid"),
    _ZONE,
)

OLDER: Final = (
    Older(name="GPUDeviceMemoryLimit", of=GPU_MEMORY_LIMIT, labels=_TYPED_CARD),
    Older(name="GPUDeviceCoreLimit", of=GPU_CORE_LIMIT, labels=_TYPED_CARD),
    Older(name="GPUDeviceMemoryAllocated", of=GPU_MEMORY_ALLOCATED, labels=(*_TYPED_CARD, _CORES)),
    Older(name="GPUDeviceSharedNum", of=GPU_SHARED, labels=_TYPED_CARD),
    Older(name="GPUDeviceCoreAllocated", of=GPU_CORE_ALLOCATED, labels=_TYPED_CARD),
    Older(
        name="nodeGPUOverview",
        of=NODE_GPU_OVERVIEW,
        labels=(*_TYPED_CARD, _CORES, ("devicememorylimit", "device_memory_limit")),
    ),
    Older(name="nodeGPUMemoryPercentage", of=NODE_GPU_MEMORY_RATIO, labels=_CARD),
    Older(name="nodeGPUMigInstance", of=MIG_INSTANCE, labels=(*_CARD, ("migname", "mig_name"))),
    Older(
        name="QuotaUsed",
        of=QUOTA_USED,
        labels=(
            ("quotanamespace", "namespace"),
            ("quotaName", "quota_name"),
            ("limit", "limit"),
            _ZONE,
        ),
    ),
    Older(name="vGPUMemoryAllocated", of=VGPU_MEMORY_ALLOCATED, labels=_CONTAINER),
    Older(name="vGPUCoreAllocated", of=VGPU_CORE_ALLOCATED, labels=_CONTAINER),
)
"""Shown where ``controller.legacy_metrics`` says so."""
