"""``hami top``: devices, containers, runs and processes of a simulated machine, as they are."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest
from rich.console import Console

from hami.nodeagent import claims, region
from hami.nodeagent.controlfile import ControlFile
from hami.sandbox.gpu import node
from hami.tools import rundir, top_screen, toplook
from hami.tools.toplook import DeviceLook, Look, ProcessLook, ShareLook, TenantLook
from tests.support.gpu import MIB, ROOT, Client, Container, Machine, wait_for
from tests.support.gpus import simulated_gpus

COMMAND = [sys.executable, "-P", "-m", "hami", "top"]
LIMIT = 3000 * MIB


@pytest.fixture
def host(machine: Machine) -> Path:
    """A node agent's directory; runs have a place of their own."""
    machine.extra[rundir.DIRECTORY_ENV] = str(machine.path / "runs")
    machine.extra["PYTHONPATH"] = str(ROOT)
    (machine.path / "host" / "containers").mkdir(parents=True)
    return machine.path / "host"


def container(machine: Machine, host: Path, *, pod: str = "train") -> Container:
    """One with a region and a claim, as the node agent makes them."""
    directory = host / "containers" / f"uid-{pod}_main"
    directory.mkdir()
    region.create(
        directory,
        devices=[
            region.RegionDevice(
                uuid=machine.uuids[0], memory_limit_bytes=LIMIT, core_limit_permille=300
            )
        ],
        owner=region.Owner(pod_namespace="ns", pod_name=pod, container_name="main"),
    )
    claims.write(
        directory,
        claims.Claim(
            ids=("x",), uid=f"uid-{pod}", namespace="ns", pod=pod, container="main", index=0,
            init=False, devices=machine.uuids[:1],
        ),
    )  # fmt: skip
    return Container(machine=machine, directory=directory, uuids=machine.uuids[:1])


