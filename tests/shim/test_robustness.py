"""What the world does to processes, files and file systems harms no program and lifts no limit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hami.nodeagent import install, region
from hami.nodeagent.region_layout import ANONYMOUS_SLOT
from tests.support.gpu import MIB, OUT_OF_MEMORY, ROOT, Client, Container, Machine
from tests.support.inside import PROGRAM, Inside, need_namespaces

Compile = Callable[..., Path]
StartClient = Callable[..., Client]

PROGRAMS = Path(__file__).parent / "programs"
LIMIT = 400 * MIB
SHARE = 20 * MIB

ON_A_SMALL_DISK = """
mount -t tmpfs -o size=1400k none "$1"
"$2" -c 'if True:
    import sys
    from pathlib import Path
    from hami.nodeagent import region
    device = region.RegionDevice(uuid=sys.argv[2], memory_limit_bytes=int(sys.argv[3]))
    region.create(Path(sys.argv[1]), devices=[device])
' "$1" "$3" "$4"
dd if=/dev/zero of="$1/full" bs=4k 2>/dev/null || true
LD_PRELOAD="$5" exec "$6" 4 200 1 50
"""


@pytest.fixture
def container(machine: Machine) -> Container:
    return machine.container(LIMIT)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_a_process_with_a_context_share_its_limit(
    container: Container, method: str
) -> None:
    done = container.run(sys.executable, PROGRAMS / "family.py", method, str(SHARE))

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["parent 0", *["child 0"] * 6]


@pytest.mark.slow
def test_thousands_of_short_processes_leave_nothing_behind(
    container: Container, start_client: StartClient, compile_program: Compile
) -> None:
    program = compile_program("linked", str(container.machine.libraries / "libcuda.so.1"))

    done = container.run("sh", "-c", f"seq 2000 | xargs -P 4 -n 1 {program} | sort | uniq -c")

    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", ["2000", str(LIMIT), "0"])
    assert start_client(container).ask("alloc", LIMIT)[0] == 0
    assert len(region.read_usage(container.directory).processes) == 1


def test_pid_that_is_used_again_does_not_keep_the_dead_ones_memory(
    container: Container, compile_program: Compile
) -> None:
    need_namespaces("--pid", "--fork", "--mount-proc")
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable]

    done = container.run(*inside, PROGRAMS / "reuse.py", compile_program("client"), str(LIMIT))

    assert (done.stdout.split(), done.stderr) == (["1", "True", "0"], "")


def test_two_pid_namespaces_share_the_limit_and_pids_that_look_alike_share_no_slot(
    container: Container, compile_program: Compile
) -> None:
    need_namespaces("--pid", "--fork")
    program = compile_program("client")
    shell = f"(echo init 0; echo alloc {LIMIT // 2}; echo info; read -r line <&3) | {program}"
    words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", shell]
    both = [
        subprocess.Popen(
            ["sh", "-c", 'exec "$@" 3<&0', "sh", *words],
            env=container.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    answers = []
    for process in both:
        assert process.stdout is not None
        answers.append([process.stdout.readline().split()[0] for _ in range(3)])

    found = region.read_usage(container.directory).processes
    assert answers == [["ready", "0", "0"]] * 2
    assert len({process.pid_namespace for process in found}) == 2
    assert len({process.pid for process in found}) == 1
    assert container.used_bytes() == LIMIT
    for process in both:
        process.communicate("go on\n")


def test_full_disk_takes_no_memory_and_no_program(
    machine: Machine, container: Container, compile_program: Compile, tmp_path: Path
) -> None:
    need_namespaces("--mount")
    small = tmp_path / "small"
    small.mkdir()
    words = [small, sys.executable, container.uuids[0], LIMIT, machine.shim]
    racer = compile_program("racer", "-pthread")

    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", ON_A_SMALL_DISK, "sh", *map(str, [*words, racer])],
        env={
            **machine.environment(),
            "HAMI_REGION_DIR": str(small),
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (done.returncode, done.stderr) == (0, "")
    granted, _ = done.stdout.split()
    assert int(granted) > 100


def test_read_only_file_system_refuses_memory_in_words(
    machine: Machine, container: Container, compile_program: Compile
) -> None:
    need_namespaces("--mount")
    program = compile_program("linked", str(machine.libraries / "libcuda.so.1"))
    read_only = 'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; shift; exec "$@"'

    done = container.run(
        *("unshare", "--mount", "sh", "-ec", read_only, "sh", container.directory, program, "1")
    )

    assert done.stdout.split() == ["0", str(OUT_OF_MEMORY)]
    assert "usage: cannot be opened: errno 30" in done.stderr


def test_program_that_closes_every_descriptor_stays_limited(
    container: Container, start_client: StartClient
) -> None:
    client = start_client(container)
    client.alloc(LIMIT // 2)

    assert client.ask("closefrom", 3) == (0,)

    assert client.ask("alloc", LIMIT // 2 + 1)[0] == OUT_OF_MEMORY
    assert client.ask("alloc", LIMIT // 2)[0] == 0


def test_threads_that_are_cancelled_leave_no_charge_and_no_lock(
    container: Container, compile_program: Compile
) -> None:
    process = container.start(compile_program("canceller", "-pthread"), str(LIMIT))
    assert process.stdout is not None

    assert process.stdout.readline() == "0 0\n"
    assert container.used_bytes() == LIMIT
    assert process.communicate("\n", timeout=30)[1] == ""


def test_running_process_keeps_its_library_when_another_build_is_installed(
    machine: Machine, start_client: StartClient, tmp_path: Path
) -> None:
    source = tmp_path / "libvgpu.so"
    source.write_bytes(machine.shim.read_bytes())
    old = install.install(source, tmp_path / "host")
    machine.shim = old.library
    container = machine.container(LIMIT)
    running = start_client(container)
    held = running.alloc(LIMIT // 2)

    source.write_bytes(source.read_bytes() + b"another build")
    new = install.install(source, tmp_path / "host")
    assert install.prune(new, in_use=[]) == 1
    machine.shim = new.library
    started_later = start_client(container)

    assert str(old.library) in Path(f"/proc/{running.process.pid}/maps").read_text()
    assert str(new.library) in Path(f"/proc/{started_later.process.pid}/maps").read_text()
    assert started_later.ask("alloc", LIMIT // 2 + 1)[0] == OUT_OF_MEMORY
    assert running.ask("free", held) == (0,)
    assert started_later.ask("alloc", LIMIT)[0] == 0
    assert running.ask("alloc", 1)[0] == OUT_OF_MEMORY


def test_older_shim_refuses_a_newer_agents_files_in_words(
    machine: Machine, compile_program: Compile
) -> None:
    need_namespaces("--mount")
    container = machine.container(LIMIT)
    control = container.directory / "control"
    content = bytearray(control.read_bytes())
    content[8:12] = (int.from_bytes(content[8:12], "little") + 1).to_bytes(4, "little")
    control.write_bytes(content)
    program = compile_program("linked", str(machine.libraries / "libcuda.so.1"))

    done = Inside(container, program).run(PROGRAM, 1)

    assert done.stdout.split() == ["0", str(OUT_OF_MEMORY)]
    assert "expected format version 1, met 2" in done.stderr


def test_process_goes_on_when_its_region_is_removed_and_made_anew(
    container: Container, start_client: StartClient
) -> None:
    client = start_client(container)
    held = client.alloc(LIMIT // 2)
    for name in ("control", "usage"):
        (container.directory / name).unlink()
    devices = [region.RegionDevice(uuid=container.uuids[0], memory_limit_bytes=MIB)]
    region.create(container.directory, devices=devices)

    assert client.ask("alloc", LIMIT // 2 + 1)[0] == OUT_OF_MEMORY
    assert client.ask("free", held) == (0,)
    assert client.ask("alloc", LIMIT)[0] == 0
    assert start_client(container).ask("alloc", 2 * MIB)[0] == OUT_OF_MEMORY


@pytest.mark.slow
def test_a_storm_of_starts_ends_and_leaves_no_anonymous_charge(
    container: Container, compile_program: Compile
) -> None:
    forker = compile_program("forker", "-pthread")

    crowd = [container.start(forker, "60") for _ in range(12)]
    said = [process.communicate(timeout=90) for process in crowd]

    assert said == [("60 children\n", "")] * 12
    found = region.read_usage(container.directory).processes
    assert all(process.slot != ANONYMOUS_SLOT for process in found)
