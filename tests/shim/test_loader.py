"""Every way to a symbol ends where it should, and nobody else notices the shim."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import native
from hami.nodeagent import region
from tests.support.gpu import MIB, OUT_OF_MEMORY, ROOT, SHIM, Container, Machine

Compile = Callable[..., Path]

SHARED = ("-shared", "-Wl,-Bsymbolic", "-fvisibility=default")
LIMIT = 300 * MIB
EXPORTS = (Path(__file__).parent / "exports.txt").read_text().split()
HOOKS = [name for name in EXPORTS if name not in ("dlsym", "dlvsym")]
SIMULATED = set(
    re.findall(
        r"^SIM_FUNCTION\(.*?, (cu\w+), \(",
        (native.ROOT / native.GPU / "sim_driver.def").read_text(),
        re.M,
    )
)
IN_THE_SIMULATOR = [name for name in HOOKS if name in SIMULATED or name.startswith("nvml")]


@pytest.fixture
def container(machine: Machine) -> Container:
    return machine.container(LIMIT)


def ask(
    loader: Path, container: Container, *queries: str, env: Mapping[str, str] | None = None
) -> list[str]:
    done = container.run(loader, *queries, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def nm(library: Path) -> list[str]:
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
    ).stdout
    return sorted(line.split()[-1] for line in listed.splitlines())


def test_exported_symbols_are_the_committed_ones() -> None:
    assert nm(SHIM) == sorted(EXPORTS)


def test_every_hook_is_a_row_of_the_table() -> None:
    rows = re.findall(
        r"^HAMI_HOOK\(\w+, (\w+),", (ROOT / native.SHIM / "hooks.def").read_text(), re.M
    )

    assert sorted(rows) == sorted(HOOKS)


@pytest.mark.parametrize("output", [target.output for target in native.TARGETS])
def test_nothing_but_libc_is_needed(output: str) -> None:
    listed = subprocess.run(
        ["readelf", "-d", ROOT / output], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"NEEDED.*\[(.*)\]", listed)

    assert set(needed) <= {"libc.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-x86-64.so.2"}


def test_program_linked_with_the_driver_is_limited(
    container: Container, machine: Machine, compile_program: Compile
) -> None:
    driver = str(machine.libraries / "libcuda.so.1")
    program = compile_program("linked", driver)

    for size, result in ((LIMIT, 0), (LIMIT + 1, OUT_OF_MEMORY)):
        assert container.run(program, str(size)).stdout.split() == [str(LIMIT), str(result)]


@pytest.mark.parametrize("route", ["handle:{}", "default:{}", "next:{}"])
def test_dlsym_gives_the_hook_where_the_driver_has_the_function(
    container: Container, compile_program: Compile, route: str
) -> None:
    loader = compile_program("loader")
    cuda = [name for name in IN_THE_SIMULATOR if name.startswith("cu")]
    nvml = [name for name in IN_THE_SIMULATOR if name.startswith("nvml")]

    answers = ask(loader, container, "--global", *(route.format(name) for name in cuda))
    assert answers == ["libvgpu.so"] * len(cuda)

    answers = ask(
        loader,
        container,
        *("--global", "--library", "libnvidia-ml.so.1"),
        *(route.format(name) for name in nvml),
    )
    assert answers == ["libvgpu.so"] * len(nvml)


def test_dlvsym_gives_the_hook_for_a_version_that_the_driver_has(
    container: Container, compile_program: Compile
) -> None:
    script = Path(__file__).parent / "programs" / "versioned.map"
    flags = (*SHARED, "-Wl,-soname,libcuda.so.1", f"-Wl,--version-script={script}")
    driver = compile_program("fake_cuda", *flags, output="libcuda.so.1")

    answers = ask(
        compile_program("loader"),
        container,
        *("vsym:cuMemAlloc_v2:FAKE_1", "vsym:cuMemAlloc_v2:FAKE_2", "vsym:cuInit:FAKE_1"),
        env={"LD_LIBRARY_PATH": str(driver.parent)},
    )

    assert answers == ["libvgpu.so", "none error", "libcuda.so.1"]


@pytest.mark.parametrize("route", ["handle", "default", "next"])
def test_function_that_the_driver_lacks_stays_missing(
    container: Container, compile_program: Compile, route: str
) -> None:
    queries = [
        f"{route}:{name}" for name in ("cuMemAlloc", "cuMemFree", "cuGetProcAddress_v2_ptsz")
    ]

    answers = ask(compile_program("loader"), container, "--global", *queries)

    assert answers == ["none error"] * len(queries)


def test_function_that_is_not_hooked_is_the_drivers(
    container: Container, compile_program: Compile
) -> None:
    names = ("cuInit", "cuCtxSetCurrent", "cuMemHostAlloc", "cuCtxGetDevice")

    answers = ask(compile_program("loader"), container, *(f"handle:{name}" for name in names))

    assert answers == ["libcuda.so.1"] * len(names)


def test_hooked_name_in_another_library_is_left_alone(
    container: Container, compile_program: Compile
) -> None:
    other = compile_program("fake_cuda", *SHARED, output="libother.so")

    answers = ask(
        compile_program("loader"),
        container,
        *("--library", str(other), "handle:cuMemAlloc_v2", "handle:cuMemFree_v2"),
    )

    assert answers == ["libother.so", "libother.so"]


@pytest.mark.parametrize("flags", [0, 1, 2])
def test_proc_address_gives_the_hook_for_the_form_that_the_driver_chose(
    container: Container, compile_program: Compile, flags: int
) -> None:
    queries = (
        f"p2:cuMemAlloc:3020:{flags}",
        f"p2:cuMemAlloc:12080:{flags}",
        f"p2:cuMemAllocManaged:6000:{flags}",
        f"p2:cuMemGetInfo:12000:{flags}",
        f"p2:cuGetProcAddress:11030:{flags}",
        f"p2:cuGetProcAddress:12000:{flags}",
        f"p2:cuLaunchKernel:7000:{flags}",
        f"p2:cuCtxSetCurrent:4000:{flags}",
    )

    answers = ask(compile_program("loader"), container, *queries)

    assert answers == ["0 0 libvgpu.so"] * 7 + ["0 0 libcuda.so.1"]


def test_status_of_proc_address_is_the_drivers(
    container: Container, compile_program: Compile
) -> None:
    queries = ("p2:cuMemAlloc:2000:0", "p2:cuNothing:12000:0", "p2:cuMemAlloc:3020:7")

    answers = ask(compile_program("loader"), container, *queries)

    assert answers == ["0 2 none", "0 1 none", "1 -1 none"]
    assert ask(compile_program("loader"), container, "p1:cuNothing:12000:0") == ["500 none"]


def test_proc_address_of_itself_is_the_form_of_the_version(
    container: Container, compile_program: Compile
) -> None:
    queries = ("p2:cuGetProcAddress:11030:0", "p1:cuGetProcAddress:12000:0")

    answers = ask(compile_program("loader"), container, "--names", *queries)

    assert answers == ["0 0 libvgpu.so:cuGetProcAddress", "0 libvgpu.so:cuGetProcAddress_v2"]


def test_both_forms_of_proc_address_lead_to_hooks(
    container: Container, compile_program: Compile
) -> None:
    assert ask(compile_program("loader"), container, "p1:cuMemAlloc:3020:0") == ["0 libvgpu.so"]


@pytest.mark.parametrize(
    ("query", "form"),
    [
        ("cuMemAlloc:2000:0", "cuMemAlloc"),
        ("cuMemAlloc:3019:2", "cuMemAlloc"),
        ("cuMemAlloc:3020:0", "cuMemAlloc_v2"),
        ("cuMemAlloc:13000:1", "cuMemAlloc_v2"),
        ("cuMemAlloc:3020:2", "cuMemAlloc_v2"),
        ("cuGetProcAddress:11030:0", "cuGetProcAddress"),
        ("cuGetProcAddress:11030:2", "cuGetProcAddress"),
        ("cuGetProcAddress:12000:0", "cuGetProcAddress_v2"),
        ("cuGetProcAddress:12000:1", "cuGetProcAddress_v2"),
        ("cuGetProcAddress:13000:2", "cuGetProcAddress_v2_ptsz"),
    ],
)
def test_driver_that_gives_out_thunks_is_understood(
    container: Container, compile_program: Compile, query: str, form: str
) -> None:
    flags = (*SHARED, "-Wl,-soname,libcuda.so.1")
    driver = compile_program("thunk_cuda", *flags, output="libcuda.so.1")
    queries = (f"p2:{query}", "p2:cuInit:13000:0", "p2:cuNoSuchThing:13000:0", f"p2:{query}")

    first, unhooked, unknown, again = ask(
        compile_program("loader"),
        container,
        "--names",
        *queries,
        env={"LD_LIBRARY_PATH": str(driver.parent)},
    )

    assert first == again == f"0 40 libvgpu.so:{form}"
    assert (unhooked.split(":")[0], unknown) == ("0 40 libcuda.so.1", "0 41 none")


@pytest.fixture
def old_driver(compile_program: Compile) -> Path:
    return compile_program("fake_cuda", *SHARED, "-Wl,-soname,libcuda.so.1", output="libcuda.so.1")


def test_old_driver_without_the_second_form_is_served(
    container: Container, compile_program: Compile, old_driver: Path
) -> None:
    environment = {"LD_LIBRARY_PATH": str(old_driver.parent)}
    queries = (
        *("p1:cuMemAlloc:3020:0", "p1:cuMemAlloc:2000:0", "p1:cuMemFree:2000:0"),
        *("p1:cuMemGetInfo:2000:0", "p1:cuInit:2000:0", "p1:cuMemAllocManaged:12000:0"),
        *("handle:cuMemAlloc", "handle:cuMemAllocManaged", "handle:cuGetProcAddress_v2"),
    )

    answers = ask(compile_program("loader"), container, *queries, env=environment)

    assert answers == [
        *("0 libvgpu.so", "0 libvgpu.so", "0 libvgpu.so"),
        *("0 libvgpu.so", "0 libcuda.so.1", "500 none"),
        *("libvgpu.so", "none error", "none error"),
    ]


def test_32_bit_forms_are_limited_too(
    machine: Machine, compile_program: Compile, old_driver: Path
) -> None:
    container = machine.container(0)
    uuid = "GPU-11111111-1111-1111-1111-111111111111"
    region.create(
        container.directory, devices=[region.RegionDevice(uuid=uuid, memory_limit_bytes=700)]
    )

    done = container.run(
        compile_program("old_forms"), env={"LD_LIBRARY_PATH": str(old_driver.parent)}
    )

    assert done.stdout.splitlines() == [
        "total 700",
        "free 700",
        "alloc 700: 0",
        "free 0",
        "alloc 1: 2",
        "free 4096: 0",
        "free 700",
        "pitch 100 x 8, aligned as nobody expects: 2",
        "pitch 100 x 1: 0",
        "free 596",
    ]


@pytest.mark.parametrize("order", ["second first", "shim first"])
def test_second_preload_library_gets_the_next_in_line(
    container: Container, compile_program: Compile, order: str
) -> None:
    second = compile_program("second", *SHARED, output="libsecond.so")
    libraries = [str(second), str(SHIM)] if order == "second first" else [str(SHIM), str(second)]
    environment = {"LD_PRELOAD": ":".join(libraries)}
    queries = ("second:cuMemAlloc_v2", *("second:getpid",) * 3, "second:second_next")

    answers = ask(compile_program("loader"), container, "--global", *queries, env=environment)

    assert answers == ["libvgpu.so", "libc.so.6", "libc.so.6", "libc.so.6", "none error"]


@pytest.mark.parametrize("order", ["second first", "shim first"])
def test_limit_holds_beside_a_second_preload_library(
    container: Container, machine: Machine, compile_program: Compile, order: str
) -> None:
    second = compile_program("second", *SHARED, output="libsecond.so")
    libraries = [str(second), str(SHIM)] if order == "second first" else [str(SHIM), str(second)]
    program = compile_program("linked", str(machine.libraries / "libcuda.so.1"))

    done = container.run(program, str(LIMIT + 1), env={"LD_PRELOAD": ":".join(libraries)})

    assert done.stdout.split() == [str(LIMIT), str(OUT_OF_MEMORY)]


def test_program_without_a_driver_is_not_disturbed(
    tmp_path: Path, compile_program: Compile
) -> None:
    program = compile_program("bystander")
    environment = {"PATH": os.environ["PATH"], "HAMI_REGION_DIR": str(tmp_path / "region")}

    def tell(**more: str) -> list[str]:
        done = subprocess.run(
            [program], env={**environment, **more}, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    with_shim = tell(LD_PRELOAD=str(SHIM))

    mapped = [line for line in with_shim if line.startswith("mapped: ") and line not in tell()]
    assert [line for line in with_shim if line not in mapped] == tell()
    assert {Path(line).name for line in mapped} - {"libdl.so.2"} == {"libvgpu.so"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("order", ["allocator first", "shim first"])
def test_allocator_that_looks_symbols_up_as_it_starts_works_with_the_shim(
    container: Container, machine: Machine, compile_program: Compile, order: str
) -> None:
    allocator = compile_program("allocator", *SHARED, output="liballocator.so")
    libraries = [str(allocator), str(SHIM)]
    preload = ":".join(libraries if order == "allocator first" else reversed(libraries))
    program = compile_program("linked", str(machine.libraries / "libcuda.so.1"))
    forker = compile_program("forker", "-pthread")

    limited = container.run(program, str(LIMIT + 1), env={"LD_PRELOAD": preload})
    forking = container.run(forker, "10", env={"LD_PRELOAD": preload})

    assert limited.stdout.split() == [str(LIMIT), str(OUT_OF_MEMORY)]
    assert (forking.stdout, forking.stderr) == ("10 children\n", "")


def test_program_with_its_own_walk_over_the_loaded_objects_still_runs(
    compile_program: Compile,
) -> None:
    done = subprocess.run(
        [compile_program("own_iterator", "-rdynamic")],
        env={"LD_PRELOAD": str(SHIM)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.split() == ["found", "missing"]


def test_hooked_name_is_missing_where_there_is_no_driver(compile_program: Compile) -> None:
    done = subprocess.run(
        [compile_program("bystander"), *HOOKS],
        env={"LD_PRELOAD": str(SHIM)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.splitlines()[-len(HOOKS) :] == [f"{name}: 1" for name in HOOKS]


def test_shim_stands_aside_where_nothing_asks_for_limits(
    machine: Machine, container: Container, compile_program: Compile
) -> None:
    program = compile_program("linked", str(machine.libraries / "libcuda.so.1"))

    done = container.run(program, str(LIMIT + 1), env={"HAMI_REGION_DIR": ""})

    total, result = done.stdout.split()
    assert (int(total) > LIMIT, result, done.stderr) == (True, "0", "")
