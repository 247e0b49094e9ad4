"""The two files that a container shares with the node agent: made and read here.

The format is ``region_layout``'s; the rules by which the fields change are in ``docs/region.md``.
``control`` is written by this side alone. ``usage`` is writable by the container, so all that is
read from it is hostile input: it is read with pread, never mapped (a truncated mapping would kill
this process), and its counts are clamped.
Knows no pod, no Kubernetes and no NVML.
"""

from __future__ import annotations

import ctypes
import os
import struct
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Final

from hami.errors import CodecError
from hami.nodeagent import ownerword
from hami.nodeagent.region_layout import (
    ANONYMOUS_SLOT,
    CONTROL_MAGIC,
    MAX_DEVICES,
    MAX_SLOTS,
    UNLIMITED,
    USAGE_MAGIC,
    VERSION,
    Control,
    DeviceControl,
    Slot,
)
from hami.nodeagent.region_layout import Usage as Usage  # its size is part of the interface

CONTROL: Final = "control"
USAGE: Final = "usage"
BURST_NS: Final = 20_000_000
"""Device time that may be saved up: enough to bridge a waiting thread's late wake-up."""
CLAMP_BYTES: Final = 2**50
"""More than this of one device's memory is believed of no process."""
CLAMP_NS: Final = 2**58
"""Nor a time longer than nine years."""


class Policy(IntEnum):
    """When core limits apply."""

    DEFAULT = 0
    FORCE = 1
    DISABLE = 2


class CoreMode(IntEnum):
    """What the core limiter does on a device."""

    OFF = 0
    """Submissions go to the driver."""
    LIMIT = 1
    """Submissions are paced by the grant."""
    BLOCK = 2
    """Submissions wait; they are paced instead once the heartbeat has stopped."""
    SUSPEND = 3
    """Submissions wait until told otherwise."""


