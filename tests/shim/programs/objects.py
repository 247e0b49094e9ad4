"""objects.py: a client of the driver that makes, maps and shares memory; one order a line.

Answers each order with the driver's code and, where there is one, a number.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from ctypes import c_int, c_longlong, c_size_t, c_uint64, c_ulonglong, c_void_p

CUDA = ctypes.CDLL("libcuda.so.1")
DEVICE, HOST = 1, 2
MIB = 2**20


class Location(ctypes.Structure):
    _fields_ = (("type", c_int), ("id", c_int))


class Wanted(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", c_int),
        ("handle_types", c_int),
        ("location", Location),
        ("win32", c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class Described(ctypes.Structure):
    """CUDA_ARRAY3D_DESCRIPTOR."""

    _fields_ = (
        ("width", c_size_t),
        ("height", c_size_t),
        ("depth", c_size_t),
        ("format", c_int),
        ("channels", ctypes.c_uint),
        ("flags", ctypes.c_uint),
    )


class Described2(ctypes.Structure):
    """CUDA_ARRAY_DESCRIPTOR."""

    _fields_ = (
        ("width", c_size_t),
        ("height", c_size_t),
        ("format", c_int),
        ("channels", ctypes.c_uint),
    )


class Foreign(ctypes.Structure):
    """CUDA_EXTERNAL_MEMORY_HANDLE_DESC."""

    _fields_ = (
        ("type", c_int),
        ("handle", c_longlong * 2),
        ("size", c_ulonglong),
        ("flags", ctypes.c_uint),
        ("reserved", ctypes.c_uint * 16),
    )


class Access(ctypes.Structure):
    _fields_ = (("location", Location), ("flags", c_int))


def wanted(kind: int, ordinal: int, exportable: int) -> Wanted:
    return Wanted(1, exportable, Location(kind, ordinal))


def init(ordinal: int) -> tuple[int, ...]:
    context = c_void_p()
    result = CUDA.cuInit(0)
    result = result or CUDA.cuDevicePrimaryCtxRetain(ctypes.byref(context), ordinal)
    return (result or CUDA.cuCtxSetCurrent(context),)


def info() -> tuple[int, ...]:
    free, total = c_size_t(), c_size_t()
    result = CUDA.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    return result, free.value, total.value


def context(version: int = 2) -> tuple[int, ...]:
    made = c_void_p()
    if version == 2:
        result = CUDA.cuCtxCreate_v2(ctypes.byref(made), 0, 0)
    elif version == 3:
        result = CUDA.cuCtxCreate_v3(ctypes.byref(made), None, 0, 0, 0)
    else:
        result = CUDA.cuCtxCreate_v4(ctypes.byref(made), None, 0, 0)
    return result, made.value or 0


def destroy(made: int) -> tuple[int, ...]:
    return (CUDA.cuCtxDestroy_v2(c_void_p(made)),)


def primary() -> tuple[int, ...]:
    made = c_void_p()
    return CUDA.cuDevicePrimaryCtxRetain(ctypes.byref(made), 0), made.value or 0


def unprimary() -> tuple[int, ...]:
    return (CUDA.cuDevicePrimaryCtxRelease_v2(0),)


def reset() -> tuple[int, ...]:
    return (CUDA.cuDevicePrimaryCtxReset_v2(0),)


FLOAT = 0x20


def array(width: int, height: int, depth: int, flags: int = 0) -> tuple[int, ...]:
    made, described = c_void_p(), Described(width, height, depth, FLOAT, 4, flags)
    return CUDA.cuArray3DCreate_v2(ctypes.byref(made), ctypes.byref(described)), made.value or 0


def array2(width: int, height: int) -> tuple[int, ...]:
    made, described = c_void_p(), Described2(width, height, FLOAT, 4)
    return CUDA.cuArrayCreate_v2(ctypes.byref(made), ctypes.byref(described)), made.value or 0


def mipmap(width: int, height: int, levels: int) -> tuple[int, ...]:
    made, described = c_void_p(), Described(width, height, 0, FLOAT, 4, 0)
    result = CUDA.cuMipmappedArrayCreate(ctypes.byref(made), ctypes.byref(described), levels)
    return result, made.value or 0


def unarray(made: int) -> tuple[int, ...]:
    return (CUDA.cuArrayDestroy(c_void_p(made)),)


def unmipmap(made: int) -> tuple[int, ...]:
    return (CUDA.cuMipmappedArrayDestroy(c_void_p(made)),)


def foreign(size: int, claimed: int) -> tuple[int, ...]:
    """Import a file of so many bytes as memory of another interface, of so many as is claimed."""
    file = os.memfd_create("foreign")
    os.truncate(file, size)
    made, wanted = c_void_p(), Foreign(type=1, size=claimed)
    ctypes.memmove(ctypes.byref(wanted, Foreign.handle.offset), ctypes.byref(c_int(file)), 4)
    result = CUDA.cuImportExternalMemory(ctypes.byref(made), ctypes.byref(wanted))
    if result:
        os.close(file)
    return result, made.value or 0


def unforeign(made: int) -> tuple[int, ...]:
    return (CUDA.cuDestroyExternalMemory(c_void_p(made)),)


def crowd(rounds: int, threads: int) -> tuple[int, ...]:
    """Threads that retain and release the primary context at once."""

    def work() -> None:
        for _ in range(rounds):
            assert primary()[0] == 0
            assert unprimary() == (0,)

    together(work, threads)
    return (0,)


def together(work: Callable[[], None], threads: int) -> None:
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


class Process1(ctypes.Structure):
    """nvmlProcessInfo_v1_t."""

    _fields_ = (("pid", ctypes.c_uint), ("used", c_ulonglong))


class Process2(ctypes.Structure):
    """nvmlProcessInfo_v2_t, and of v3."""

    _fields_ = (*Process1._fields_, ("instances", ctypes.c_uint * 2))


def processes(version: int, room: int) -> tuple[int, ...]:
    """The count, and pid and bytes of each that found room."""
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    device, count = c_void_p(), ctypes.c_uint(room)
    nvml.nvmlInit_v2()
    nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device))
    suffix = f"_v{version}" if version > 1 else ""
    found = ((Process1 if version == 1 else Process2) * max(room, 1))()
    result = nvml[f"nvmlDeviceGetComputeRunningProcesses{suffix}"](
        device, ctypes.byref(count), found if room else None
    )
    told = [(one.pid, one.used) for one in found[: min(count.value, room)]]
    return result, count.value, *(number for one in told for number in one)


def alloc(size: int) -> tuple[int, ...]:
    address = c_uint64()
    return CUDA.cuMemAlloc_v2(ctypes.byref(address), c_size_t(size)), address.value


def await_alloc(size: int, seconds: int) -> tuple[int, ...]:
    """Ask until it is granted, or time is up; the numbers are the address and CLOCK_MONOTONIC."""
    deadline = time.monotonic() + seconds
    result, address = alloc(size)
    while result and time.monotonic() < deadline:
        time.sleep(0.001)
        result, address = alloc(size)
    return result, address, time.monotonic_ns()


def hide(header: int, slots: int, slot: int, row: int) -> tuple[int, ...]:
    """Write over the usage file of a container that nothing is used of its first device.

    The numbers are bytes before the slots, how many slots there are, and where in one the row is.
    """
    with open("/usr/local/vgpu/usage", "r+b") as usage:
        for number in range(slots):
            usage.seek(header + number * slot + row)
            usage.write(bytes(16))
    return (0,)


def free(address: int) -> tuple[int, ...]:
    return (CUDA.cuMemFree_v2(c_uint64(address)),)


def create(size: int, kind: int = DEVICE, ordinal: int = 0, exportable: int = 0) -> tuple[int, ...]:
    handle = c_uint64()
    properties = wanted(kind, ordinal, exportable)
    result = CUDA.cuMemCreate(
        ctypes.byref(handle), c_size_t(size), ctypes.byref(properties), c_ulonglong(0)
    )
    return result, handle.value


def release(handle: int) -> tuple[int, ...]:
    return (CUDA.cuMemRelease(c_uint64(handle)),)


def reserve(size: int) -> tuple[int, ...]:
    address = c_uint64()
    result = CUDA.cuMemAddressReserve(
        ctypes.byref(address), c_size_t(size), c_size_t(0), c_uint64(0), c_ulonglong(0)
    )
    return result, address.value


def unreserve(address: int, size: int) -> tuple[int, ...]:
    return (CUDA.cuMemAddressFree(c_uint64(address), c_size_t(size)),)


def map_(address: int, size: int, handle: int) -> tuple[int, ...]:
    return (
        CUDA.cuMemMap(
            c_uint64(address), c_size_t(size), c_size_t(0), c_uint64(handle), c_ulonglong(0)
        ),
    )


def unmap(address: int, size: int) -> tuple[int, ...]:
    return (CUDA.cuMemUnmap(c_uint64(address), c_size_t(size)),)


def allow(address: int, size: int) -> tuple[int, ...]:
    access = Access(Location(DEVICE, 0), 3)
    return (
        CUDA.cuMemSetAccess(c_uint64(address), c_size_t(size), ctypes.byref(access), c_size_t(1)),
    )


def retain(address: int) -> tuple[int, ...]:
    handle = c_uint64()
    return CUDA.cuMemRetainAllocationHandle(ctypes.byref(handle), c_void_p(address)), handle.value


def export(handle: int) -> tuple[int, ...]:
    """The number is of a file that stays open."""
    file = c_int()
    result = CUDA.cuMemExportToShareableHandle(
        ctypes.byref(file), c_uint64(handle), c_int(1), c_ulonglong(0)
    )
    return result, file.value


def import_(pid: int, file: int) -> tuple[int, ...]:
    """From another process's file, which is that process's number of it."""
    own = os.open(f"/proc/{pid}/fd/{file}", os.O_RDWR)
    handle = c_uint64()
    result = CUDA.cuMemImportFromShareableHandle(ctypes.byref(handle), c_void_p(own), c_int(1))
    os.close(own)
    return result, handle.value


def write(address: int, value: int) -> tuple[int, ...]:
    return (CUDA.cuMemcpyHtoD_v2(c_uint64(address), ctypes.byref(c_longlong(value)), c_size_t(8)),)


def read(address: int) -> tuple[int, ...]:
    value = c_longlong(-1)
    result = CUDA.cuMemcpyDtoH_v2(ctypes.byref(value), c_uint64(address), c_size_t(8))
    return result, value.value


def churn(rounds: int, threads: int) -> tuple[int, ...]:
    """Threads that create, map, retain, release and unmap; the number is of what was refused."""
    refused = [0]

    def work(seed: int) -> None:
        luck = random.Random(seed)
        _, context = 0, c_void_p()
        CUDA.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
        CUDA.cuCtxSetCurrent(context)
        for _ in range(rounds):
            size = luck.randrange(1, 5) * 2 * MIB
            result, handle = create(size)
            if result:
                refused[0] += 1
                continue
            if luck.random() < 0.3:
                assert release(handle) == (0,)
                continue
            _, address = reserve(size)
            assert map_(address, size, handle) == (0,)
            if luck.random() < 0.5:
                assert retain(address) == (0, handle)
                assert release(handle) == (0,)
            steps: list[Callable[[], tuple[int, ...]]] = [
                lambda handle=handle: release(handle),  # type: ignore[misc]  # bound now
                lambda address=address, size=size: unmap(address, size),  # type: ignore[misc]
            ]
            luck.shuffle(steps)
            assert [step() for step in steps] == [(0,), (0,)]
            assert unreserve(address, size) == (0,)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return 0, refused[0]


ORDERS: dict[str, Callable[..., tuple[int, ...]]] = {
    name.rstrip("_"): order
    for name, order in list(globals().items())
    if callable(order) and getattr(order, "__module__", "") == __name__ and name.islower()
}


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        order, *words = line.split()
        print(*ORDERS[order](*map(int, words)), flush=True)


if __name__ == "__main__":
    main()
