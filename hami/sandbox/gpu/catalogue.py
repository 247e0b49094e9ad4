"""GPU models that a simulated node can have, with the figures of the real ones. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from hami.errors import SandboxError

MIB: Final = 2**20


class Architecture(IntEnum):
    """As NVML counts them."""

    VOLTA = 5
    TURING = 6
    AMPERE = 7
    ADA = 8
    HOPPER = 9
    BLACKWELL = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuModel:
    """One model."""

    key: str
    """How it is asked for, lower case."""
    product: str
    """NVML's product name."""
    memory_bytes: int
    """NVML's total."""
    reserved_bytes: int
    """What the driver keeps of it: CUDA's total is that much less."""
    sm_count: int
    threads_per_sm: int
    compute_capability: tuple[int, int]
    architecture: Architecture
    pci_device_id: int
    """Device id in the upper half, NVIDIA's vendor id in the lower, as NVML has it."""


def _model(
    key: str,
    product: str,
    *,
    memory_mib: int,
    reserved_mib: int,
    sms: int,
    threads: int,
    capability: tuple[int, int],
    architecture: Architecture,
    pci: int,
) -> GpuModel:
    return GpuModel(
        key=key,
        product=product,
        memory_bytes=memory_mib * MIB,
        reserved_bytes=reserved_mib * MIB,
        sm_count=sms,
        threads_per_sm=threads,
        compute_capability=capability,
        architecture=architecture,
        pci_device_id=pci << 16 | 0x10DE,
    )


_ALL: Final = (
    _model(
        "t4", "Tesla T4", memory_mib=15360, reserved_mib=444, sms=40, threads=1024,
        capability=(7, 5), architecture=Architecture.TURING, pci=0x1EB8,
    ),
    _model(
        "v100-16gb", "Tesla V100-SXM2-16GB", memory_mib=16384, reserved_mib=224, sms=80,
        threads=2048, capability=(7, 0), architecture=Architecture.VOLTA, pci=0x1DB1,
    ),
    _model(
        "v100-32gb", "Tesla V100-SXM2-32GB", memory_mib=32768, reserved_mib=266, sms=80,
        threads=2048, capability=(7, 0), architecture=Architecture.VOLTA, pci=0x1DB5,
    ),
    _model(
        "a10", "NVIDIA A10", memory_mib=23028, reserved_mib=300, sms=72, threads=1536,
        capability=(8, 6), architecture=Architecture.AMPERE, pci=0x2236,
    ),
    _model(
        "a100-40gb", "NVIDIA A100-SXM4-40GB", memory_mib=40960, reserved_mib=510, sms=108,
        threads=2048, capability=(8, 0), architecture=Architecture.AMPERE, pci=0x20B0,
    ),
    _model(
        "a100-80gb", "NVIDIA A100-SXM4-80GB", memory_mib=81920, reserved_mib=646, sms=108,
        threads=2048, capability=(8, 0), architecture=Architecture.AMPERE, pci=0x20B2,
    ),
    _model(
        "l40s", "NVIDIA L40S", memory_mib=46068, reserved_mib=600, sms=142, threads=1536,
        capability=(8, 9), architecture=Architecture.ADA, pci=0x26B9,
    ),
    _model(
        "h100-80gb", "NVIDIA H100 80GB HBM3", memory_mib=81559, reserved_mib=553, sms=132,
        threads=2048, capability=(9, 0), architecture=Architecture.HOPPER, pci=0x2330,
    ),
    _model(
        "h200", "NVIDIA H200", memory_mib=143771, reserved_mib=601, sms=132, threads=2048,
        capability=(9, 0), architecture=Architecture.HOPPER, pci=0x2335,
    ),
    _model(
        "b200", "NVIDIA B200", memory_mib=183359, reserved_mib=717, sms=148, threads=2048,
        capability=(10, 0), architecture=Architecture.BLACKWELL, pci=0x2901,
    ),
)  # fmt: skip

MODELS: Final = MappingProxyType({model.key: model for model in _ALL})

_ALIASES: Final = MappingProxyType({"v100": "v100-16gb", "a100": "a100-40gb", "h100": "h100-80gb"})


def get(name: str) -> GpuModel:
    """The model of that key, in any case; the product name and the bare series do as well.

    Raises:
        SandboxError: There is no such model; names those that there are.
    """
    key = _ALIASES.get(name.lower(), name.lower())
    for model in MODELS.values():
        if key in (model.key, model.product.lower()):
            return model
    raise SandboxError(f"GPU model: expected one of {', '.join(MODELS)}, met {name!r}")
