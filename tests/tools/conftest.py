"""Tools of the host are tested on what the shim's tests run on."""

from __future__ import annotations

from pathlib import Path

import pytest

from hami.tools import rundir
from tests.shim.conftest import built, compile_program, machine, start_client
from tests.support.gpu import ROOT, Machine

__all__ = ["built", "compile_program", "machine", "runs", "start_client"]


@pytest.fixture
def runs(machine: Machine) -> Path:
    """Where this test's runs lie: not among those of the machine."""
    machine.extra[rundir.DIRECTORY_ENV] = str(machine.path / "runs")
    machine.extra["PYTHONPATH"] = str(ROOT)
    return machine.path / "runs"
