"""A process that the suite runs, mostly under the shim: does one order and prints JSON lines.

python -m tests.gpu.worker info | fill | steps | hold MIB
python -m tests.gpu.worker addresses FILE
python -m tests.gpu.worker spin MICROSECONDS SECONDS eager|graph|streams
"""

from __future__ import annotations

import ctypes
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.gpu.cuda import SIMULATED, Cuda, CudaError, Kernel

MIB = 2**20
QUEUE_SECONDS = 0.05
"""Kernels are waited for after about so much of them."""
GRAPH_NODES = 10


def say(**found: Any) -> None:
    print(json.dumps(found), flush=True)


def info() -> None:
    """What CUDA and NVML say of the first device."""
    import pynvml

    cuda = Cuda()
    whole = ctypes.c_size_t()
    cuda.call("cuDeviceTotalMem_v2", ctypes.byref(whole), 0)
    free, total = cuda.memory()
    pynvml.nvmlInit()
    memory = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0))
    say(device_total=whole.value, total=total, free=free, nvml_total=int(memory.total),
        nvml_free=int(memory.free))  # fmt: skip


def fill() -> None:
    """Allocate all that is free, then one byte more."""
    cuda = Cuda()
    free, _ = cuda.memory()
    address = ctypes.c_uint64()
    size = ctypes.c_size_t
    filled = cuda.result("cuMemAlloc_v2", ctypes.byref(address), size(free))
    one_more = cuda.result("cuMemAlloc_v2", ctypes.byref(ctypes.c_uint64()), size(1))
    say(bytes=free, filled=filled, one_more=one_more, left=cuda.memory()[0])


def hold(mib: str) -> None:
    """Hold memory until the input ends."""
    Cuda().allocate(int(mib) * MIB)
    say(holds=int(mib) * MIB)
    sys.stdin.read()


def steps() -> None:
    """Take memory in one way after the other; after each the parent looks."""
    for name, code in _steps():
        say(step=name, result=code)
        sys.stdin.readline()


def _steps() -> Iterator[tuple[str, int]]:
    cuda = Cuda()
    address, pitch = ctypes.c_uint64(), ctypes.c_size_t()
    size = ctypes.c_size_t
    yield "a context", 0
    Kernel(cuda, 100).launch()
    yield "a module, and a launch", cuda.result("cuCtxSynchronize")
    small = [cuda.result("cuMemAlloc_v2", ctypes.byref(address), size(1000)) for _ in range(1000)]
    yield "1000 allocations of 1000 bytes", max(small)
    yield "100 MiB", cuda.result("cuMemAlloc_v2", ctypes.byref(address), size(100 * MIB))
    yield (
        "pitched, 1000 x 100 000 bytes",
        cuda.result("cuMemAllocPitch_v2", ctypes.byref(address), ctypes.byref(pitch),
                    size(1000), size(100_000), 4),
    )  # fmt: skip
    yield (
        "managed, 100 MiB, untouched",
        cuda.result("cuMemAllocManaged", ctypes.byref(address), size(100 * MIB), 1),
    )
    if cuda.has("cuMemAllocAsync"):
        code = cuda.result("cuMemAllocAsync", ctypes.byref(address), size(64 * MIB), None)
        cuda.call("cuCtxSynchronize")
        yield "64 MiB of the pool", code
        code = cuda.result("cuMemFreeAsync", address, None)
        cuda.call("cuCtxSynchronize")
        yield "given back to the pool", code
    array = ctypes.c_void_p()
    descriptor = (ctypes.c_uint64 * 2)(4096, 4096), (ctypes.c_uint32 * 2)(0x20, 1)
    if cuda.has("cuArrayCreate_v2"):
        packed = (ctypes.c_byte * 24).from_buffer_copy(bytes(descriptor[0]) + bytes(descriptor[1]))
        yield "an array of 64 MiB", cuda.result("cuArrayCreate_v2", ctypes.byref(array), packed)


class _DlInfo(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def addresses(file: str) -> None:
    """Whose function the driver gives out for each question of the file."""
    with open(file, encoding="utf-8") as opened:
        questions = json.load(opened)
    cuda = Cuda()
    dladdr = ctypes.CDLL(None).dladdr
    for symbol, version, flags in questions:
        function, status = ctypes.c_void_p(), ctypes.c_int()
        code = cuda.result(
            "cuGetProcAddress_v2", symbol.encode(), ctypes.byref(function), version,
            ctypes.c_uint64(flags), ctypes.byref(status),
        )  # fmt: skip
        where = _DlInfo()
        if function.value and not dladdr(function, ctypes.byref(where)):
            where = _DlInfo()
        exact = where.address == function.value
        say(
            code=code,
            library=(where.file or b"").decode().rpartition("/")[2],
            name=(where.symbol or b"").decode() if exact else "",
        )


def spin(microseconds: str, seconds: str, way: str) -> None:
    """Keep the device as busy as it can; says now and then how much work was done."""
    cuda = Cuda()
    kernel = Kernel(cuda, float(microseconds))
    once = _launcher(cuda, kernel, way)
    batch = max(1, round(QUEUE_SECONDS / (kernel.seconds * once.kernels)))
    say(kernel_seconds=kernel.seconds)
    events = [cuda.event(), cuda.event()]
    work = batch * once.kernels * kernel.seconds
    began = last = time.monotonic()
    for number in itertools.count():
        for _ in range(batch):
            once()
        cuda.call("cuEventRecord", events[number % 2], once.stream)
        if number == 0:
            continue
        cuda.call("cuEventSynchronize", events[(number - 1) % 2])  # the next batch waits already
        now = time.monotonic()
        say(began=last, ended=now, work_seconds=work)
        last = now
        if now - began >= float(seconds):
            break


class _Launcher:
    """Launches so many kernels at a call; ``stream`` is the one that ends last."""

    def __init__(
        self, launch: Callable[[], None], kernels: int, stream: ctypes.c_void_p | None
    ) -> None:
        self._launch, self.kernels, self.stream = launch, kernels, stream

    def __call__(self) -> None:
        self._launch()


def _launcher(cuda: Cuda, kernel: Kernel, way: str) -> _Launcher:
    if way == "eager":
        return _Launcher(kernel.launch, 1, None)
    first, second = cuda.stream(), cuda.stream()
    if way == "streams":

        def both() -> None:
            kernel.launch(first)
            kernel.launch(second)

        return _Launcher(both, 2, second)
    graph, exec_ = ctypes.c_void_p(), ctypes.c_void_p()
    cuda.call("cuStreamBeginCapture_v2", first, 2)
    for _ in range(GRAPH_NODES):
        kernel.launch(first)
    cuda.call("cuStreamEndCapture", first, ctypes.byref(graph))
    cuda.call("cuGraphInstantiateWithFlags", ctypes.byref(exec_), graph, ctypes.c_uint64(0))
    return _Launcher(lambda: cuda.call("cuGraphLaunch", exec_, first), GRAPH_NODES, first)


ORDERS: dict[str, Callable[..., None]] = {
    function.__name__: function for function in (info, fill, hold, steps, addresses, spin)
}


def main() -> int:
    order, *words = sys.argv[1:]
    try:
        ORDERS[order](*words)
    except CudaError as error:
        say(error=str(error), code=error.code, simulated=SIMULATED)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
