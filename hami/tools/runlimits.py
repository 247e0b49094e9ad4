"""From the options of ``hami run`` to the devices of a region. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from hami.core.device import Device
from hami.core.quantity import BYTES_PER_MIB, parse_quantity
from hami.errors import ConfigError, QuantityError
from hami.nodeagent.region import RegionDevice
from hami.tools import words

NO_CORE_LIMIT = (0, 100)
"""Percent that mean none."""


def devices(
    wanted: Sequence[str], present: Sequence[Device], *, memory: str | None, cores: int
) -> tuple[RegionDevice, ...]:
    """What may be used of which devices, in the order in which they were named.

    Args:
        wanted: Indices, UUIDs, or beginnings of them that only one device has.
        present: What the driver shows.
        memory: As the user wrote it; None: no limit.
        cores: Percent.

    Raises:
        ConfigError: There is no such device, or the limit is none that it can have.
    """
    chosen = [_find(name, present) for name in wanted]
    for device in chosen:
        if chosen.count(device) > 1:
            raise ConfigError(f"--gpu: {device.uuid} is named more than once")
    permille = 0 if cores in NO_CORE_LIMIT else cores * 10
    return tuple(
        RegionDevice(
            uuid=device.uuid,
            memory_limit_bytes=None if memory is None else _limit(memory, device),
            physical_bytes=device.memory * BYTES_PER_MIB,
            core_limit_permille=permille,
        )
        for device in chosen
    )


def _find(name: str, present: Sequence[Device]) -> Device:
    shown = ", ".join(f"{device.index} ({device.uuid})" for device in present) or "none"
    if name.isdecimal():
        found = [device for device in present if device.index == int(name)]
    else:
        found = [d for d in present if name and d.uuid.lower().startswith(name.lower())]
    if len(found) != 1:
        met = "no such device" if not found else f"{len(found)} that begin so"
        raise ConfigError(f"--gpu {name}: {met}; there are: {shown}")
    return found[0]


def _limit(text: str, device: Device) -> int:
    """Bytes."""
    whole = device.memory * BYTES_PER_MIB
    number, percent = text.removesuffix("%").strip(), text.endswith("%")
    try:
        value = parse_quantity(number)
    except QuantityError:
        raise ConfigError(
            f"--memory {text}: expected MiB such as 3000, a size such as 3Gi, or a part such as 25%"
        ) from None
    if percent:
        value = value * whole / 100
    elif _is_plain(number):
        value *= BYTES_PER_MIB
    if not 0 < value <= whole:
        raise ConfigError(
            f"--memory {text}: expected more than 0 and at most {words.mib(whole)}, which GPU "
            f"{device.index} ({device.model}) has"
        )
    return int(value)


def _is_plain(number: str) -> bool:
    """Whether it has no unit: then it counts MiB."""
    return number[-1:].isdigit() or number.endswith(".")
