"""Builds the C parts with nothing but a C11 compiler, by hand or as hatchling's build hook.

    python native.py                        build in place what is older than its sources
    python native.py --sanitize=address     build into build/address instead (undefined, thread)
    python native.py --release              build the shim for old systems and both machines

The compiler is $CC (several words are fine) or cc. Nothing here needs the CUDA toolkit.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # run by hand, with a bare Python
    BuildHookInterface = None

ROOT = Path(__file__).resolve().parent
SHIM = Path("hami/shim/src")
GPU = Path("hami/sandbox/gpu/src")
RUNTIME = Path("hami/sandbox/runtime")
EXPORTS = Path("build/exports.map")
GENERATED = Path("build/generated")
NAMES = [GENERATED / "hook-names.h", GENERATED / "hook-symbols.h"]

FLAGS = shlex.split(
    "-std=c11 -O2 -g0 -fPIC -fvisibility=hidden -fno-strict-aliasing -pthread "
    "-Wall -Wextra -Wstrict-prototypes -Werror"
)
SHARED = shlex.split("-shared -Wl,-Bsymbolic -Wl,-z,now -Wl,-z,defs")
# Of the oldest glibc that is supported, and nothing in it of where or when it was built.
RELEASES = {"x86_64": "x86_64-linux-gnu.2.17", "aarch64": "aarch64-linux-gnu.2.17"}
RELEASE_FLAGS = shlex.split("-fno-sanitize=all -Wl,-s -Wl,--build-id=none")
LIBRARIES = shlex.split("-Wl,--as-needed -ldl -lpthread")  # part of libc where that is new enough


class BuildError(Exception):
    """No compiler, or one that refused; the message says what it was asked."""


class Target(NamedTuple):  # a build backend loads this file without a name; dataclasses need one
    output: str
    sources: Sequence[Path]
    flags: Sequence[str] = ()
    linked: Sequence[Path] = ()  # read by the linker, not by the compiler


def sources(directory: Path, names: str) -> list[Path]:
    return [directory / name for name in names.split()]


def every(directory: Path, pattern: str, *, but: str = "") -> list[Path]:
    """All sources of a directory that match, less those that have a main or belong elsewhere."""
    found = sorted(path.relative_to(ROOT) for path in (ROOT / directory).glob(pattern))
    return [path for path in found if path.name not in but.split()]


NVML_ONLY = "sim_nvml.c sim_nvml_event.c sim_nvml_process.c"
LIBRARY_OF_THE_SHIM = Target(
    "hami/shim/lib/libvgpu.so",
    [*every(SHIM, "*.c", but="layout.c reclaim_main.c"), SHIM / "dlsym.S", SHIM / "launch.S"],
    [f"-I{GENERATED}", *SHARED, "-Wl,-soname,libvgpu.so", f"-Wl,--version-script={EXPORTS}"],
    [EXPORTS, *NAMES],
)
SIMULATED_CUDA = Target(
    "hami/sandbox/gpu/lib/libcuda.so.1",
    sources(SHIM, "pointers.c process.c") + every(GPU, "sim_*.c", but=NVML_ONLY),
    [*SHARED, f"-I{SHIM}", "-Wl,-soname,libcuda.so.1"],
)
SIMULATED_NVML = Target(
    "hami/sandbox/gpu/lib/libnvidia-ml.so.1",
    sources(SHIM, "process.c")
    + sources(GPU, f"sim_managed.c sim_node.c sim_timeline.c sim_visible.c {NVML_ONLY}"),
    [*SHARED, f"-I{SHIM}", "-Wl,-soname,libnvidia-ml.so.1"],
)
TARGETS = (
    LIBRARY_OF_THE_SHIM,
    SIMULATED_CUDA,
    SIMULATED_NVML,
    Target("hami/shim/lib/region-reclaim", sources(SHIM, "process.c reclaim_main.c slots.c")),
    Target("hami/sandbox/gpu/lib/gpu-probe", sources(GPU, "probe.c")),
    Target(
        "hami/sandbox/runtime/lib/sandbox-run",
        sources(RUNTIME, "sandbox-run.c sandbox-mounts.c sandbox-namespaces.c"),
    ),
    Target(
        "hami/sandbox/runtime/lib/run-isolated",
        sources(RUNTIME, "run-isolated.c sandbox-mounts.c sandbox-namespaces.c"),
    ),
)


def compiler() -> list[str]:
    """The compiler's command line; raises BuildError where it cannot be run."""
    command = shlex.split(os.environ.get("CC", "") or "cc")
    if not command or shutil.which(command[0]) is None:
        raise BuildError(
            f"no C compiler: {' '.join(command) or '$CC'} was not found. "
            "Install one (Debian: apt-get install gcc libc6-dev) or set CC"
        )
    return command


