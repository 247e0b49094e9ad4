"""The suite for real GPUs does what it says on a simulated one: it is ready where there is one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.gpu import ROOT


def suite(report: Path, *names: str) -> tuple[int, list[dict[str, Any]], str]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.gpu", "--simulated", "--quick", "--json", str(report),
         "--only", *names],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert report.exists(), done.stdout + done.stderr
    figures = json.loads(report.read_text())["figures"]
    assert figures["simulated"] is True
    return done.returncode, figures["findings"], done.stdout


def test_memory_is_as_it_should_be(tmp_path: Path) -> None:
    status, findings, text = suite(tmp_path / "report", "addresses", "truth", "limits", "soak")

    assert status == 0, text
    assert {finding["check"] for finding in findings} == {"addresses", "truth", "limits", "soak"}
    truth = {f["what"]: f["measured"] for f in findings if f["check"] == "truth"}
    assert truth["100 MiB"]["charged"] == truth["100 MiB"]["driver"] == 100 * 2**20
    assert "0 of them wrong" in text


@pytest.mark.slow
def test_compute_is_about_what_it_should_be(tmp_path: Path) -> None:
    _, findings, text = suite(tmp_path / "report", "shares", "pairs", "priority")

    shares = [f["measured"] for f in findings if f["check"] == "shares"]
    assert len(shares) == 2, text
    for measured in shares:
        assert 25 < measured["30"] < 35, text
        assert 60 < measured["70"] < 75, text
    pairs = [f["measured"] for f in findings if f["check"] == "pairs"]
    assert [sum(measured) < 112 for measured in pairs] == [True] * 3, text
    assert pairs[0][0] < pairs[0][1], text
    assert findings[-1]["check"] == "priority"
    assert findings[-1]["measured"] < 3, text


def test_what_needs_hardware_says_so_in_words(tmp_path: Path) -> None:
    status, findings, _ = suite(tmp_path / "report", "torch")

    assert status == 0
    assert [finding["ok"] for finding in findings] == [None]
    assert findings[0]["note"].startswith("needs a real GPU: ")


def test_an_unknown_check_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.gpu", "--only", "nonsense"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 2
    assert "addresses, truth, limits" in done.stderr
