"""A client that calls the driver's exported names by ctypes; prints what it met as JSON."""

from __future__ import annotations

import ctypes
import json

cuda = ctypes.CDLL("libcuda.so.1")
size_t, pointer = ctypes.c_size_t, ctypes.c_void_p


def check(result: int) -> None:
    assert result == 0, result


def memory() -> list[int]:
    free, total = size_t(), size_t()
    check(cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
    return [free.value, total.value]


check(cuda.cuInit(0))
context, whole = pointer(), size_t()
check(cuda.cuDeviceTotalMem_v2(ctypes.byref(whole), 0))
check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
check(cuda.cuCtxSetCurrent(context))
found = {"device_total": whole.value, "empty": memory()}

address, more = ctypes.c_uint64(), ctypes.c_uint64()
check(cuda.cuMemAlloc_v2(ctypes.byref(address), size_t(found["empty"][0])))
found["one_more"] = cuda.cuMemAlloc_v2(ctypes.byref(more), size_t(1))
found["full"] = memory()
check(cuda.cuMemFree_v2(address))
found["freed"] = memory()

module, function = pointer(), pointer()
check(cuda.cuModuleLoadData(ctypes.byref(module), b"hami-sim kernels\nwave 100\n"))
check(cuda.cuModuleGetFunction(ctypes.byref(function), module, b"wave"))
check(cuda.cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, None, None, None))
check(cuda.cuCtxSynchronize())
found["launched"] = True
print(json.dumps(found))
