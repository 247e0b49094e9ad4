"""A client of NVML alone, while another process of its container holds memory."""

from __future__ import annotations

import json

import pynvml

pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
second = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
print(
    json.dumps(
        {
            "uuid": pynvml.nvmlDeviceGetUUID(handle),
            "memory": [memory.total, memory.free, memory.used],
            "memory_v2": [second.total, second.free, second.used],
        }
    )
)
