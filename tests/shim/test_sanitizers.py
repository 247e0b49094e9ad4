"""The C parts under the compiler's own lie detectors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import native
from hami.nodeagent.controlfile import ControlFile
from hami.nodeagent.region import Flag
from hami.sandbox.gpu import catalogue
from tests.support import pacing
from tests.support.gpu import MIB, OUT_OF_MEMORY, SANITIZER_OPTIONS, Client, Machine

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
        ["setarch", "--addr-no-randomize", program, "1", "8", "100", "held"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split(", ")[1:] == ["0 violations", "0 unaccounted\n"]


RUNTIMES = {"address": "libasan.so", "undefined": "libubsan.so", "thread": "libtsan.so"}
PRELOADABLE = ("address", "undefined")
"""Into programs that were built without: the third one must have seen every access."""
FORK_SAFE = ("undefined", "thread")
"""The first one's allocator may be locked for good in a child forked while other threads run."""
SUITES = [
    Path(__file__).with_name(f"test_{name}.py")
    for name in ("memory_limit", "pools", "vmm", "arrays", "contexts", "ownership", "concurrency")
]


def find_runtime(sanitizer: str) -> str:
    """The sanitizer's library: it must come before all others."""
    command = [*native.compiler(), f"-print-file-name={RUNTIMES[sanitizer]}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", PRELOADABLE)
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
@pytest.mark.parametrize("sanitizer", PRELOADABLE)
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
        **SANITIZER_OPTIONS,
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

    assert (racing.returncode, racing.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", PRELOADABLE)
def test_shim_can_be_preloaded_into_a_sanitized_program(
    sanitizer: str, machine: Machine, compile_program: Compile
) -> None:
    container = machine.container(100 * MIB)
    program = compile_program("client", "-pthread", f"-fsanitize={sanitizer}")
    environment = {
        "LD_PRELOAD": f"{find_runtime(sanitizer)}:{container.environment['LD_PRELOAD']}",
        **SANITIZER_OPTIONS,
    }

    with Client(program, {**container.environment, **environment}) as client:
        assert client.ask("init", 0) == (0,)
        assert client.ask("alloc", 100 * MIB)[0] == 0
        assert client.ask("alloc", 1)[0] == OUT_OF_MEMORY


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
@pytest.mark.parametrize("sanitizer", PRELOADABLE)
def test_suites_of_the_shim_are_clean_under(sanitizer: str, suite: Path) -> None:
    native.build(sanitizer)
    built = native.ROOT / "build" / sanitizer
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow"]
    if sanitizer not in FORK_SAFE:
        command += ["-k", "not forks_of_a_process_whose_threads_allocate"]
    done = subprocess.run(
        [*command, suite],
        env={
            **os.environ,
            "HAMI_TEST_SHIM": str(built / native.LIBRARY_OF_THE_SHIM.output),
            "HAMI_TEST_DRIVER": str((built / native.SIMULATED_CUDA.output).parent),
            "HAMI_TEST_LOADED_FIRST": find_runtime(sanitizer),
        },
        cwd=native.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", RUNTIMES)
def test_threads_and_look_ups_are_clean_under(
    sanitizer: str, machine: Machine, tmp_path: Path, compile_program: Compile
) -> None:
    native.build(sanitizer)
    built = native.ROOT / "build" / sanitizer
    machine.libraries = (built / native.SIMULATED_CUDA.output).parent
    container = machine.container(100 * MIB)
    library = built / native.LIBRARY_OF_THE_SHIM.output
    flags = (f"-fsanitize={sanitizer}", "-g")
    thunks = ("-shared", "-Wl,-Bsymbolic", "-fvisibility=default", "-Wl,-soname,libcuda.so.1")
    strange = compile_program("thunk_cuda", *thunks, output="libcuda.so.1").parent
    questions = [f"p2:cuMemAlloc:{version}:{flag}" for version in (2000, 3020) for flag in (0, 2)]
    routes = [f"{route}:cuMemAlloc_v2" for route in ("handle", "default", "next")]
    runs: tuple[tuple[str, list[str], dict[str, str]], ...] = (
        ("racer", ["4", "200", "1", "50"], {}),
        ("mapper", ["4", "100"], {}),
        ("forker", ["10"], {}),
        ("loader", ["--global", *routes, "p1:cuMemGetInfo:3020:0"], {}),
        ("loader", [*questions, "handle:cuInit"], {"LD_LIBRARY_PATH": str(strange)}),
    )

    for name, words, more in runs:
        if name == "forker" and sanitizer not in FORK_SAFE:
            continue
        linked = [str(machine.libraries / "libcuda.so.1")] if name == "mapper" else []
        program = compile_program(name, "-pthread", *flags, *linked)
        done = container.run(
            "setarch",
            "--addr-no-randomize",
            program,
            *words,
            env={
                "LD_PRELOAD": f"{find_runtime(sanitizer)}:{library}",
                **SANITIZER_OPTIONS,
                **more,
            },
        )
        assert (done.returncode, done.stderr) == (0, ""), name


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", PRELOADABLE)
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
