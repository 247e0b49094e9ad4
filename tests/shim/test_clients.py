"""Programs that people really use to reach the driver, under the shim on the simulated GPU.

Each comes to the hooks by another way: ctypes by exported names, cuda-bindings by
cuGetProcAddress, Numba by names with version and stream suffixes, pynvml through NVML.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hami.sandbox.gpu import node
from tests.support.gpu import MIB, OUT_OF_MEMORY, Client, Container, Machine

CLIENTS = Path(__file__).parent / "clients"
LIMIT = 3000 * MIB
NUMBA = {
    "NUMBA_CUDA_DRIVER": str(node.LIBRARY_DIR / "libcuda.so.1"),
    "NUMBA_CUDA_USE_NVIDIA_BINDING": "0",
}


def run(container: Container, name: str, environment: dict[str, str]) -> Any:
    done = container.run(sys.executable, "-P", CLIENTS / f"{name}.py", env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        pytest.param("with_ctypes", {}, id="ctypes"),
        pytest.param("with_bindings", {}, id="cuda-bindings"),
        pytest.param(
            "with_bindings", {"CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM": "1"},
            id="cuda-bindings with a stream for each thread",
        ),
        pytest.param("with_numba", NUMBA, id="numba"),
        pytest.param(
            "with_numba", {**NUMBA, "NUMBA_CUDA_PER_THREAD_DEFAULT_STREAM": "1"},
            id="numba with a stream for each thread",
        ),
    ],
)  # fmt: skip
def test_client_meets_the_limit_to_the_byte(
    machine: Machine, name: str, environment: dict[str, str]
) -> None:
    container = machine.container(LIMIT)

    found = run(container, name, environment)

    assert found == {
        "device_total": LIMIT,
        "empty": [LIMIT, LIMIT],
        "one_more": OUT_OF_MEMORY,
        "full": [0, LIMIT],
        "freed": [LIMIT, LIMIT],
        "launched": True,
    }


@pytest.mark.parametrize(
    ("name", "environment"),
    [("with_ctypes", {}), ("with_bindings", {}), ("with_numba", NUMBA)],
    ids=["ctypes", "cuda-bindings", "numba"],
)
def test_client_sees_the_whole_device_without_a_limit(
    machine: Machine, name: str, environment: dict[str, str]
) -> None:
    found = run(machine.container(None), name, environment)

    assert found["device_total"] == found["empty"][1] > 2**36
    assert found["one_more"] == OUT_OF_MEMORY


def test_nvml_says_what_the_limit_says(
    machine: Machine, start_client: Callable[..., Client]
) -> None:
    container = machine.container(LIMIT)
    start_client(container).alloc(1000 * MIB)

    found = run(container, "with_pynvml", {})

    expected = [LIMIT, 2000 * MIB, 1000 * MIB]
    assert found == {"uuid": machine.uuids[0], "memory": expected, "memory_v2": expected}


def test_client_is_charged_for_what_it_holds(machine: Machine) -> None:
    """By the region: the same whoever allocates."""
    container = machine.container(LIMIT)
    script = "from with_ctypes import *; check(cuda.cuMemAlloc_v2(ctypes.byref(address), " \
        "size_t(5)));import os; os.kill(os.getpid(), 9)"  # fmt: skip

    container.run(sys.executable, "-c", script, env={"PYTHONPATH": str(CLIENTS)})

    assert container.used_bytes() == 5
