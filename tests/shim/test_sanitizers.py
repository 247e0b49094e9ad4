"""The C parts under the compiler's own lie detectors."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import native
from hami.nodeagent.controlfile import ControlFile
from hami.sandbox.gpu import catalogue
from tests.support import pacing
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


@pytest.mark.slow
def test_computing_time_has_no_data_race(compile_program: Compile) -> None:
    program = compile_program(
        "taker",
        *("-fsanitize=thread", "-g", f"-I{native.ROOT / native.SHIM}"),
        *(str(native.ROOT / native.SHIM / f"{name}.c") for name in ("bucket", "cost")),
    )

    done = subprocess.run(
        ["setarch", "--addr-no-randomize", program, "1", "8", "300"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split(", ")[1:] == ["0 violations", "0 unaccounted\n"]


RUNTIMES = {"address": "libasan.so", "undefined": "libubsan.so"}


def find_runtime(sanitizer: str) -> str:
    """The sanitizer's library: it must come before all others."""
    command = [*native.compiler(), f"-print-file-name={RUNTIMES[sanitizer]}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", RUNTIMES)
def test_pacing_is_clean_under(sanitizer: str, tmp_path: Path, compile_program: Compile) -> None:
    native.build(sanitizer)
    built = native.ROOT / "build" / sanitizer
    machine = Machine.create(tmp_path, [catalogue.get("t4")])
    machine.libraries = built / "hami/sandbox/gpu/lib"
    container = machine.container(None)
    environment = {
        **container.environment,
        "LD_PRELOAD": f"{find_runtime(sanitizer)}:{built / 'hami/shim/lib/libvgpu.so'}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
    }

    with ControlFile(container.directory) as control:
        pacing.pace(control, 80 * pacing.SECOND // 100)
        with Client(compile_program("pacer", "-pthread"), environment) as client:
            assert client.ask("init", 0) == (0,)
            assert client.ask("kernel", 200) == (0,)
            assert client.ask("threads", 8, 50) == (0,)
            assert client.ask("reset", 0) == (0,)
            assert client.ask("launch", 100) == (0,)
            assert client.ask("fork") == (0,)
            assert client.ask("init", 0) == (0,)
            assert client.ask("kernel", 200) == (0,)
            assert client.ask("launch", 100) == (0,)
            client.tell("end")
            assert client.answer() == (0,)
        with Client(compile_program("grapher", "-pthread"), environment) as client:
            assert client.ask("init", 0) == (0,)
            assert client.ask("kernel", 200) == (0,)
            assert client.ask("beside", 10) == (0,)
            assert client.ask("replay", 50) == (0,)
            assert client.ask("abandon") == (0,)
            assert client.ask("replay", 50) == (0,)


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