def run_compiler(arguments: list[str], command: Sequence[str] | None = None) -> None:
    command = [*(command or compiler()), *arguments]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "0"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)}\n{done.stderr or done.stdout}")


def compile_c(output: Path, files: list[Path], extra: list[str]) -> None:
    """Compile and link files outside of TARGETS with the same compiler and warnings."""
    run_compiler([*FLAGS, "-o", str(output), *map(str, files), *extra, *LIBRARIES])


def fingerprint(target: Target, flags: list[str], command: Sequence[str]) -> str:
    """Changes with the sources, the headers beside them, the flags and the compiler's name."""
    digest = hashlib.sha256("\0".join([*command, *flags, target.output]).encode())
    directories = {source.parent for source in target.sources}
    headers = {
        path
        for directory in directories | {SHIM}
        for path in (ROOT / directory).iterdir()
        if path.suffix in {".h", ".def"}
    }
    for path in sorted(headers | {ROOT / p for p in (*target.sources, *target.linked)}):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def build_target(
    target: Target, directory: Path, extra: Sequence[str], command: Sequence[str] | None = None
) -> Path:
    """Compile and link unless the fingerprint beside the output says it is up to date.

    The compiler is ``command``, or that of the environment.
    """
    output = directory / target.output
    stamp = ROOT / "build" / "stamps" / (str(output.relative_to(ROOT)).replace("/", "+"))
    flags = [*FLAGS, *extra, *target.flags]
    wanted = fingerprint(target, flags, command or compiler())
    if output.exists() and stamp.exists() and stamp.read_text() == wanted:
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        run_compiler([*flags, "-o", str(temporary), *map(str, target.sources), *LIBRARIES], command)
        os.replace(temporary, output)  # a process that has the old one mapped keeps it
    finally:
        temporary.unlink(missing_ok=True)
    stamp.write_text(wanted)
    return output


class Hook(NamedTuple):
    """A row of hooks.def."""

    name: str
    symbol: str
    version: int


def hooks() -> list[Hook]:
    """The rows of hooks.def that are intercepted, in their order."""
    text = (ROOT / SHIM / "hooks.def").read_text()
    rows = re.findall(r'^HAMI_HOOK\(\w+, (\w+), "(\w*)", (\d+),', text, re.M)
    return [Hook(name, symbol, int(version)) for name, symbol, version in rows]


def write_generated(path: Path, content: str) -> None:
    target = ROOT / path
    if target.exists() and target.read_text() == content:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_text(content)
    os.replace(temporary, target)


def exports() -> str:
    """The linker's list of all that the shim shows to others: the rows of hooks.def, and dlsym.

    No version node: an unversioned definition stands in for every version of dlsym that a program
    may have been linked against.
    """
    names = "".join(f"    {name};\n" for name in ["dlsym", "dlvsym", *(h.name for h in hooks())])
    return f"{{\nglobal:\n{names}local:\n    *;\n}};\n"


def name_hash(name: str) -> int:
    """As ``hami_name_hash`` of elf.h."""
    value = 5381
    for byte in name.encode():
        value = (value * 33 + byte) % 2**32
    return value


