"""The layout of a simulated node's state, as ``src/sim_node.h`` has it; a test compares the two."""

from __future__ import annotations

import ctypes
from typing import Final

MAX_GPUS: Final = 16
MAX_PROCESSES: Final = 4096
EVENTS: Final = 64
SAMPLES: Final = 4
POINTS: Final = 4096
FAULTS_BYTES: Final = 512


class Gpu(ctypes.LittleEndianStructure):
    """What a GPU is, and its memory."""

    _fields_ = (
        ("name", ctypes.c_char * 96),
        ("uuid", ctypes.c_char * 48),
        ("bus_id", ctypes.c_char * 16),
        ("pci_domain", ctypes.c_uint32),
        ("pci_bus", ctypes.c_uint32),
        ("pci_device", ctypes.c_uint32),
        ("pci_device_id", ctypes.c_uint32),
        ("pci_subsystem_id", ctypes.c_uint32),
        ("numa_node", ctypes.c_int32),
        ("capability_major", ctypes.c_uint32),
        ("capability_minor", ctypes.c_uint32),
        ("multiprocessors", ctypes.c_uint32),
        ("threads_per_multiprocessor", ctypes.c_uint32),
        ("architecture", ctypes.c_uint32),
        ("lost", ctypes.c_uint32),
        ("memory_bytes", ctypes.c_uint64),
        ("reserved_bytes", ctypes.c_uint64),
        ("used_bytes", ctypes.c_uint64),
        ("peak_bytes", ctypes.c_uint64),
        ("evicted_bytes", ctypes.c_uint64),
        ("moved_bytes", ctypes.c_uint64),
        ("reserved", ctypes.c_uint8 * 256),
    )


class Sample(ctypes.LittleEndianStructure):
    """Device time within one period."""

    _fields_ = (("period", ctypes.c_uint64), ("busy_ns", ctypes.c_uint64))


class Row(ctypes.LittleEndianStructure):
    """One process on one GPU."""

    _fields_ = (
        ("bytes", ctypes.c_uint64),
        ("busy_ns", ctypes.c_uint64),
        ("finish_ns", ctypes.c_uint64),
        ("sampled_ns", ctypes.c_uint64),
        ("samples", Sample * SAMPLES),
    )


class Clock(ctypes.LittleEndianStructure):
    """A GPU's time and virtual time."""

    _fields_ = (
        ("time_ns", ctypes.c_uint64),
        ("virtual_ns", ctypes.c_uint64),
        ("busy_ns", ctypes.c_uint64),
        ("sharers", ctypes.c_uint64),
    )


class Point(ctypes.LittleEndianStructure):
    """Where a GPU's pace changed."""

    _fields_ = (("time_ns", ctypes.c_uint64), ("virtual_ns", ctypes.c_uint64))


class Timeline(ctypes.LittleEndianStructure):
    """How a GPU's time is shared."""

    _fields_ = (
        ("current", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("period_end_ns", ctypes.c_uint64),
        ("sampled_ns", ctypes.c_uint64),
        ("reaped_ns", ctypes.c_uint64),
        ("clocks", Clock * 2),
        ("samples", Sample * SAMPLES),
        ("active", ctypes.c_uint64 * (MAX_PROCESSES // 64)),
        ("touched", ctypes.c_uint64 * (MAX_PROCESSES // 64)),
        ("point_count", ctypes.c_uint64),
        ("points", Point * POINTS),
    )


class Managed(ctypes.LittleEndianStructure):
    """struct sim_managed."""

    _fields_ = (
        ("total", ctypes.c_uint64 * 3),
        ("resident", ctypes.c_uint64 * 3),
    )


class Process(ctypes.LittleEndianStructure):
    """One process."""

    _fields_ = (
        ("token", ctypes.c_uint64),
        ("pid", ctypes.c_int32),
        ("host_pid", ctypes.c_int32),
        ("rows", Row * MAX_GPUS),
        ("managed", Managed * MAX_GPUS),
    )


class Event(ctypes.LittleEndianStructure):
    """One event that NVML reports."""

    _fields_ = (
        ("sequence", ctypes.c_uint64),
        ("gpu", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("type", ctypes.c_uint64),
        ("data", ctypes.c_uint64),
    )


class Node(ctypes.LittleEndianStructure):
    """The whole file."""

    _fields_ = (
        ("magic", ctypes.c_uint64),
        ("version", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("gpu_count", ctypes.c_uint32),
        ("cuda_version", ctypes.c_uint32),
        ("node_name", ctypes.c_char * 64),
        ("driver_version", ctypes.c_char * 32),
        ("context_bytes", ctypes.c_uint64),
        ("lock", ctypes.c_uint64),
        ("process_high", ctypes.c_uint32),
        ("exact_peaks", ctypes.c_uint32),
        ("last_event", ctypes.c_uint64),
        ("realtime_offset_ns", ctypes.c_int64),
        ("nvml_period_ns", ctypes.c_uint64),
        ("nvml_lag_ns", ctypes.c_uint64),
        ("nvml_delay_ns", ctypes.c_uint64),
        ("nvml_flags", ctypes.c_uint32),
        ("queue_depth", ctypes.c_uint32),
        ("faults_version", ctypes.c_uint32),
        ("reserved1", ctypes.c_uint32),
        ("pool_step_bytes", ctypes.c_uint64),
        ("reserved2", ctypes.c_uint8 * 48),
        ("faults", ctypes.c_char * FAULTS_BYTES),
        ("gpus", Gpu * MAX_GPUS),
        ("events", Event * EVENTS),
        ("timelines", Timeline * MAX_GPUS),
        ("processes", Process * MAX_PROCESSES),
    )
