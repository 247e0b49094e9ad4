"""Scripts that use the simulated driver through ctypes, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.gpu import Container, Machine

PROGRAMS = Path(__file__).parents[1] / "shim" / "programs"
BEGINNING = "from driver import *\nfrom driver import made\nstart()\n"


def begin(
    machine: Machine, script: str, *, container: Container | None = None, **env: str
) -> subprocess.Popen[str]:
    """Start a script that has a context on device 0 (tests/shim/programs/driver.py)."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGINNING + script],
        env={**machine.environment(container), "PYTHONPATH": str(PROGRAMS), **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    machine.started.append(process)
    return process


def run(
    machine: Machine, script: str, *, container: Container | None = None, **env: str
) -> list[str]:
    """What it prints, line by line; it must succeed and complain of nothing."""
    process = begin(machine, script, container=container, **env)
    out, complaints = process.communicate(timeout=60)
    assert (process.returncode, complaints) == (0, ""), complaints + out
    return out.splitlines()