def perfect_hash(names: Sequence[str]) -> tuple[int, int, dict[int, str]]:
    """A factor and a number of bits that give each name a place of its own, and the places."""
    hashes = [name_hash(name) for name in names]
    if len(set(hashes)) != len(names):
        raise BuildError("two hooked names have the same hash: change name_hash and its twin")
    for bits in range(max(len(names) - 1, 1).bit_length() + 1, 16):
        for attempt in range(2000):
            factor = (0x9E3779B1 + 0x61C88646 * attempt) % 2**32 | 1
            places = {value * factor % 2**32 >> (32 - bits) for value in hashes}
            if len(places) == len(names):
                ordered = [value * factor % 2**32 >> (32 - bits) for value in hashes]
                return factor, bits, dict(zip(ordered, names, strict=True))
    raise BuildError("no perfect hash of the hooked names was found")


def name_table(title: str, rows: Mapping[str, str]) -> str:
    """C source: ``title``, which leads from a name's hash to the row that may have that name."""
    factor, bits, places = perfect_hash(list(rows))
    entries = "".join(
        f"    [{place}] = 1 + HAMI_ROW_{rows[places[place]]},\n" for place in sorted(places)
    )
    return (
        f"#define {title.upper()}_FACTOR UINT32_C({factor})\n#define {title.upper()}_BITS {bits}\n"
        f"static const uint16_t {title}_places[{2**bits}] = {{\n{entries}}};\n"
    )


def write_all_generated() -> None:
    """What the compiler and the linker read besides the sources."""
    by_symbol: dict[str, str] = {}
    for hook in hooks():
        if hook.symbol:
            by_symbol.setdefault(hook.symbol, hook.name)
    note = "/* Generated from hooks.def by native.py. */\n"
    write_generated(EXPORTS, exports())
    write_generated(NAMES[0], note + name_table("export", {h.name: h.name for h in hooks()}))
    write_generated(NAMES[1], note + name_table("symbol", by_symbol))


def build(sanitize: str | None = None) -> list[Path]:
    """Build everything; returns the outputs."""
    write_all_generated()
    if sanitize is None:
        return [build_target(target, ROOT, []) for target in TARGETS]
    extra = [f"-fsanitize={sanitize}", "-g", "-fno-omit-frame-pointer"]
    return [build_target(t, ROOT / "build" / sanitize, extra) for t in TARGETS]


def release_compiler(machine: str) -> list[str]:
    """The compiler from PyPI, for that machine and the oldest glibc."""
    return [sys.executable, "-m", "ziglang", "cc", "-target", RELEASES[machine]]


def build_with_test_points() -> Path:
    """The shim with its named points of death (testpoint.h), in build/points."""
    write_all_generated()
    return build_target(LIBRARY_OF_THE_SHIM, ROOT / "build" / "points", ["-DHAMI_TEST_POINTS"])


def build_release() -> list[Path]:
    """Build the shim for each machine into build/release; returns the libraries.

    Two builds of the same sources with the same ziglang are the same bytes, wherever they are made.
    """
    write_all_generated()
    target = LIBRARY_OF_THE_SHIM._replace(output="libvgpu.so")
    return [
        build_target(
            target, ROOT / "build" / "release" / machine, RELEASE_FLAGS, release_compiler(machine)
        )
        for machine in RELEASES
    ]


def platform_tag(outputs: list[Path]) -> str:
    """The wheel's platform: the machine it was built for and the oldest glibc that will do."""
    machines = {62: "x86_64", 183: "aarch64"}
    content = b"".join(output.read_bytes() for output in outputs)
    machine = int.from_bytes(outputs[0].read_bytes()[18:20], "little")  # ELF e_machine
    if machine not in machines:
        raise BuildError(f"built for ELF machine {machine}: expected one of {machines}")
    minors = [int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", content)]
    return f"manylinux_2_{max(minors, default=17)}_{machines[machine]}"


if BuildHookInterface is not None:

    class NativeBuildHook(BuildHookInterface):
        """Builds before hatchling packs, for wheels and editable installs alike."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            outputs = build()
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag(outputs)}"
            build_data["artifacts"] += [f"/{output.relative_to(ROOT)}" for output in outputs]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitize", choices=["address", "undefined", "thread"])
    parser.add_argument("--release", action="store_true", help="for glibc 2.17, x86-64 and aarch64")
    options = parser.parse_args()
    try:
        for output in build_release() if options.release else build(options.sanitize):
            print(output.relative_to(ROOT))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
