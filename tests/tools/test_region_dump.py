"""``hami region dump``: real regions explained, and any bytes at all without a crash."""

from __future__ import annotations

import ctypes
import io
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hami import cli
from hami.errors import CodecError
from hami.nodeagent import claims, region
from hami.nodeagent.controlfile import ControlFile
from hami.nodeagent.region_layout import (
    ANONYMOUS_SLOT,
    Control,
    DeviceControl,
    Slot,
    Usage,
)
from hami.tools import dump, dump_screen, regionfile
from hami.tools.regionfile import File
from tests.support.gpu import MIB, Client, Machine
from tests.support.mutants import CONTENT, mutated, mutations

GPUS = [f"GPU-{digit * 8}-1111-1111-1111-111111111111" for digit in "ab"]
NOW_NS = 10**15


def write(directory: Path) -> None:
    region.create(
        directory,
        devices=[
            region.RegionDevice(
                uuid=GPUS[0],
                memory_limit_bytes=3000 * MIB,
                physical_bytes=80 * 2**30,
                core_limit_permille=300,
            ),
            region.RegionDevice(uuid=GPUS[1]),
        ],
        owner=region.Owner(pod_uid="u-1", pod_namespace="ns", pod_name="train", container_name="c"),
    )


def shown(found: dump.Dump) -> str:
    console = Console(file=io.StringIO(), width=120, highlight=False)
    dump_screen.show(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def hami(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["hami", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    return int(exited.value.code or 0)


@dataclass(frozen=True)
class Place:
    """Where a number stands in a region's files."""

    file: str
    offset: int
    size: int

    def set(self, directory: Path, value: int) -> None:
        with (directory / self.file).open("r+b") as file:
            file.seek(self.offset)
            file.write(value.to_bytes(self.size, "little"))


def field(file: str, structure: type[ctypes.Structure], name: str, base: int = 0) -> Place:
    met = getattr(structure, name)
    return Place(file, base + met.offset, min(met.size, 8))


def of_control(name: str) -> Place:
    return field("control", Control, name)


def of_device(index: int, name: str) -> Place:
    base = Control.devices.offset + index * ctypes.sizeof(DeviceControl)
    return field("control", DeviceControl, name, base)


def of_usage(name: str) -> Place:
    return field("usage", Usage, name)


def of_slot(number: int, name: str) -> Place:
    return field("usage", Slot, name, Usage.slots.offset + number * ctypes.sizeof(Slot))


def test_a_region_in_use_is_explained(
    machine: Machine, start_client: Callable[..., Client]
) -> None:
    container = machine.container(3000 * MIB)
    client = start_client(container)
    client.alloc(100 * MIB)
    with ControlFile(container.directory) as control:
        control.set_pace(0, ns_per_second=300_000_000, burst_ns=5, now_ns=time.monotonic_ns())
        control.set_core_mode(0, region.CoreMode.LIMIT)
        control.beat(time.monotonic_ns())

    found = dump.dump(container.directory)

    assert not found.unusable
    assert not found.odd
    assert found.control is not None
    assert found.usage is not None
    (device,) = found.control.devices
    assert (device.memory_limit_bytes, device.core_mode) == (3000 * MIB, "limit")
    assert device.rate_ns_per_second == 300_000_000
    (slot,) = found.usage.slots
    assert (slot.pid, slot.state) == (client.process.pid, "alive")
    assert slot.pid_namespace == Path("/proc/self/ns/pid").stat().st_ino
    assert [(row.device, row.used_bytes) for row in slot.rows] == [(0, 100 * MIB)]
    text = shown(found)
    for part in ("3000 MiB", "100 MiB", "limit", "30 %", str(client.process.pid), "alive"):
        assert part in text


def test_what_a_dead_process_left_is_told(
    machine: Machine, start_client: Callable[..., Client]
) -> None:
    container = machine.container(3000 * MIB)
    client = start_client(container)
    client.alloc(100 * MIB)
    client.stop()

    found = dump.dump(container.directory)

    assert found.odd == ("slot 0: stale: the owner is dead and its charge stands",)
    assert "dead" in shown(found)


def test_whose_it_is_and_one_file_alone(tmp_path: Path) -> None:
    write(tmp_path)
    claims.write(
        tmp_path,
        claims.Claim(
            ids=("GPU-x-1",), uid="u-1", namespace="ns", pod="train", container="c", index=0,
            init=False, devices=tuple(GPUS), library="/host/libvgpu.so.1",
        ),
    )  # fmt: skip

    both, control, usage = (
        dump.dump(path) for path in (tmp_path, tmp_path / "control", tmp_path / "usage")
    )

    text = shown(both)
    assert "pod ns/train, container c, uid u-1" in text
    assert "claimed as GPU-x-1" in text
    assert "/host/libvgpu.so.1" in text
    assert (control.usage, usage.control) == (None, None)
    assert control.control is not None
    assert control.control.pod_name == "train"
    assert "no slot is in use" in shown(usage)


def test_json_is_one_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path)

    assert hami(["region", "dump", str(tmp_path), "-o", "json"], monkeypatch) == 0

    document = json.loads(capsys.readouterr().out)
    assert document["control"]["devices"][1]["memory_limit_bytes"] is None
    assert document["control"]["pod_name"] == "train"
    assert document["usage"]["slots"] == []
    assert document["unusable"] == []


def test_a_wrong_path_is_a_mistake_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, told in ((tmp_path / "none", "No such file"), (tmp_path, "'control' or 'usage'")):
        assert hami(["region", "dump", str(path)], monkeypatch) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        pytest.param("control", b"", "cut short: expected 8192 bytes, met 0", id="empty"),
        pytest.param("control", b"x" * 9000, "expected it to begin with HMCONTRL", id="foreign"),
        pytest.param("usage", b"HMIUSAGE" + b"\1\0\0\0" * 9, "usage is cut short", id="short"),
        pytest.param(
            "control", b"HMCONTRL" + b"\7\0\0\0" + bytes(8180), "another version: expected 1, met",
            id="version",
        ),
        pytest.param(
            "control", b"HMCONTRL\1\0\0\0\5\0\0\0" + bytes(8176), "a wrong size: expected 8192",
            id="size",
        ),
    ],
)  # fmt: skip
def test_unusable_files_are_told_and_fail(
    name: str,
    content: bytes,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / name).write_bytes(content)

    assert hami(["region", "dump", str(tmp_path)], monkeypatch) == 1

    output = capsys.readouterr().out
    assert told in output
    assert "no memory is granted" in output