def top(machine: Machine, host: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "--host-dir", str(host), *words],
        env={**machine.environment(), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def looked(machine: Machine, host: Path, *words: str) -> Look:
    result = top(machine, host, "--once", "-o", "json", *words)
    assert result.returncode == 0, result.stderr
    return msgspec.json.decode(result.stdout, type=Look)


def test_devices_containers_and_processes_are_told(
    machine: Machine, host: Path, start_client: Callable[..., Client]
) -> None:
    client = start_client(container(machine, host))
    client.alloc(100 * MIB)

    look = looked(machine, host)

    assert [device.uuid for device in look.devices] == list(machine.uuids)
    assert look.devices[0].model == "NVIDIA H100 80GB HBM3"
    assert look.devices[0].memory_bytes == 81559 * MIB
    (tenant,) = look.tenants
    assert (tenant.kind, tenant.name, tenant.processes) == ("container", "ns/train main", 1)
    (share,) = tenant.devices
    assert (share.memory_limit_bytes, share.used_bytes) == (LIMIT, 100 * MIB)
    assert share.measured_bytes == 100 * MIB
    assert (share.core_limit_permille, share.mode) == (300, "limit")
    (process,) = look.processes
    assert (process.pid, process.device) == (client.process.pid, machine.uuids[0])
    assert process.memory_bytes == 100 * MIB
    assert process.tenant == "ns/train main"
    assert process.command.startswith("client")
    assert look.notes == ()


def test_work_is_told_in_percent(
    machine: Machine, host: Path, compile_program: Callable[..., Path]
) -> None:
    process = container(machine, host).start(compile_program("spinner"))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    def use() -> int:
        (tenant,) = looked(machine, host).tenants
        return tenant.devices[0].use_percent or 0

    wait_for(lambda: use() > 10, "it works")


def test_who_is_nobodys_is_told_as_that(machine: Machine, host: Path) -> None:
    process = subprocess.Popen(
        [node.PROBE, "--allocate", "10", "--hold", "0"], env=machine.environment(),
        stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    machine.started.append(process)
    wait_for(lambda: machine.used_bytes() > 0, "it allocated")

    look = looked(machine, host)

    assert {(met.pid, met.tenant) for met in look.processes} == {(process.pid, "")}
    assert look.tenants == ()


@pytest.mark.parametrize("isolation", ["environment", "namespace"])
def test_runs_are_told(machine: Machine, host: Path, isolation: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "hami", "run", "--memory", "100", "--isolation", isolation,
         "--", str(node.PROBE), "--allocate", "10", "--hold", "0"],
        env=machine.environment(), stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    machine.started.append(process)
    wait_for(lambda: machine.used_bytes() > 0, "it allocated")

    look = looked(machine, host)

    (tenant,) = look.tenants
    assert (tenant.kind, tenant.name) == ("run", f"run {process.pid} gpu-probe")
    assert tenant.devices[0].used_bytes >= 10 * MIB
    assert look.processes[0].tenant == tenant.name


def test_a_table_for_people(
    machine: Machine, host: Path, start_client: Callable[..., Client]
) -> None:
    start_client(container(machine, host)).alloc(1500 * MIB)

    result = top(machine, host, "--once")

    assert result.returncode == 0
    for part in ("2 devices, 1 container, 0 runs, 1 process", "H100 80GB HBM3", "ns/train main",
                 "3000", "1500", "█████░░░░░", "30 %", "paced", "client"):  # fmt: skip
        assert part in result.stdout, part


def test_json_is_a_line_for_each_look(machine: Machine, host: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--host-dir", str(host), "--interval", "0.1", "-o", "json"],
        env=machine.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    machine.started.append(process)
    assert process.stdout is not None

    documents = [json.loads(process.stdout.readline()) for _ in range(2)]

    assert [len(document["devices"]) for document in documents] == [2, 2]
    assert documents[0]["time"] < documents[1]["time"]
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (0, "")


def test_on_a_terminal_it_goes_on_until_it_is_interrupted(machine: Machine, host: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "--host-dir", str(host), "--interval", "0.1"],
        env={**machine.environment(), "TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    try:
        text = b""
        while text.count(b"2 devices") < 3:
            text += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        while b"\x1b[?1049l" not in text:  # back to what was on the screen before
            text += os.read(ours, 65536)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_without_a_driver_it_says_so(machine: Machine, host: Path) -> None:
    machine.extra["LD_LIBRARY_PATH"] = "/nowhere"
    container(machine, host)

    look = looked(machine, host)

    assert look.devices == ()
    assert look.notes[0].startswith("devices: NVML")
    assert [tenant.name for tenant in look.tenants] == ["ns/train main"]


async def test_a_lost_device_is_told(tmp_path: Path) -> None:
    gpus = simulated_gpus()
    looker = toplook.Looker(tmp_path, tmp_path, is_root=False)
    await looker.look()

    with gpus.lost(1):
        found = await looker.look()

    assert found.devices[1].fault == "the driver cannot reach it"
    assert "cannot reach it" in shown(found)


def test_a_spoilt_region_is_left_out_and_told(machine: Machine, host: Path) -> None:
    spoilt = container(machine, host, pod="spoilt")
    container(machine, host)
    with (spoilt.directory / "usage").open("r+b") as file:
        file.truncate(100)

    look = looked(machine, host)

    assert [tenant.name for tenant in look.tenants] == ["ns/train main"]
    (note,) = look.notes
    assert note.startswith("ns/spoilt main: its region cannot be read")


async def test_what_may_not_be_seen_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated_gpus()

    def refuse(_: Path) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    look = await toplook.Looker(tmp_path, tmp_path, is_root=False).look()

    told = f"containers: {tmp_path}/containers: Permission denied; root can see them"
    assert told in look.notes


def shown(look: Look, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(top_screen.render(look))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_many_processes_and_unknown_figures_fit_80_columns() -> None:
    uuid = "GPU-11111111-1111-1111-1111-111111111111"
    look = Look(
        time=time.time(),
        devices=(
            DeviceLook(index=0, uuid=uuid, model="NVIDIA H100 80GB HBM3", memory_bytes=80 * 2**30,
                       memory_used_bytes=None, utilization_percent=None),
        ),
        tenants=tuple(
            TenantLook(
                kind="container", name=f"namespace/pod-{mode} main", namespace="namespace",
                pod="pod", container="main", directory="/x", processes=3,
                devices=(
                    ShareLook(device=uuid, memory_limit_bytes=limit, used_bytes=5 * MIB // 2,
                              measured_bytes=None, core_limit_permille=0, mode=mode,
                              pace_permille=None, use_percent=None, waited_seconds=0.0),
                ),
            )
            for mode, limit in (("suspend", 0), ("block", None), ("off", 2**40))
        ),
        processes=tuple(
            ProcessLook(pid=number, command="python " + "x" * 100, device=uuid, memory_bytes=None,
                        use_percent=None, tenant="")
            for number in range(40)
        ),
        notes=("processes: [bold]hidden[/]",),
    )  # fmt: skip

    text = shown(look, width=80)

    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    for part in ("suspended", "waits", "free", "2.5", "-/81920", "and 10 more",
                 "not shown: processes: [bold]hidden[/]"):  # fmt: skip
        assert part in text, part


def test_a_container_that_is_suspended_shows(machine: Machine, host: Path) -> None:
    with ControlFile(container(machine, host).directory) as control:
        control.set_core_mode(0, region.CoreMode.SUSPEND)

    assert "suspended" in top(machine, host, "--once").stdout