class Flag(IntFlag):
    """Switches of the control file."""

    NONE = 0
    FAIL_OPEN = 1
    """An unusable usage file lifts the limits instead of refusing memory."""
    OVERSUBSCRIBE = 2
    """Where device memory is short, managed memory may take its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionDevice:
    """What a container may use of one device."""

    uuid: str
    memory_limit_bytes: int | None = None
    """None: no limit. 0 is a limit like any other."""
    physical_bytes: int = 0
    """Memory of the whole device; 0: not known."""
    core_limit_permille: int = 0
    """0 or 1000: no limit."""
    untracked_bytes: int = 0
    """What the governor has measured beyond the processes' own word; of files that are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Whose region it is; for readers, the shim does not use it."""

    pod_uid: str = ""
    pod_namespace: str = ""
    pod_name: str = ""
    container_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUsage:
    """What one process uses of one device, as it says itself."""

    used_bytes: int = 0
    pending_bytes: int = 0
    """Asked of the driver at the moment of reading."""
    spent_ns: int = 0
    """Device time that it has debited since it began."""
    waited_ns: int = 0
    """Time that its threads have waited for device time."""
    context_bytes: int = 0
    """Of used_bytes, what was charged for contexts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessUse:
    """One process's slot."""

    slot: int
    """ANONYMOUS_SLOT: all processes that found no slot of their own, and no pid."""
    token: int
    """The owner word, for ``reclaim``."""
    pid: int
    """The owner's, in its own pid namespace."""
    pid_namespace: int
    """Inode number; 0: not known."""
    start_ticks: int
    host_pid: int
    last_submit_ns: int
    """CLOCK_MONOTONIC of about its last launch; 0: none."""
    devices: tuple[DeviceUsage, ...]
    """In the order of the control file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionUse:
    """One reading of a region."""

    devices: tuple[RegionDevice, ...]
    processes: tuple[ProcessUse, ...]

    def used_bytes(self, device: int) -> int:
        """What all processes say they use of the device at that index."""
        return sum(process.devices[device].used_bytes for process in self.processes)


def create(
    directory: Path,
    *,
    devices: Sequence[RegionDevice],
    owner: Owner | None = None,
    priority: int = 1,
    weight: int = 0,
    policy: Policy = Policy.DEFAULT,
    flags: Flag = Flag.NONE,
    usage_mode: int = 0o666,
    usage_uid: int = -1,
) -> None:
    """Write both files into an existing directory, each at once; replaces what was there.

    Args:
        directory: Holds ``control`` and ``usage`` afterwards.
        devices: In the order in which they are reported; at most MAX_DEVICES.
        owner: Whose region it is.
        priority: 0 is the highest.
        weight: Of the container's share where a device is contended; 0: the usual one.
        policy: When core limits apply.
        flags: See Flag.
        usage_mode: Permissions of the usage file: any user of the container writes it.
        usage_uid: Its owner; -1: this process's user.

    Raises:
        CodecError: A value does not fit its field.
        OSError: The files cannot be written; nothing half-written has their names.
    """
    control = _new_control(devices, owner or Owner(), priority=priority)
    if policy is not Policy.DISABLE:
        _pace_from_the_start(control)
    control.weight = in_range("weight", weight, 0, 2**31 - 1)
    control.policy, control.flags = int(policy), int(flags)
    usage = Usage(magic=USAGE_MAGIC, version=VERSION, size=ctypes.sizeof(Usage))
    usage.slot_count, usage.device_count = MAX_SLOTS, MAX_DEVICES
    _write(directory / USAGE, bytes(usage), mode=usage_mode, uid=usage_uid)
    _write(directory / CONTROL, bytes(control), mode=0o644, uid=-1)


def _new_control(devices: Sequence[RegionDevice], owner: Owner, *, priority: int) -> Control:
    if len(devices) > MAX_DEVICES:
        raise CodecError(
            f"control file: expected at most {MAX_DEVICES} devices, met {len(devices)}"
        )
    control = Control(
        magic=CONTROL_MAGIC,
        version=VERSION,
        size=ctypes.sizeof(Control),
        generation=1,
        device_count=len(devices),
        priority=in_range("priority", priority, 0, 2**31 - 1),
        pod_uid=_text("pod uid", owner.pod_uid, 64),
        pod_namespace=_text("namespace", owner.pod_namespace, 64),
        pod_name=_text("pod name", owner.pod_name, 256),
        container_name=_text("container name", owner.container_name, 64),
    )
    for index, device in enumerate(devices):
        control.devices[index] = DeviceControl(
            uuid=_text("device uuid", device.uuid, 96),
            memory_limit_bytes=limit_word(device.memory_limit_bytes),
            physical_bytes=in_range("physical bytes", device.physical_bytes, 0, 2**63),
            core_limit_permille=in_range("core limit", device.core_limit_permille, 0, 1000),
        )
    return control


def _pace_from_the_start(control: Control) -> None:
    """Hold limits of compute before any governor has seen the file, and without one."""
    for index, device in enumerate(control.devices[: control.device_count]):
        if 0 < device.core_limit_permille < 1000:
            device.core_mode, device.burst_ns = int(CoreMode.LIMIT), BURST_NS
            device.grants[0].since_ns = time.monotonic_ns()
            device.grants[0].rate_ns_per_second = device.core_limit_permille * 1_000_000
            control.pulse |= 1 << index


def limit_word(value: int | None) -> int:
    """A memory limit as the file has it. Raises CodecError."""
    return UNLIMITED if value is None else in_range("memory limit", value, 0, UNLIMITED - 1)


def in_range(name: str, value: int, low: int, high: int) -> int:
    """The value, if its field can hold it; raises CodecError else."""
    if not low <= value <= high:
        raise CodecError(f"control file: {name}: expected {low} to {high}, met {value}")
    return value


def _text(name: str, value: str, size: int) -> bytes:
    encoded = value.encode()
    if len(encoded) >= size or b"\0" in encoded:
        raise CodecError(f"control file: {name}: expected at most {size - 1} bytes, met {value!r}")
    return encoded


def _write(path: Path, content: bytes, *, mode: int, uid: int) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            os.posix_fallocate(handle, 0, len(content))  # a full disk fails here, not in a mapping
            file.write(content)
            os.fchmod(handle, mode)
            if uid != -1:
                os.fchown(handle, uid, -1)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_usage(directory: Path) -> RegionUse:
    """What the container's processes say they use, now.

    Torn by nothing worse than time: each counter is one load, two of them may be of two moments.

    Raises:
        CodecError: A file is foreign, of another version or cut short; names expected and met.
        OSError: A file cannot be read.
    """
    path = directory / CONTROL
    devices = devices_of(decode_control(path, path.read_bytes()))
    path = directory / USAGE
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        header = os.pread(handle, Usage.slots.offset, 0)
        check_header(path, header, magic=USAGE_MAGIC, size=ctypes.sizeof(Usage))
        active = Usage.from_buffer_copy(header.ljust(ctypes.sizeof(Usage), b"\0")).active
        slots = [slot for slot in range(MAX_SLOTS) if active[slot // 64] >> (slot % 64) & 1]
        processes = [_read_slot(path, handle, slot, devices) for slot in (*slots, ANONYMOUS_SLOT)]
    finally:
        os.close(handle)
    return RegionUse(
        devices=devices,
        processes=tuple(
            process
            for process in processes
            if process.token or any(use.used_bytes or use.pending_bytes for use in process.devices)
        ),
    )


def _read_slot(path: Path, handle: int, number: int, devices: Sequence[RegionDevice]) -> ProcessUse:
    size = ctypes.sizeof(Slot)
    content = os.pread(handle, size, Usage.slots.offset + number * size)
    if len(content) != size:
        raise CodecError(f"{path}: slot {number}: expected {size} bytes, met {len(content)}")
    slot = Slot.from_buffer_copy(content)
    return ProcessUse(
        slot=number,
        token=slot.owner,
        pid=ownerword.unpack(slot.owner).pid,
        pid_namespace=_namespace_of_owner(slot),
        start_ticks=slot.start_ticks,
        host_pid=slot.host_pid,
        last_submit_ns=min(slot.last_submit_ns, CLAMP_NS),
        devices=tuple(
            DeviceUsage(
                used_bytes=min(slot.rows[index].used_bytes, CLAMP_BYTES),
                pending_bytes=min(slot.rows[index].pending_bytes, CLAMP_BYTES),
                spent_ns=min(slot.rows[index].spent_ns, CLAMP_NS),
                waited_ns=min(slot.rows[index].waited_ns, CLAMP_NS),
                context_bytes=min(slot.rows[index].context_bytes, CLAMP_BYTES),
            )
            for index in range(len(devices))
        ),
    )


def _namespace_of_owner(slot: Slot) -> int:
    """The inode number whose low bits the owner word has; 0: not known.

    The slot's other fields may still speak of the owner before: a process that has just claimed the
    slot must not be taken for the dead one. A ``region-reclaim`` that was killed at its work is an
    owner too, and in our namespace.
    """
    bits = ownerword.unpack(slot.owner).namespace
    for namespace in (slot.pid_namespace, Path("/proc/self/ns/pid").stat().st_ino):
        if namespace & ownerword.NAMESPACE_MASK == bits:
            return int(namespace)
    return 0


def check_header(path: Path, content: bytes, *, magic: int, size: int) -> None:
    """Make sure that the file begins as it should; raises CodecError else."""
    if len(content) < 16:
        raise CodecError(f"{path}: expected {size} bytes, met {len(content)}")
    met_magic, met_version, met_size = struct.unpack_from("<QII", content)
    if met_magic != magic:
        raise CodecError(f"{path}: expected magic {magic:#x}, met {met_magic:#x}")
    if met_version != VERSION:
        raise CodecError(f"{path}: expected version {VERSION}, met {met_version}")
    if met_size != size:
        raise CodecError(f"{path}: expected size {size}, met {met_size}")


def decode_control(path: Path, content: bytes) -> Control:
    """The content of a control file, checked; raises CodecError."""
    check_header(path, content, magic=CONTROL_MAGIC, size=ctypes.sizeof(Control))
    if len(content) < ctypes.sizeof(Control):
        raise CodecError(f"{path}: expected {ctypes.sizeof(Control)} bytes, met {len(content)}")
    return Control.from_buffer_copy(content)


def devices_of(control: Control) -> tuple[RegionDevice, ...]:
    """Its devices as values."""
    return tuple(
        RegionDevice(
            uuid=device.uuid.decode(errors="replace"),
            memory_limit_bytes=None
            if device.memory_limit_bytes == UNLIMITED
            else device.memory_limit_bytes,
            physical_bytes=device.physical_bytes,
            core_limit_permille=device.core_limit_permille,
            untracked_bytes=device.untracked_bytes,
        )
        for device in control.devices[: min(control.device_count, MAX_DEVICES)]
    )
