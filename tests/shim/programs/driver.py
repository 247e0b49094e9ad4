"""The CUDA driver by ctypes, for scripts that tests run: `from driver import *`.

`cu` calls a function and demands success; `code` gives its result. Pointers that the driver hands
out come back as integers, other outputs through `by`.
"""

from __future__ import annotations

import ctypes
import threading
import time
from ctypes import byref as by
from ctypes import c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p

__all__ = [
    "Kernel",
    "by",
    "c_float",
    "c_int",
    "c_size_t",
    "c_uint",
    "c_uint64",
    "c_void_p",
    "code",
    "context",
    "ctypes",
    "cu",
    "elapsed",
    "event",
    "function",
    "in_thread",
    "launch",
    "library",
    "node",
    "record",
    "start",
    "stream",
    "threading",
    "time",
]

library = ctypes.CDLL("libcuda.so.1")
context = c_void_p()


class Kernel(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2."""

    _fields_ = (
        ("func", c_void_p),
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared", c_uint),
        ("parameters", c_void_p),
        ("extra", c_void_p),
        ("kern", c_void_p),
        ("ctx", c_void_p),
    )

    @classmethod
    def of(cls, handle: int, blocks: int = 1) -> Kernel:
        return cls(func=handle, grid=(blocks, 1, 1), block=(32, 1, 1))


def code(name: str, *arguments: object) -> int:
    """Call it; the result. Integers are passed as 64 bits, which suits handles and counts."""
    words = [c_uint64(word) if isinstance(word, int) else word for word in arguments]
    return int(getattr(library, name)(*words))


def cu(name: str, *arguments: object) -> None:
    result = code(name, *arguments)
    if result != 0:
        raise SystemExit(f"{name}: {result}")


def start(device: int = 0) -> None:
    """Initialise, with the device's primary context current."""
    cu("cuInit", 0)
    cu("cuDevicePrimaryCtxRetain", by(context), device)
    cu("cuCtxSetCurrent", context)


def made(name: str, *arguments: object) -> int:
    handle = c_void_p()
    cu(name, by(handle), *arguments)
    assert handle.value is not None
    return handle.value


def function(microseconds: float, name: str = "kernel") -> int:
    module = made("cuModuleLoadData", f"hami-sim kernels\n{name} {microseconds}\n".encode())
    return made("cuModuleGetFunction", module, name.encode())


def stream(flags: int = 1) -> int:
    return made("cuStreamCreate", flags)


def event(flags: int = 0) -> int:
    return made("cuEventCreate", flags)


def record(where: int = 0) -> int:
    """A new event, recorded in the stream."""
    new = event()
    cu("cuEventRecord", new, where)
    return new


def launch(handle: int, where: int = 0, blocks: int = 1, name: str = "cuLaunchKernel") -> int:
    return code(name, handle, blocks, 1, 1, 32, 1, 1, 0, where, None, None)


def elapsed(first: int, last: int) -> float:
    """Milliseconds between two events; waits for the last."""
    milliseconds = c_float()
    cu("cuEventSynchronize", last)
    cu("cuEventElapsedTime", by(milliseconds), first, last)
    return milliseconds.value


def node(graph: int, handle: int, *after: int, blocks: int = 1) -> int:
    """A new kernel node."""
    dependencies = (c_void_p * len(after))(*after)
    kernel = Kernel.of(handle, blocks)
    return made("cuGraphAddKernelNode_v2", graph, dependencies, len(after), by(kernel))


def in_thread(work: object) -> None:
    """Run it in another thread of the same context, to its end."""

    def run() -> None:
        cu("cuCtxSetCurrent", context)
        work()  # type: ignore[operator]

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
