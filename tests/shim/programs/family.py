"""family.py METHOD BYTES: a process with a context and its children, each with a memory of its own.

The children are made by multiprocessing. Each says what it got; a forked one does not use what it
inherited.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import sys


def allocate(size: int) -> int:
    """The CUresult."""
    cuda = ctypes.CDLL("libcuda.so.1")
    context, address = ctypes.c_void_p(), ctypes.c_uint64()
    for result in (
        cuda.cuInit(0),
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0),
        cuda.cuCtxSetCurrent(context),
    ):
        assert result == 0
    return int(cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size)))


def main() -> None:
    method, size = sys.argv[1], int(sys.argv[2])
    print("parent", allocate(size))
    with multiprocessing.get_context(method).Pool(3, maxtasksperchild=1) as pool:
        for result in pool.map(allocate, [size] * 6, chunksize=1):
            print("child", result)


if __name__ == "__main__":
    main()
