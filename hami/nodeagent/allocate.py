"""What a container is given with its devices: environment and mounts. Pure.

The limits that count are in the region's control file, which the container can only read. The
variables tell users, and tools that look for them, the same figures; changing them changes nothing.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from hami.config import NodeAgentSettings, Settings
from hami.core.allocation import ContainerDevice
from hami.core.codec import parse_bool
from hami.core.device import DeviceUuid
from hami.core.objects import Container
from hami.core.quantity import BYTES_PER_MIB, parse_whole
from hami.core.vendor import Vendor
from hami.errors import AllocateError, CodecError, QuantityError

CONTAINER_DIR: Final = "/usr/local/vgpu"
"""Where the shim looks for its files inside a container."""
LIBRARY_PATH: Final = f"{CONTAINER_DIR}/libvgpu.so"
"""Where the shim is mounted. Loaded from here it grants no memory without readable limits."""
FAIL_OPEN_PATH: Final = f"{CONTAINER_DIR}/fail-open/libvgpu.so"
"""Where it is mounted if it is to lift the limits in that case; see ``place.c``."""
VISIBLE_ENV: Final = "NVIDIA_VISIBLE_DEVICES"
"""What the container runtime reads."""
PRELOAD_PATH: Final = "/etc/ld.so.preload"
REGION_ENV: Final = "HAMI_REGION_DIR"
"""Where the shim looks if nothing is mounted at the place above: outside of containers."""
DISABLE_ENV: Final = "CUDA_DISABLE_CONTROL"
DEFAULT_PRIORITY: Final = 1
MAX_PRIORITY: Final = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One file of the host inside the container."""

    host_path: str
    container_path: str
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Everything that comes with the devices."""

    envs: Mapping[str, str]
    mounts: tuple[Mount, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shim:
    """The library as it is installed on the host."""

    library: Path
    preload: Path
    """An ``ld.so.preload`` that names the library at its place inside containers."""
    inside: str = LIBRARY_PATH
    """That place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLimit:
    """What a container may use of one device."""

    uuid: DeviceUuid
    memory_bytes: int
    core_permille: int
    """0: no limit."""
    physical_bytes: int = 0
    """Memory that the device really has; 0: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a container may use: the content of its region's control file."""

    devices: tuple[DeviceLimit, ...]
    priority: int
    """0 is the highest."""
    policy: Literal["default", "force", "disable"]
    """When core limits apply."""
    weight: int = 0
    """Where a device is contended; 0: the usual one."""
    fail_open: bool = False
    """Whether usage that cannot be recorded lifts the limits."""
    oversubscribe: bool = False
    """Where device memory is short, managed memory may take its place."""


def grant(
    devices: Sequence[ContainerDevice],
    *,
    region: Path,
    shim: Shim,
    settings: NodeAgentSettings,
) -> Grant:
    """What a container gets whose limits the shim keeps.

    Args:
        devices: Its devices, in the order of the allocation.
        region: Host directory with its ``control`` and ``usage`` files.
        shim: What to preload.
        settings: Policies.
    """
    return Grant(
        envs=_environment(devices, region=region, settings=settings),
        mounts=_mounts(region, shim),
    )


def visible(devices: Sequence[ContainerDevice]) -> dict[str, str]:
    """The variable by which the container runtime gives a container its devices."""
    return {VISIBLE_ENV: ",".join(dict.fromkeys(device.uuid for device in devices))}


def limits(
    devices: Sequence[ContainerDevice],
    *,
    container: Container,
    vendor: Vendor,
    settings: Settings,
    weight: int = 0,
    physical: Mapping[DeviceUuid, int] | None = None,
) -> Limits:
    """What the region's control file says of the container.

    Args:
        devices: Its devices, in the order of the allocation.
        container: As its pod's author wrote it.
        vendor: Names the resource that says its priority.
        settings: Policies.
        weight: Where a device is contended; 0: the usual one.
        physical: Bytes that the devices really have, as far as that is known.
    """
    agent = settings.node_agent
    policy = "disable" if agent.disable_core_limit else settings.nvidia.core_policy
    return Limits(
        devices=tuple(
            DeviceLimit(
                uuid=device.uuid,
                memory_bytes=device.memory * BYTES_PER_MIB,
                core_permille=0 if device.cores >= 100 else device.cores * 10,
                physical_bytes=(physical or {}).get(device.uuid, 0),
            )
            for device in devices
        ),
        priority=_priority(container, vendor),
        policy=policy,
        weight=weight,
        fail_open=agent.fail_open,
        oversubscribe=agent.memory_scaling > 1,
    )


def check_mounts(container: Container) -> None:
    """Make sure that no volume of the container's own hides what is mounted for it.

    Container runtimes put volumes on top of a device plugin's mounts at the same place.

    Raises:
        AllocateError: One does; the message names it.
    """
    for mount in container.volume_mounts or ():
        path = PurePosixPath(posixpath.normpath("/" + mount.mount_path.lstrip("/")))
        if path.is_relative_to(CONTAINER_DIR) or path.is_relative_to(PRELOAD_PATH):
            raise AllocateError(
                f"a volume is mounted at {mount.mount_path[:80]}, where the limits of its devices "
                "are: mount it elsewhere"
            )


def enforced(container: Container, settings: NodeAgentSettings) -> bool:
    """Whether the shim is loaded: always, unless the site lets containers opt out and this does."""
    if not settings.allow_disable_control:
        return True
    values = [env.value for env in container.env or () if env.name == DISABLE_ENV]
    try:
        return not any(parse_bool(value) for value in values if value)
    except CodecError:
        return True


def _priority(container: Container, vendor: Vendor) -> int:
    """What the container asks for; one that asks for nothing, or for no number, goes second."""
    resources = container.resources
    wanted = ((resources.limits if resources else None) or {}).get(vendor.resources.priority)
    try:
        return DEFAULT_PRIORITY if wanted is None else parse_whole(wanted, maximum=MAX_PRIORITY)
    except QuantityError:
        return DEFAULT_PRIORITY


def _environment(
    devices: Sequence[ContainerDevice], *, region: Path, settings: NodeAgentSettings
) -> dict[str, str]:
    envs = {
        **visible(devices),
        "CUDA_DEVICE_SM_LIMIT": str(devices[0].cores),
        REGION_ENV: str(region),
    }
    for index, device in enumerate(devices):
        envs[f"CUDA_DEVICE_MEMORY_LIMIT_{index}"] = f"{device.memory}m"
    if settings.memory_scaling > 1:
        envs["CUDA_OVERSUBSCRIBE"] = "true"
    if settings.shim_log != "error":  # what the shim writes by itself
        envs["HAMI_SHIM_LOG"] = settings.shim_log
    if settings.disable_core_limit:
        envs["GPU_CORE_UTILIZATION_POLICY"] = "disable"
    return envs


def _mounts(region: Path, shim: Shim) -> tuple[Mount, ...]:
    files = [
        (region / "control", f"{CONTAINER_DIR}/control", True),
        (region / "usage", f"{CONTAINER_DIR}/usage", False),
        (shim.library, shim.inside, True),
        (shim.preload, PRELOAD_PATH, True),
    ]
    return tuple(
        Mount(host_path=str(host), container_path=inside, read_only=read_only)
        for host, inside, read_only in files
    )
