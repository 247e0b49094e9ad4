"""Checks with PyTorch: what it sees, and what the shim costs its programs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.gpu.card import MIB, Card, Finding, limited
from tests.support.gpu import ROOT

PROGRAM = Path(__file__).parent / "torch_work.py"
LOSS = 0.01
"""Of throughput that may go where there is no limit of cores."""
LIMIT = 8000 * MIB


def torch(card: Card) -> Iterator[Finding]:
    """Agreement and throughput."""
    if card.simulated:
        note = "needs a real GPU: PyTorch's runtime library cannot run on the simulated driver"
        yield Finding(check="torch", what="agreement and throughput", measured=None, note=note)
        return
    if importlib.util.find_spec("torch") is None:
        note = "PyTorch is not installed: pip install torch torchvision"
        yield Finding(check="torch", what="agreement and throughput", measured=None, note=note)
        return
    plain = _run([sys.executable, str(PROGRAM)], card.environment())
    memory = _run([sys.executable, str(PROGRAM)], card.environment(card.region(LIMIT)))
    half = _run(
        limited("--cores", "50", "--policy", "force", command=[sys.executable, str(PROGRAM)]),
        card.environment(),
    )
    totals = [memory["total"], memory["mem_get_info_total"]]
    yield Finding(
        check="torch", what="total memory that PyTorch sees", measured=totals,
        expected=[LIMIT, LIMIT], ok=totals == [LIMIT, LIMIT],
    )  # fmt: skip
    for name in plain["rates"]:
        loss = 1 - memory["rates"][name] / plain["rates"][name]
        part = half["rates"][name] / plain["rates"][name]
        yield Finding(
            check="torch", what=f"{name}: throughput lost by the shim",
            measured=round(loss, 4), expected=f"<= {LOSS}", ok=loss <= LOSS,
            note=f"{plain['rates'][name]:.1f} a second without; {100 * part:.1f} % of it at 50 %",
        )  # fmt: skip


def _run(command: list[str], environment: dict[str, str]) -> Any:
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False, cwd=ROOT
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command}: {done.stderr[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])
