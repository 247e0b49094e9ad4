"""Which backend a container gets: the table of all, and the rule. Pure.

Whoever has every one of its devices to itself needs no shim, and gets none: nothing then stands
between the program and the driver, NVLink and peer access included. But a container that names
visible devices by itself could see more than it was given, and only the shim keeps it from those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from hami.config import NodeAgentSettings
from hami.core.allocation import ContainerDevice
from hami.core.codec_enforcement import NONE, SHIM
from hami.core.device import MODE_SHARED, Device, DeviceUuid
from hami.core.objects import Container
from hami.nodeagent import allocate
from hami.nodeagent.enforcement.contract import Backend
from hami.nodeagent.enforcement.none import NoneBackend
from hami.nodeagent.enforcement.shim import ShimBackend

BACKENDS: Final[Mapping[str, Backend]] = MappingProxyType(
    {backend.name: backend for backend in (ShimBackend(), NoneBackend())}
)
"""Every backend by its name."""


def choose(
    devices: Sequence[ContainerDevice],
    container: Container,
    settings: NodeAgentSettings,
    *,
    offered: Mapping[DeviceUuid, Device],
    wanted: str = "",
) -> str:
    """The name of the container's backend.

    Args:
        devices: What it was given.
        container: As its pod's author wrote it.
        settings: What the site allows.
        offered: This node's devices.
        wanted: What its pod asks for; a name that is unknown or not allowed counts as none.
    """
    if wanted == SHIM:
        return SHIM
    if settings.allow_disable_control and wanted == NONE:
        return NONE
    if not allocate.enforced(container, settings):
        return NONE
    whole = is_whole(devices, settings, offered=offered)
    return NONE if whole and not _names_devices(container) else SHIM


def is_whole(
    devices: Sequence[ContainerDevice],
    settings: NodeAgentSettings,
    *,
    offered: Mapping[DeviceUuid, Device],
) -> bool:
    """Whether every device is the container's alone, with all of its real memory."""
    if settings.memory_scaling > 1:
        return False  # there is more on offer than the device has: the shim makes up for it
    return all(
        (there := offered.get(device.uuid)) is not None
        and there.mode == MODE_SHARED
        and device.memory >= there.memory
        and (device.cores >= there.cores or there.slots == 1)
        for device in devices
    )


def _names_devices(container: Container) -> bool:
    """Whether it says itself which devices it sees, or may: the kubelet lets its words win."""
    named = any(env.name == allocate.VISIBLE_ENV for env in container.env or ())
    return named or bool(container.env_from)
