"""A client on cuda-bindings' driver module, which asks cuGetProcAddress for all it calls."""

from __future__ import annotations

import json
from typing import Any

from cuda.bindings import driver


def check(answer: Any) -> Any:
    result, *values = answer
    assert result == driver.CUresult.CUDA_SUCCESS, result
    return values[0] if len(values) == 1 else values


check(driver.cuInit(0))
device = check(driver.cuDeviceGet(0))
check(driver.cuCtxSetCurrent(check(driver.cuDevicePrimaryCtxRetain(device))))
found = {
    "device_total": check(driver.cuDeviceTotalMem(device)),
    "empty": check(driver.cuMemGetInfo()),
}

address = check(driver.cuMemAlloc(found["empty"][0]))
found["one_more"] = int(driver.cuMemAlloc(1)[0])
found["full"] = check(driver.cuMemGetInfo())
check(driver.cuMemFree(address))
found["freed"] = check(driver.cuMemGetInfo())

module = check(driver.cuModuleLoadData(b"hami-sim kernels\nwave 100\n\0"))
function = check(driver.cuModuleGetFunction(module, b"wave"))
stream = check(driver.cuStreamCreate(0))
check(driver.cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, 0, 0))
check(driver.cuStreamSynchronize(stream))
found["launched"] = True
print(json.dumps(found))
