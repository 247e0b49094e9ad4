"""One format, told three times: the C header, the committed list, the Python mirror."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import native
from hami.errors import CodecError
from hami.nodeagent import region, region_layout
from hami.nodeagent.controlfile import ControlFile
from tests.support.gpu import MIB, Client, Container, Machine

Compile = Callable[..., Path]
StartClient = Callable[..., Client]

LAYOUT = native.ROOT / native.SHIM / "region-layout.txt"
MIRROR = {
    "hami_grant": region_layout.Grant,
    "hami_device_control": region_layout.DeviceControl,
    "hami_control": region_layout.Control,
    "hami_usage_row": region_layout.UsageRow,
    "hami_slot": region_layout.Slot,
    "hami_bucket": region_layout.Bucket,
    "hami_usage": region_layout.Usage,
}


def test_committed_layout_is_that_of_the_header(tmp_path: Path) -> None:
    program = tmp_path / "layout"
    native.compile_c(program, [native.ROOT / native.SHIM / "layout.c"], [])

    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout

    assert printed == LAYOUT.read_text()


def test_mirror_has_the_committed_layout() -> None:
    lines = []
    for name, mirror in MIRROR.items():
        for field, *_ in mirror._fields_:
            place = getattr(mirror, field)
            lines.append(f"{name}.{field} {place.offset} {place.size}")
    lines += [f"{name} size {ctypes.sizeof(mirror)}" for name, mirror in MIRROR.items()]

    assert lines == LAYOUT.read_text().splitlines()


def test_created_files_have_their_permissions_and_are_no_holes(container: Container) -> None:
    control = (container.directory / "control").stat()
    usage = (container.directory / "usage").stat()

    assert (control.st_mode & 0o777, usage.st_mode & 0o777) == (0o644, 0o666)
    assert usage.st_blocks * 512 >= usage.st_size == ctypes.sizeof(region_layout.Usage)
    assert sorted(path.name for path in container.directory.iterdir()) == ["control", "usage"]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ({"uuid": "GPU-" + "0" * 96}, "device uuid: expected at most 95 bytes"),
        ({"uuid": "GPU-\0"}, "device uuid"),
        ({"uuid": "GPU", "memory_limit_bytes": -1}, "memory limit: expected 0"),
        ({"uuid": "GPU", "memory_limit_bytes": 2**64 - 1}, "memory limit: expected 0"),
        ({"uuid": "GPU", "core_limit_permille": 1001}, "core limit: expected 0 to 1000, met 1001"),
    ],
)
def test_value_that_does_not_fit_its_field_is_refused(
    tmp_path: Path, device: dict[str, object], message: str
) -> None:
    with pytest.raises(CodecError, match=message):
        region.create(tmp_path, devices=[region.RegionDevice(**device)])  # type: ignore[arg-type]  # a table of bad values

    assert list(tmp_path.iterdir()) == []


def test_too_many_devices_are_refused(tmp_path: Path) -> None:
    devices = [region.RegionDevice(uuid=f"GPU-{index}") for index in range(17)]

    with pytest.raises(CodecError, match="expected at most 16 devices, met 17"):
        region.create(tmp_path, devices=devices)


def test_every_change_of_the_control_file_raises_its_generation(container: Container) -> None:
    with ControlFile(container.directory) as control:
        before = control.generation
        control.set_memory_limit(0, 5)
        control.set_core_limit(0, 300)

        assert control.generation > before
        assert control.devices[0].memory_limit_bytes == 5
        assert control.devices[0].core_limit_permille == 300
        with pytest.raises(CodecError, match="expected a device below 1, met 1"):
            control.set_memory_limit(1, 5)


def test_a_change_of_pace_keeps_what_was_granted_before(container: Container) -> None:
    second = 1_000_000_000
    with ControlFile(container.directory) as control:
        control.set_pace(0, ns_per_second=300_000_000, burst_ns=7, now_ns=10 * second)
        control.set_pace(0, ns_per_second=100_000_000, burst_ns=7, now_ns=12 * second)

        assert control.granted(0, 12 * second) == 600_000_000
        assert control.granted(0, 13 * second) == 700_000_000
        assert control.control.devices[0].grant_sequence == 2
        assert control.control.devices[0].burst_ns == 7


def test_the_pulse_tells_ticks_and_which_devices_are_not_free(container: Container) -> None:
    with ControlFile(container.directory) as control:
        control.set_core_mode(0, region.CoreMode.LIMIT)
        limited = control.control.pulse
        control.beat(5)
        beaten = control.control.pulse
        control.set_core_mode(0, region.CoreMode.OFF)

        assert limited & 0xFFFF == 1
        assert beaten & 0xFFFF == 1
        assert beaten >> 16 == (limited >> 16) + 1
        assert control.control.heartbeat_ns == 5
        assert control.control.pulse & 0xFFFF == 0


@pytest.fixture
def container(machine: Machine) -> Container:
    return machine.container(300 * MIB)


def test_reading_shows_each_process_and_what_it_holds(
    container: Container, start_client: StartClient
) -> None:
    client, idle = start_client(container), start_client(container)
    client.alloc(5 * MIB)
    idle.ask("info")

    processes = {
        process.pid: process for process in region.read_usage(container.directory).processes
    }

    assert processes[client.process.pid].devices == (region.DeviceUsage(used_bytes=5 * MIB),)
    assert processes[idle.process.pid].devices == (region.DeviceUsage(),)
    assert processes[idle.process.pid].pid_namespace == Path("/proc/self/ns/pid").stat().st_ino


def damaged(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / name
        path.write_bytes(change(path.read_bytes()))

    return damage


def header(magic: int, version: int, size: int) -> Callable[[bytes], bytes]:
    return lambda content: struct.pack("<QII", magic, version, size) + content[16:]


DAMAGE = [
    pytest.param(damaged("control", lambda content: content[:4000]), id="control cut short"),
    pytest.param(damaged("control", lambda content: b""), id="control empty"),
    pytest.param(damaged("control", lambda content: b"x" * len(content)), id="control foreign"),
    pytest.param(
        damaged("control", header(region_layout.CONTROL_MAGIC, 2, 8192)),
        id="control of a newer version",
    ),
    pytest.param(
        damaged("control", header(region_layout.CONTROL_MAGIC, 1, 4096)),
        id="control of another size",
    ),
    pytest.param(damaged("usage", lambda content: content[:100_000]), id="usage cut short"),
    pytest.param(damaged("usage", lambda content: b""), id="usage empty"),
    pytest.param(damaged("usage", lambda content: b"\0" * len(content)), id="usage zeroed"),
    pytest.param(
        damaged("usage", header(region_layout.USAGE_MAGIC, 2, ctypes.sizeof(region_layout.Usage))),
        id="usage of a newer version",
    ),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_reader_refuses_a_damaged_region_in_words(
    container: Container, damage: Callable[[Path], None], request: pytest.FixtureRequest
) -> None:
    damage(container.directory)
    cut_behind_the_header = "usage cut short" in request.node.name

    if cut_behind_the_header:  # only the slots that are used are read
        mark_active(container.directory, 1000)
    with pytest.raises(CodecError, match=r"expected .* met "):
        region.read_usage(container.directory)


@pytest.mark.parametrize("damage", DAMAGE)
def test_shim_grants_no_memory_over_a_damaged_region_and_says_so_once(
    container: Container, machine: Machine, compile_program: Compile, damage: Callable[[Path], None]
) -> None:
    damage(container.directory)
    program = compile_program("linked", str(machine.libraries / "libcuda.so.1"))

    done = container.run(program, "1")

    assert (done.returncode, done.stdout.split()) == (0, ["0", "2"])
    assert len(done.stderr.splitlines()) == 2
    assert "no device memory will be granted" in done.stderr


@pytest.mark.parametrize("missing", ["control", "usage"])
def test_shim_grants_no_memory_where_a_file_is_missing(
    container: Container, machine: Machine, compile_program: Compile, missing: str
) -> None:
    (container.directory / missing).unlink()
    program = compile_program("linked", str(machine.libraries / "libcuda.so.1"))

    done = container.run(program, "1")

    assert (done.stdout.split(), "no device memory will be granted" in done.stderr) == (
        ["0", "2"],
        True,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process that is not root")
@pytest.mark.parametrize("closed", ["control", "usage"])
def test_shim_grants_no_memory_where_a_file_may_not_be_opened(
    container: Container, machine: Machine, compile_program: Compile, closed: str
) -> None:
    mode = 0o600 if closed == "control" else 0o444
    (container.directory / closed).chmod(mode)
    for directory in [container.directory, *container.directory.parents]:
        if directory.stat().st_mode & 0o777 == 0o700:
            directory.chmod(0o755)
    program = compile_program("linked", str(machine.libraries / "libcuda.so.1"))
    for directory in program.parents:
        if directory.stat().st_mode & 0o777 == 0o700:
            directory.chmod(0o755)

    done = subprocess.run(
        [program, "1"],
        env=container.environment,
        capture_output=True,
        text=True,
        check=False,
        user=65534,
    )

    assert done.stdout.split() == ["0", "2"], done.stderr
    assert "cannot be opened" in done.stderr


def test_limits_are_lifted_over_an_unusable_usage_file_if_the_control_file_says_so(
    container: Container, machine: Machine, compile_program: Compile
) -> None:
    region.create(
        container.directory,
        devices=[region.RegionDevice(uuid=container.uuids[0], memory_limit_bytes=MIB)],
        flags=region.Flag.FAIL_OPEN,
    )
    (container.directory / "usage").write_bytes(b"")
    program = compile_program("linked", str(machine.libraries / "libcuda.so.1"))

    done = container.run(program, str(2 * MIB))

    assert (done.stdout.split()[1], "limits are off" in done.stderr) == ("0", True)


def mark_active(directory: Path, slot: int) -> None:
    with (directory / "usage").open("r+b") as file:
        file.seek(region_layout.Usage.active.offset + slot // 64 * 8)
        file.write(struct.pack("<Q", 1 << slot % 64))


def test_reader_believes_no_absurd_figures(container: Container) -> None:
    mark_active(container.directory, 3)
    with (container.directory / "usage").open("r+b") as file:
        file.seek(region_layout.Usage.slots.offset + 3 * ctypes.sizeof(region_layout.Slot))
        file.write(b"\xff" * ctypes.sizeof(region_layout.Slot))

    (process,) = region.read_usage(container.directory).processes

    assert process.devices == (
        region.DeviceUsage(
            used_bytes=region.CLAMP_BYTES,
            pending_bytes=region.CLAMP_BYTES,
            spent_ns=region.CLAMP_NS,
            waited_ns=region.CLAMP_NS,
            context_bytes=region.CLAMP_BYTES,
        ),
    )


def test_scribbled_usage_refuses_memory_but_ends_no_program(
    container: Container, machine: Machine, compile_program: Compile
) -> None:
    path = container.directory / "usage"
    path.write_bytes(
        path.read_bytes()[: region_layout.Usage.active.offset].ljust(path.stat().st_size, b"\xff")
    )
    program = compile_program("linked", str(machine.libraries / "libcuda.so.1"))

    done = container.run(program, "1")

    assert (done.returncode, done.stdout.split()) == (0, [str(300 * MIB), "2"])
