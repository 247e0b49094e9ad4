"""A client on Numba's own ctypes binding of the driver; it looks names up with their versions."""

from __future__ import annotations

import ctypes
import json

import numpy
from numba import cuda
from numba.cuda.cudadrv import driver

assert not driver.USE_NV_BINDING
context = cuda.current_context()
info = context.get_memory_info()
found = {"device_total": info.total, "empty": list(info)}  # Numba asks for no other total

held = context.memalloc(found["empty"][0])
try:
    context.memalloc(1)
    found["one_more"] = 0
except driver.CudaAPIError as error:
    found["one_more"] = error.code
found["full"] = list(context.get_memory_info())
del held
context.deallocations.clear()
found["freed"] = list(context.get_memory_info())

array = numpy.arange(1000)
assert (cuda.to_device(array).copy_to_host() == array).all()

handle = ctypes.c_void_p()
image = b"hami-sim kernels\nwave 100\n"
driver.driver.cuModuleLoadDataEx(ctypes.byref(handle), image, 0, None, None)
function = driver.CtypesModule(context, handle, {}, None).get_function("wave")
stream = cuda.stream()
driver.launch_kernel(function.handle, 4, 1, 1, 32, 1, 1, 0, stream.handle, [])
stream.synchronize()
found["launched"] = True
print(json.dumps(found))
