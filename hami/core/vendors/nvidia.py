"""NVIDIA's row."""

from __future__ import annotations

from typing import Final

from hami.core.device import VendorName
from hami.core.vendor import EnvNames, ResourceNames, SelectionKeys, Vendor

NVIDIA: Final = Vendor(
    name=VendorName("NVIDIA"),
    resources=ResourceNames(
        count="nvidia.com/gpu",
        memory="nvidia.com/gpumem",
        memory_percentage="nvidia.com/gpumem-percentage",
        cores="nvidia.com/gpucores",
        priority="nvidia.com/priority",
    ),
    register_key="hami.io/node-nvidia-register",
    handshake_key="hami.io/node-handshake",
    to_allocate_key="hami.io/vgpu-devices-to-allocate",
    allocated_key="hami.io/vgpu-devices-allocated",
    mig_key="hami.io/vgpu-mig-allocations",
    pair_scores_key="hami.io/node-nvidia-score",
    selection_keys=SelectionKeys(
        use_type="nvidia.com/use-gputype",
        avoid_type="nvidia.com/nouse-gputype",
        use_uuid="nvidia.com/use-gpuuuid",
        avoid_uuid="nvidia.com/nouse-gpuuuid",
        mode="nvidia.com/vgpu-mode",
        numa_bind="nvidia.com/numa-bind",
    ),
    env=EnvNames(
        priority="CUDA_TASK_PRIORITY",
        core_policy="GPU_CORE_UTILIZATION_POLICY",
        visible_devices="NVIDIA_VISIBLE_DEVICES",
    ),
)
