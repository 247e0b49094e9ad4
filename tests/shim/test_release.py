"""The library as shipped: for old systems, for both machines, the same wherever it is built."""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import native
from hami.nodeagent import region
from tests.support.elf import Library
from tests.support.gpu import ROOT

pytestmark = pytest.mark.slow

PROGRAMS = Path(__file__).parent / "programs"
EXPORTS = (Path(__file__).parent / "exports.txt").read_text().split()
MACHINES = list(native.RELEASES)
MAX_BYTES = 200_000
SUITES = sorted(
    path
    for name in ("loader", "memory_limit", "pools", "objects", "fixed_place")
    for path in Path(__file__).parent.glob(f"test_{name}.py")
)
LIBC = {"libc.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-aarch64.so.1"}
ARM = Path("/usr/aarch64-linux-gnu")
"""Where Debian's libc6-arm64-cross is."""


@pytest.fixture(scope="module")
def release() -> dict[str, Path]:
    """The libraries, by machine."""
    return dict(zip(MACHINES, native.build_release(), strict=True))


@pytest.mark.parametrize("machine", MACHINES)
def test_release_is_small_and_needs_nothing_newer_than_glibc_2_17(
    release: dict[str, Path], machine: str
) -> None:
    library = Library(release[machine])

    assert (library.machine, library.soname) == (machine, "libvgpu.so")
    assert set(library.needed) <= LIBC
    versions = [version.split("_")[1].split(".") for version in library.wanted_versions]
    assert max(tuple(int(part) for part in version) for version in versions) <= (2, 17)
    assert release[machine].stat().st_size < MAX_BYTES


@pytest.mark.parametrize("machine", MACHINES)
def test_release_exports_the_committed_names(release: dict[str, Path], machine: str) -> None:
    assert Library(release[machine]).exported == sorted(EXPORTS)


def test_release_is_the_same_wherever_it_is_built(release: dict[str, Path], tmp_path: Path) -> None:
    for part in ("native.py", str(native.SHIM), str(native.GPU), str(native.RUNTIME)):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)

    subprocess.run([sys.executable, "native.py", "--release"], cwd=tmp_path, check=True)

    for machine, library in release.items():
        copied = tmp_path / library.relative_to(ROOT)
        assert copied.read_bytes() == library.read_bytes(), machine


@pytest.mark.parametrize("name", ["dlsym", "dlvsym"])
def test_stubs_leave_by_a_jump(release: dict[str, Path], name: str) -> None:
    intel, arm = (Library(release[machine]).code(name) for machine in ("x86_64", "aarch64"))
    words = struct.unpack(f"<{len(arm) // 4}I", arm)

    assert intel.startswith(bytes.fromhex("f30f1efa"))  # endbr64
    assert intel.endswith(bytes.fromhex("41ffe3c3"))  # jmp *%r11; ret
    assert words[0] == 0xD503245F  # bti c
    assert words[-2:] == (0xD61F0200, 0xD65F03C0)  # br x16; ret
    assert sum(word >> 26 == 0b100101 for word in words) == 1  # bl: to the route, nowhere else
    assert not any(word & 0xFFFFFC1F == 0xD63F0000 for word in words)  # no blr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs a real x86-64 machine")
@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_release_passes_the_shims_own_tests(release: dict[str, Path], suite: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", suite],
        env={**os.environ, "HAMI_TEST_SHIM": str(release["x86_64"])},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-4000:]


@pytest.fixture
def emulated(release: dict[str, Path], tmp_path: Path) -> Callable[..., list[str]]:
    """Runs a program of ``programs`` on an aarch64 machine, with the shim preloaded."""
    if platform.machine() == "aarch64":
        start = ["env"]
    elif (emulator := shutil.which("qemu-aarch64")) is not None and ARM.is_dir():
        start = [emulator, "-L", str(ARM), "-E"]
    else:
        pytest.skip("needs a real aarch64 machine, or qemu-aarch64 and libc6-arm64-cross")

    def compile_one(name: str, output: Path, *flags: str) -> Path:
        flags = ("-fno-sanitize=all", "-std=c11", "-O1", *flags)
        sources = ["-o", str(output), str(PROGRAMS / f"{name}.c"), *native.LIBRARIES]
        native.run_compiler([*flags, *sources], native.release_compiler("aarch64"))
        return output

    def run(program: str, *words: str, driver: str, preload: str = "", **env: str) -> list[str]:
        shared = ("-shared", "-fPIC", "-Wl,-Bsymbolic")
        compile_one(driver, tmp_path / "libcuda.so.1", *shared, "-Wl,-soname,libcuda.so.1")
        libraries = [str(release["aarch64"])]
        if preload:
            libraries.append(str(compile_one(preload, tmp_path / f"lib{preload}.so", *shared)))
        assigned = {"LD_PRELOAD": ":".join(libraries), "LD_LIBRARY_PATH": str(tmp_path), **env}
        variables = [f"{name}={value}" for name, value in assigned.items()]
        if start[0] != "env":
            variables = [",".join(variables)]
        done = subprocess.run(
            [*start, *variables, compile_one(program, tmp_path / program), *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return run


def test_other_machine_finds_the_hooks_and_leaves_the_rest_alone(
    emulated: Callable[..., list[str]],
) -> None:
    queries = (
        *("handle:cuMemAlloc_v2", "default:cuMemAlloc_v2", "next:cuMemAlloc_v2"),
        *("handle:cuInit", "handle:cuMemFree_v2", "p2:cuMemAlloc:2000:0", "p2:cuMemAlloc:3020:2"),
        *("second:getpid", "second:second_next", "second:cuMemAlloc_v2"),
    )

    answers = emulated(
        "loader", "--global", "--names", *queries, driver="thunk_cuda", preload="second"
    )

    assert answers == [
        *["libvgpu.so:cuMemAlloc_v2"] * 3,
        *("libcuda.so.1:cuInit", "none error"),
        *("0 40 libvgpu.so:cuMemAlloc", "0 40 libvgpu.so:cuMemAlloc_v2"),
        *("libc.so.6:__getpid", "none error", "libvgpu.so:cuMemAlloc_v2"),
    ]


def test_other_machine_keeps_the_limit(emulated: Callable[..., list[str]], tmp_path: Path) -> None:
    uuid = "GPU-11111111-1111-1111-1111-111111111111"
    directory = tmp_path / "region"
    directory.mkdir()
    region.create(directory, devices=[region.RegionDevice(uuid=uuid, memory_limit_bytes=700)])

    said = emulated("old_forms", driver="fake_cuda", HAMI_REGION_DIR=str(directory))

    assert said[:5] == ["total 700", "free 700", "alloc 700: 0", "free 0", "alloc 1: 2"]
