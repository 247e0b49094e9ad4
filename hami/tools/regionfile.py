"""What a region's files say, decoded without trust: any bytes give a report, never an error.

The format is that of ``hami.nodeagent.region_layout``; ``oddities`` judges what is found here. Pure
but for ``load``, which reads the files.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from hami.errors import ConfigError
from hami.nodeagent import ownerword, region
from hami.nodeagent.region_layout import (
    ANONYMOUS_SLOT,
    CONTROL_MAGIC,
    MAX_DEVICES,
    MAX_SLOTS,
    UNLIMITED,
    USAGE_MAGIC,
    Control,
    DeviceControl,
    Slot,
    Usage,
    UsageRow,
)

Kind = Literal["control", "usage"]
KINDS: Final[tuple[Kind, Kind]] = ("control", "usage")
NS_PER_SECOND: Final = 1_000_000_000
HEADER_BYTES: Final = 16
SIZES: Final[dict[str, int]] = {"control": ctypes.sizeof(Control), "usage": ctypes.sizeof(Usage)}
_MAGICS: Final[dict[int, Kind]] = {CONTROL_MAGIC: "control", USAGE_MAGIC: "usage"}
_POLICIES: Final = {policy.value: policy.name.lower() for policy in region.Policy}
_MODES: Final = {mode.value: mode.name.lower() for mode in region.CoreMode}
_WORD: Final = 2**64


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """How a file begins."""

    path: str
    bytes: int
    """Its length."""
    magic: str
    version: int
    size: int
    """What it says its length is."""


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    """One device of the control file."""

    index: int
    uuid: str
    memory_limit_bytes: int | None
    """None: no limit."""
    physical_bytes: int
    untracked_bytes: int
    context_bytes: int
    core_limit_permille: int
    core_mode: str
    granted_ns: int
    """Device time granted up to now."""
    rate_ns_per_second: int
    burst_ns: int


class ControlReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the control file says."""

    generation: int
    device_count: int
    priority: int
    weight: int
    policy: str
    flags: tuple[str, ...]
    pulse_mask: int
    ticks: int
    heartbeat_ns: int
    heartbeat_age_seconds: float | None
    """None: the governor never beat. Below 0: the clock is another machine's."""
    pod_uid: str
    pod_namespace: str
    pod_name: str
    container_name: str
    devices: tuple[DeviceReport, ...]


class RowReport(msgspec.Struct, frozen=True, kw_only=True):
    """One device of one process, or of all of them."""

    device: int
    used_bytes: int
    pending_bytes: int
    spent_ns: int
    waited_ns: int
    context_bytes: int
    """Of used_bytes."""


class SlotReport(msgspec.Struct, frozen=True, kw_only=True):
    """One slot that is in use, or holds what it should not."""

    slot: int
    anonymous: bool
    active: bool
    owner: int
    """The owner word; 0: nobody."""
    pid: int
    """The owner's, in its own pid namespace."""
    pid_namespace: int
    start_ticks: int
    host_pid: int
    last_submit_age_seconds: float | None
    state: str
    """``alive``, ``dead``, or ``unknown`` where this process cannot tell."""
    rows: tuple[RowReport, ...]
    """Of the devices that hold anything."""


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the usage file says."""

    slot_count: int
    device_count: int
    active_words: int
    active_slots: int
    slots: tuple[SlotReport, ...]
    sums: tuple[RowReport, ...]
    debited_ns: tuple[int, ...]
    """Device time taken so far, by device; as many as ``sums`` has."""


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file's bytes, and what it is taken for."""

    path: str
    kind: Kind
    content: bytes
    length: int
    """Of the file, which may be longer than what was read of it."""


def load(path: Path) -> list[File]:
    """The files of a region: those of a directory, or the one that is named.

    Raises:
        ConfigError: There is nothing to read, or it may not be read.
    """
    try:
        if not path.is_dir():
            return [_read(path, None)]
        found = [_read(path / kind, kind) for kind in KINDS if os.path.lexists(path / kind)]
    except OSError as error:
        raise ConfigError(f"region {path}: {error.strerror}") from error
    if not found:
        raise ConfigError(f"region {path}: expected a file 'control' or 'usage', met neither")
    return found


def _read(path: Path, kind: Kind | None) -> File:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        met = os.fstat(handle)
        if not stat.S_ISREG(met.st_mode):
            raise ConfigError(f"region {path}: expected a file, met something else")
        content = os.pread(handle, max(SIZES.values()), 0)
    finally:
        os.close(handle)
    magic = int.from_bytes(content[:8], "little")
    named: Kind = "usage" if path.name.startswith(region.USAGE) else "control"
    found = kind or _MAGICS.get(magic) or named
    return File(path=str(path), kind=found, content=content, length=met.st_size)