OWNER = 77 << 42 | 5 << 22 | 9


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (of_control("policy"), 9, "policy is unknown (9)"),
        (of_control("flags"), 16, "flag is unknown (0x10)"),
        (of_control("device_count"), 0, "lists no device"),
        (of_control("device_count"), 99, "lists 99 devices, of which 16 count"),
        (of_control("pulse"), 2, "the pulse names the devices 1, the core modes 0"),
        (of_control("heartbeat_ns"), 2**62, "the heartbeat is of the future"),
        (of_device(0, "memory_limit_bytes"), 0, "no memory at all"),
        (of_device(0, "memory_limit_bytes"), 2**40, "more memory than it has"),
        (of_device(0, "untracked_bytes"), 2**40, "untracked alone is more"),
        (of_device(0, "uuid"), 0x2D555047, "no UUID that a driver would say"),
        (of_device(1, "core_limit_permille"), 2000, "2000 permille"),
        (of_device(1, "core_mode"), 8, "core mode is unknown (8)"),
        (of_device(1, "core_mode"), 1, "launches wait for ever"),
        (of_device(1, "core_mode"), 2, "paced, but the governor never beat"),
        (of_usage("slot_count"), 5, "usage says 5 slots"),
        (of_usage("active_words"), 1 << 20, "unknown bits"),
        (of_usage("active"), 1, "slot 0: marked active, but without an owner"),
        (of_slot(3, "rows"), 1, "slot 3: charged, but not marked active"),
        (of_slot(3, "rows"), 2**60, "believed of a process (1024 TiB)"),
        (of_slot(ANONYMOUS_SLOT, "rows"), 7, "slot 1024: processes without a slot"),
        (of_slot(2, "last_submit_ns"), 2**62, "slot 2: last submitted work in the future"),
        (of_slot(2, "pid_namespace"), 6, "slot 2: the owner word and the pid namespace"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_odd_values_are_told_in_words(place: Place, value: int, told: str, tmp_path: Path) -> None:
    write(tmp_path)
    of_slot(2, "owner").set(tmp_path, OWNER)
    of_slot(2, "pid_namespace").set(tmp_path, 5)
    place.set(tmp_path, value)

    found = dump.dump(tmp_path)

    assert told in " ".join(found.odd), found.odd
    assert told in shown(found)


def test_sums_over_the_limit_are_told_with_the_difference(tmp_path: Path) -> None:
    write(tmp_path)
    of_usage("active").set(tmp_path, 1)
    of_slot(0, "owner").set(tmp_path, OWNER)
    of_slot(0, "rows").set(tmp_path, 3000 * MIB + 5)

    odd = " ".join(dump.dump(tmp_path).odd)

    assert f"device 0: {3000 * MIB + 5} bytes are used (untracked ones included), 5 more" in odd


def test_two_slots_of_one_owner_and_a_file_too_long(tmp_path: Path) -> None:
    write(tmp_path)
    for number in (0, 1):
        of_slot(number, "owner").set(tmp_path, OWNER)
    with (tmp_path / "usage").open("ab") as file:
        file.write(b"more")

    odd = " ".join(dump.dump(tmp_path).odd)

    assert "more than one slot has the same owner: pid 77" in odd
    assert "usage is 4 bytes longer than its format" in odd


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("region")
    write(directory)
    return {name: (directory / name).read_bytes() for name in CONTENT}


@given(
    control=mutations(CONTENT["control"]),
    usage=mutations(CONTENT["usage"]),
    lengths=st.tuples(*(st.none() | st.integers(0, size) for size in CONTENT.values())),
)
def test_no_bytes_crash_the_reader(
    originals: dict[str, bytes],
    control: list[tuple[int, bytes]],
    usage: list[tuple[int, bytes]],
    lengths: tuple[int | None, int | None],
) -> None:
    files = []
    for kind, changes, length in zip(regionfile.KINDS, (control, usage), lengths, strict=True):
        content = mutated(originals[kind], changes, length)
        files.append(File(path=kind, kind=kind, content=content, length=len(content)))

    found = dump.explain(files, now_ns=NOW_NS, state=lambda _owner, _namespace: "unknown")

    msgspec.json.encode(found)
    assert shown(found).startswith("control: ")


@given(content=st.binary(max_size=4096), kind=st.sampled_from(regionfile.KINDS))
def test_no_foreign_file_crashes_the_reader(content: bytes, kind: regionfile.Kind) -> None:
    file = File(path=kind, kind=kind, content=content, length=len(content))

    found = dump.explain([file], now_ns=NOW_NS, state=lambda _owner, _namespace: "unknown")

    assert len(found.unusable) == 1
    assert shown(found)


@given(
    control=mutations(CONTENT["control"]),
    usage=mutations(CONTENT["usage"]),
    cut=st.none() | st.integers(0, CONTENT["usage"]),
)
def test_the_agents_reader_refuses_with_its_own_errors_only(
    originals: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
    control: list[tuple[int, bytes]],
    usage: list[tuple[int, bytes]],
    cut: int | None,
) -> None:
    directory = tmp_path_factory.getbasetemp() / "fuzzed"
    directory.mkdir(exist_ok=True)
    (directory / "control").write_bytes(mutated(originals["control"], control, None))
    (directory / "usage").write_bytes(mutated(originals["usage"], usage, cut))

    processes: tuple[region.ProcessUse, ...] = ()
    with suppress(CodecError):
        processes = region.read_usage(directory).processes

    for process in processes:
        for device in process.devices:
            assert 0 <= device.used_bytes <= region.CLAMP_BYTES
            assert 0 <= device.spent_ns <= region.CLAMP_NS
