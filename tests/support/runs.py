"""``hami run`` on a simulated machine: started, waited for, looked into."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hami.nodeagent.controlfile import ControlFile
from hami.sandbox.gpu import node
from hami.tools import rundir
from tests.support.gpu import Machine


def command(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "hami", "run", *words]


def run(
    machine: Machine, *words: str, environment: dict[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words),
        env={**machine.environment(), **(environment or {})},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def start(machine: Machine, *words: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command(*words),
        env=machine.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    machine.started.append(process)
    return process


def is_empty(runs: Path) -> bool:
    return not [path for path in runs.iterdir() if path.is_dir()]


def directory_of(runs: Path, process: subprocess.Popen[str]) -> Path:
    found = [run.directory for run in rundir.runs(runs) if run.note.pid == process.pid]
    assert len(found) == 1
    return found[0]


def spin(machine: Machine, program: Path, *options: str) -> subprocess.Popen[str]:
    process = start(machine, *options, "--", str(program))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def beat(directory: Path) -> int:
    with ControlFile(directory) as control:
        return int(control.control.heartbeat_ns)


def busy(machine: Machine) -> dict[int, int]:
    """Device time by process."""
    return {met.pid: met.busy_ns for met in node.read_processes(machine.state, 0)}
