"""The C parts under the compiler's own lie detectors."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import native
from hami.nodeagent.region import Flag
from hami.sandbox.gpu import catalogue
from tests.support.gpu import MIB, OUT_OF_MEMORY, Client, Machine

Compile = Callable[..., Path]

POLICY = [
    native.ROOT / native.SHIM / f"{name}.c" for name in ("limits", "slots", "process", "pointers")
]


@pytest.mark.slow
def test_accounting_has_no_data_race_and_no_drift(compile_program: Compile) -> None:
    program = compile_program(
        "accounting",
        *("-fsanitize=thread", "-g", f"-I{native.ROOT / native.SHIM}"),
        *map(str, POLICY),
    )

    done = subprocess.run(
        ["setarch", "--addr-no-randomize", program, "4", "10000"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split(", ")[1:] == ["0 violations", "0 left", "0 charged\n"]


RUNTIMES = {"address": "libasan.so", "undefined": "libubsan.so"}


def find_runtime(sanitizer: str) -> str:
    """The sanitizer's library: it must come before all others."""
    command = [*native.compiler(), f"-print-file-name={RUNTIMES[sanitizer]}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", RUNTIMES)
def test_shim_and_driver_are_clean_under(
    sanitizer: str, tmp_path: Path, compile_program: Compile
) -> None:
    native.build(sanitizer)
    built = native.ROOT / "build" / sanitizer
    machine = Machine.create(tmp_path, [catalogue.get("t4")])
    machine.libraries = built / "hami/sandbox/gpu/lib"
    container = machine.container(100 * MIB)
    environment = {
        "LD_PRELOAD": f"{find_runtime(sanitizer)}:{built / 'hami/shim/lib/libvgpu.so'}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
    }

    with Client(
        compile_program("client", "-pthread"), {**container.environment, **environment}
    ) as client:
        assert client.ask("init", 0) == (0,)
        addresses = [client.alloc(MIB) for _ in range(100)]
        assert client.ask("alloc", 1)[0] == OUT_OF_MEMORY
        assert [client.ask("free", address) for address in addresses] == [(0,)] * 100
        assert client.ask("pitch", 1000, 1000)[0] == 0
        assert client.ask("threads", 16, MIB) == (0, 16)
        assert client.ask("nvml2", container.uuids[0])[0] == 0
        assert client.ask("reset") == (0,)
        client.tell("fork")
        assert client.ask("init", 0) == (0,)
        assert client.ask("alloc", MIB)[0] == 0
        assert client.ask("exit", 0) == (0,)
        assert client.ask("info")[0] == 0
    racing = container.run(
        compile_program("racer", "-pthread"), "4", "300", "1", "50", env=environment
    )
    forking = container.run(compile_program("forker", "-pthread"), "20", env=environment)

    assert (racing.returncode, racing.stderr) == (0, "")
    assert (forking.returncode, forking.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", RUNTIMES)
def test_shim_can_be_preloaded_into_a_sanitized_program(
    sanitizer: str, machine: Machine, compile_program: Compile
) -> None:
    container = machine.container(100 * MIB)
    program = compile_program("client", "-pthread", f"-fsanitize={sanitizer}")
    environment = {
        "LD_PRELOAD": f"{find_runtime(sanitizer)}:{container.environment['LD_PRELOAD']}",
        "ASAN_OPTIONS": "detect_leaks=0",
    }

    with Client(program, {**container.environment, **environment}) as client:
        assert client.ask("init", 0) == (0,)
        assert client.ask("alloc", 100 * MIB)[0] == 0
        assert client.ask("alloc", 1)[0] == OUT_OF_MEMORY


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", RUNTIMES)
def test_pools_graphs_and_managed_memory_are_clean_under(
    sanitizer: str, tmp_path: Path, compile_program: Compile
) -> None:
    native.build(sanitizer)
    built = native.ROOT / "build" / sanitizer
    machine = Machine.create(tmp_path, [catalogue.get("t4")])
    machine.libraries = built / "hami/sandbox/gpu/lib"
    container = machine.container(2**40, flags=Flag.OVERSUBSCRIBE, priority=0)
    environment = {
        "LD_PRELOAD": f"{find_runtime(sanitizer)}:{built / 'hami/shim/lib/libvgpu.so'}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
    }

    with Client(
        compile_program("pooler", "-pthread"), {**container.environment, **environment}
    ) as client:
        assert client.ask("init", 0) == (0,)
        _, pool = client.ask("create", 1, 0, 0)
        assert client.ask("race", 8, MIB, 100) == (0, 800)
        assert client.ask("loop", pool, MIB, 100) == (0, 100)
        assert client.ask("destroy", pool) == (0,)
        assert client.ask("graph") == (0,)
        for _ in range(50):
            assert client.ask("node-free", client.ask("node-alloc", MIB, 0, 0)[1]) == (0,)
        assert client.ask("wrap") == (0,)
        _, graph = client.ask("instantiate", 3, 0)
        assert [client.ask("launch", graph) for _ in range(3)] == [(0,)] * 3
        assert client.ask("drop", graph) == (0,)
        _, address = client.ask("alloc", 2**35)
        assert client.ask("is-managed", address) == (0, 1)
        assert client.ask("kernel", 1, 1)[0] == 0
        assert client.ask("free", address) == (0,)
        assert client.ask("reset") == (0,)
        assert client.ask("info")[0] == 0
