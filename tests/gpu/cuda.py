"""The driver by ctypes, and kernels of a known size, for the suite's workers.

On a real driver a kernel is PTX, which the driver compiles: it counts so many steps on every SM. On
the simulated one a module is a text that says how long it takes.
"""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any, Final

SIMULATED: Final = bool(os.environ.get("HAMI_SIM_NODE"))
THREADS: Final = 256
_SM_COUNT: Final = 16
_PTX: Final = """.version 6.0
.target sm_50
.address_size 64
.visible .entry spin(.param .u64 steps, .param .u64 sink)
{
    .reg .pred %p<2>;
    .reg .b32 %r<2>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [steps];
    ld.param.u64 %rd2, [sink];
    cvta.to.global.u64 %rd4, %rd2;
    mov.u32 %r1, %tid.x;
    mov.u64 %rd3, 0;
AGAIN:
    setp.ge.u64 %p1, %rd3, %rd1;
    @%p1 bra DONE;
    mad.lo.u32 %r1, %r1, 1664525, 1013904223;
    add.u64 %rd3, %rd3, 1;
    bra.uni AGAIN;
DONE:
    st.global.u32 [%rd4], %r1;
    ret;
}
"""


class CudaError(Exception):
    """A call that failed; ``code`` is its CUresult."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name}: CUresult {code}")
        self.code = code


class Cuda:
    """The driver, with a primary context on the first device."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        self.context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), 0)
        self.call("cuCtxSetCurrent", self.context)

    def result(self, name: str, *arguments: Any) -> int:
        """The call's CUresult."""
        return int(getattr(self.library, name)(*arguments))

    def call(self, name: str, *arguments: Any) -> None:
        """The call; raises CudaError where it fails."""
        code = self.result(name, *arguments)
        if code != 0:
            raise CudaError(name, code)

    def has(self, name: str) -> bool:
        """Whether the driver exports the function."""
        return hasattr(self.library, name)

    def memory(self) -> tuple[int, int]:
        """Free and total, in bytes."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, size: int) -> ctypes.c_uint64:
        """Device memory; raises CudaError."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address

    def attribute(self, number: int) -> int:
        """A device attribute."""
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), number, 0)
        return value.value

    def stream(self) -> ctypes.c_void_p:
        """A stream that does not wait for the default one."""
        made = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(made), 1)
        return made

    def event(self) -> ctypes.c_void_p:
        """An event that takes no time."""
        made = ctypes.c_void_p()
        self.call("cuEventCreate", ctypes.byref(made), 2)
        return made


class Kernel:
    """A kernel that takes about so long on the idle device."""

    def __init__(self, cuda: Cuda, microseconds: float) -> None:
        self._cuda = cuda
        self._blocks = cuda.attribute(_SM_COUNT)
        self._function = ctypes.c_void_p()
        module = ctypes.c_void_p()
        image = f"hami-sim kernels\nspin {microseconds:.0f}\n" if SIMULATED else _PTX
        cuda.call("cuModuleLoadData", ctypes.byref(module), image.encode() + b"\0")
        cuda.call("cuModuleGetFunction", ctypes.byref(self._function), module, b"spin")
        self._steps = ctypes.c_uint64(1000)
        self._sink = cuda.allocate(4)
        values = (ctypes.addressof(self._steps), ctypes.addressof(self._sink))
        self._parameters = (ctypes.c_void_p * 2)(*values)
        self.seconds = microseconds / 1e6
        if not SIMULATED:
            self._calibrate(microseconds)

    def launch(self, stream: ctypes.c_void_p | None = None) -> None:
        """Queue one."""
        parameters = None if SIMULATED else self._parameters
        self._cuda.call(
            "cuLaunchKernel", self._function, self._blocks, 1, 1, THREADS, 1, 1, 0, stream,
            parameters, None,
        )  # fmt: skip

    def _calibrate(self, microseconds: float) -> None:
        """Find the number of steps, and the time that it really takes."""
        for _ in range(3):
            taken = self._measure()
            self._steps.value = max(1, round(self._steps.value * microseconds / 1e6 / taken))
        self.seconds = self._measure()

    def _measure(self) -> float:
        """Seconds of one kernel among many."""
        self.launch()
        self._cuda.call("cuCtxSynchronize")
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < 0.2:
            for _ in range(10):
                self.launch()
            count += 10
            self._cuda.call("cuCtxSynchronize")
        return (time.perf_counter() - began) / count