def header(file: File) -> Header:
    """How the file begins; what is not there counts as 0."""
    start = file.content[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0")
    return Header(
        path=file.path,
        bytes=file.length,
        magic=start[:8].decode("ascii", "backslashreplace"),
        version=int.from_bytes(start[8:12], "little"),
        size=int.from_bytes(start[12:16], "little"),
    )


def read_control(file: File, *, now_ns: int) -> ControlReport:
    """The control file's fields; missing ones are 0."""
    size = ctypes.sizeof(Control)
    control = Control.from_buffer_copy(file.content[:size].ljust(size, b"\0"))
    age = (now_ns - control.heartbeat_ns) / NS_PER_SECOND if control.heartbeat_ns else None
    return ControlReport(
        generation=control.generation,
        device_count=control.device_count,
        priority=control.priority,
        weight=control.weight,
        policy=_POLICIES.get(control.policy, f"unknown ({control.policy})"),
        flags=tuple(_flags(control.flags)),
        pulse_mask=control.pulse % (1 << MAX_DEVICES),
        ticks=control.pulse >> MAX_DEVICES,
        heartbeat_ns=control.heartbeat_ns,
        heartbeat_age_seconds=age,
        pod_uid=_text(control.pod_uid),
        pod_namespace=_text(control.pod_namespace),
        pod_name=_text(control.pod_name),
        container_name=_text(control.container_name),
        devices=tuple(
            _device(index, control.devices[index], now_ns)
            for index in range(min(control.device_count, MAX_DEVICES))
        ),
    )


def _device(index: int, device: DeviceControl, now_ns: int) -> DeviceReport:
    line = device.grants[device.grant_sequence % 2]
    since = max(now_ns - line.since_ns, 0)
    granted = line.granted_ns + since * line.rate_ns_per_second // NS_PER_SECOND
    limit = device.memory_limit_bytes
    return DeviceReport(
        index=index,
        uuid=_text(device.uuid),
        memory_limit_bytes=None if limit == UNLIMITED else limit,
        physical_bytes=device.physical_bytes,
        untracked_bytes=device.untracked_bytes,
        context_bytes=device.context_bytes,
        core_limit_permille=device.core_limit_permille,
        core_mode=_MODES.get(device.core_mode, f"unknown ({device.core_mode})"),
        granted_ns=granted % _WORD,
        rate_ns_per_second=line.rate_ns_per_second,
        burst_ns=device.burst_ns,
    )


def _flags(flags: int) -> Iterator[str]:
    for flag in region.Flag:
        if flags & flag:
            yield str(flag.name).lower()
            flags &= ~flag
    if flags:
        yield f"unknown ({flags:#x})"


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def read_usage(file: File, *, now_ns: int, devices: int | None = None) -> UsageReport:
    """The usage file's fields; missing ones are 0.

    Args:
        file: Its bytes.
        now_ns: CLOCK_MONOTONIC.
        devices: How many the control file lists; None: those that hold anything are shown.
    """
    size = ctypes.sizeof(Usage)
    usage = Usage.from_buffer_copy(file.content[:size].ljust(size, b"\0"))
    slots = tuple(
        found
        for number in range(MAX_SLOTS + 1)
        if (found := _slot(usage, number, now_ns=now_ns)) is not None
    )
    shown = _shown(slots, usage) if devices is None else min(devices, MAX_DEVICES)
    return UsageReport(
        slot_count=usage.slot_count,
        device_count=usage.device_count,
        active_words=usage.active_words,
        active_slots=sum(word.bit_count() for word in usage.active),
        slots=slots,
        sums=tuple(_sum(slots, device) for device in range(shown)),
        debited_ns=tuple(usage.buckets[device].debited_ns for device in range(shown)),
    )


def _shown(slots: tuple[SlotReport, ...], usage: Usage) -> int:
    """Devices up to the last one that holds anything."""
    rows = [row.device for slot in slots for row in slot.rows]
    taken = [device for device in range(MAX_DEVICES) if usage.buckets[device].debited_ns]
    return max([*rows, *taken], default=-1) + 1


def _slot(usage: Usage, number: int, *, now_ns: int) -> SlotReport | None:
    slot: Slot = usage.slots[number]
    anonymous = number == ANONYMOUS_SLOT
    if anonymous:
        active = bool(usage.active_words >> (MAX_SLOTS // 64) & 1)
    else:
        active = bool(usage.active[number // 64] >> (number % 64) & 1)
    rows = tuple(_rows(slot))
    if not (rows or slot.owner or (active and not anonymous)):
        return None
    last = slot.last_submit_ns
    return SlotReport(
        slot=number,
        anonymous=anonymous,
        active=active,
        owner=slot.owner,
        pid=ownerword.unpack(slot.owner).pid,
        pid_namespace=slot.pid_namespace,
        start_ticks=slot.start_ticks,
        host_pid=slot.host_pid,
        last_submit_age_seconds=(now_ns - last) / NS_PER_SECOND if last else None,
        state="unknown",
        rows=rows,
    )


def _rows(slot: Slot) -> Iterator[RowReport]:
    for device in range(MAX_DEVICES):
        row: UsageRow = slot.rows[device]
        if row.used_bytes or row.pending_bytes or row.spent_ns or row.waited_ns:
            yield RowReport(
                device=device,
                used_bytes=row.used_bytes,
                pending_bytes=row.pending_bytes,
                spent_ns=row.spent_ns,
                waited_ns=row.waited_ns,
                context_bytes=row.context_bytes,
            )


def _sum(slots: tuple[SlotReport, ...], device: int) -> RowReport:
    """Added up as the shim does: of active slots, and never past the end of a word."""
    rows = [
        row for slot in slots if slot.active for row in slot.rows if row.device == device
    ]  # fmt: skip
    return RowReport(
        device=device,
        used_bytes=min(sum(row.used_bytes for row in rows), _WORD - 1),
        pending_bytes=min(sum(row.pending_bytes for row in rows), _WORD - 1),
        spent_ns=min(sum(row.spent_ns for row in rows), _WORD - 1),
        waited_ns=min(sum(row.waited_ns for row in rows), _WORD - 1),
        context_bytes=min(sum(row.context_bytes for row in rows), _WORD - 1),
    )
