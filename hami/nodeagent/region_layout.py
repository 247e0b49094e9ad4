"""The ctypes mirror of ``hami/shim/src/region.h``, the authority on the format. Nothing else.

``tests/shim`` compares both with ``hami/shim/src/region-layout.txt``.
"""

from __future__ import annotations

import ctypes
from typing import Final

MAX_DEVICES: Final = 16
MAX_SLOTS: Final = 1024
ANONYMOUS_SLOT: Final = MAX_SLOTS
UNLIMITED: Final = 2**64 - 1
VERSION: Final = 1
CONTROL_MAGIC: Final = int.from_bytes(b"HMCONTRL", "little")
USAGE_MAGIC: Final = int.from_bytes(b"HMIUSAGE", "little")


class Grant(ctypes.LittleEndianStructure):
    """struct hami_grant: device time granted so far, a line over CLOCK_MONOTONIC."""

    _fields_ = (
        ("granted_ns", ctypes.c_uint64),
        ("since_ns", ctypes.c_uint64),
        ("rate_ns_per_second", ctypes.c_uint64),
    )


class DeviceControl(ctypes.LittleEndianStructure):
    """struct hami_device_control."""

    _fields_ = (
        ("uuid", ctypes.c_char * 96),
        ("memory_limit_bytes", ctypes.c_uint64),
        ("physical_bytes", ctypes.c_uint64),
        ("untracked_bytes", ctypes.c_uint64),
        ("core_limit_permille", ctypes.c_uint32),
        ("core_mode", ctypes.c_uint32),
        ("context_bytes", ctypes.c_uint64),
        ("burst_ns", ctypes.c_uint64),
        ("grant_sequence", ctypes.c_uint32),
        ("reserved0", ctypes.c_uint32),
        ("grants", Grant * 2),
        ("reserved1", ctypes.c_uint8 * 56),
    )


class Control(ctypes.LittleEndianStructure):
    """struct hami_control: the whole control file."""

    _fields_ = (
        ("magic", ctypes.c_uint64),
        ("version", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("generation", ctypes.c_uint64),
        ("device_count", ctypes.c_uint32),
        ("priority", ctypes.c_int32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("pulse", ctypes.c_uint64),
        ("heartbeat_ns", ctypes.c_uint64),
        ("weight", ctypes.c_uint32),
        ("reserved0", ctypes.c_uint32),
        ("pod_uid", ctypes.c_char * 64),
        ("pod_namespace", ctypes.c_char * 64),
        ("pod_name", ctypes.c_char * 256),
        ("container_name", ctypes.c_char * 64),
        ("devices", DeviceControl * MAX_DEVICES),
        ("reserved1", ctypes.c_uint8 * 3584),
    )


class UsageRow(ctypes.LittleEndianStructure):
    """struct hami_usage_row: one device of one process."""

    _fields_ = (
        ("used_bytes", ctypes.c_uint64),
        ("pending_bytes", ctypes.c_uint64),
        ("spent_ns", ctypes.c_uint64),
        ("waited_ns", ctypes.c_uint64),
        ("context_bytes", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64 * 3),
    )


class Slot(ctypes.LittleEndianStructure):
    """struct hami_slot: one process."""

    _fields_ = (
        ("owner", ctypes.c_uint64),
        ("pid", ctypes.c_int32),
        ("host_pid", ctypes.c_int32),
        ("start_ticks", ctypes.c_uint64),
        ("pid_namespace", ctypes.c_uint32),
        ("reserved0", ctypes.c_uint32),
        ("last_submit_ns", ctypes.c_uint64),
        ("reserved1", ctypes.c_uint64 * 3),
        ("rows", UsageRow * MAX_DEVICES),
    )


class Bucket(ctypes.LittleEndianStructure):
    """struct hami_bucket: pacing state of one device."""

    _fields_ = (("debited_ns", ctypes.c_uint64), ("reserved", ctypes.c_uint64 * 7))


class Usage(ctypes.LittleEndianStructure):
    """struct hami_usage: the whole usage file."""

    _fields_ = (
        ("magic", ctypes.c_uint64),
        ("version", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("slot_count", ctypes.c_uint32),
        ("device_count", ctypes.c_uint32),
        ("reclaimed_ns", ctypes.c_uint64),
        ("active_words", ctypes.c_uint32),
        ("reserved0", ctypes.c_uint8 * 28),
        ("active", ctypes.c_uint64 * (MAX_SLOTS // 64)),
        ("reserved1", ctypes.c_uint8 * 64),
        ("buckets", Bucket * MAX_DEVICES),
        ("reserved2", ctypes.c_uint8 * 768),
        ("slots", Slot * (MAX_SLOTS + 1)),
    )
