"""One GPU of this machine, real or simulated, and processes on it under the shim."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import pynvml

from hami.nodeagent import region
from hami.tools import rundir
from tests.support.gpu import ROOT, SHIM

MIB: Final = 2**20
START_SECONDS: Final = 120.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one question came to."""

    check: str
    what: str
    measured: object
    expected: object = None
    ok: bool | None = None
    """None: only measured, or not asked here."""
    note: str = ""


@dataclass(kw_only=True)
class Card:
    """A GPU, and a directory for regions."""

    uuid: str
    name: str
    memory_bytes: int
    simulated: bool
    directory: Path
    _regions: int = 0
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    @classmethod
    def first(cls, directory: Path) -> Self:
        """The first that the driver shows; ``HAMI_SIM_NODE`` says whether it is simulated."""
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        return cls(
            uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
            name=str(pynvml.nvmlDeviceGetName(handle)),
            memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            simulated=bool(os.environ.get("HAMI_SIM_NODE")),
            directory=directory,
        )

    def region(self, limit_bytes: int | None) -> Path:
        """A new region with this GPU."""
        self._regions += 1
        place = self.directory / f"region-{self._regions}"
        place.mkdir()
        device = region.RegionDevice(uuid=self.uuid, memory_limit_bytes=limit_bytes)
        region.create(place, devices=[device])
        return place

    def environment(self, place: Path | None = None) -> dict[str, str]:
        """This process's, on this GPU alone; with a region: under the shim."""
        plain = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": self.uuid,
            "PYTHONPATH": str(ROOT),
            rundir.DIRECTORY_ENV: str(self.directory / "runs"),
        }
        if place is None:
            return plain
        return {**plain, "LD_PRELOAD": str(SHIM), "HAMI_REGION_DIR": str(place)}

    def worker(self, *words: object, place: Path | None = None) -> list[dict[str, Any]]:
        """Everything that a worker says."""
        done = subprocess.run(
            [*WORKER, *map(str, words)], env=self.environment(place), capture_output=True,
            text=True, timeout=START_SECONDS, check=False, cwd=ROOT,
        )  # fmt: skip
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        if not lines:
            raise RuntimeError(f"worker {words}: {done.stderr.strip()[-500:]}")
        return lines

    def start(self, command: Sequence[str], place: Path | None = None) -> subprocess.Popen[str]:
        """A process that goes on; ``stop`` ends it."""
        process = subprocess.Popen(
            command, env=self.environment(place), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=ROOT,
        )  # fmt: skip
        self._started.append(process)
        return process

    def start_worker(self, *words: object, place: Path | None = None) -> subprocess.Popen[str]:
        """A worker that goes on."""
        return self.start([*WORKER, *map(str, words)], place)

    def stop(self) -> None:
        """End everything that was started here."""
        while self._started:
            process = self._started.pop()
            process.kill()
            process.communicate()

    def measured_bytes(self, pid: int) -> int:
        """What the driver says that a process holds."""
        handle = pynvml.nvmlDeviceGetHandleByUUID(self.uuid)
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        return sum(met.usedGpuMemory or 0 for met in processes if met.pid == pid)


WORKER: Final = (sys.executable, "-P", "-m", "tests.gpu.worker")


def limited(*options: str, command: Sequence[str] = WORKER) -> list[str]:
    """The command line of a program under ``hami run``."""
    return [sys.executable, "-P", "-m", "hami", "run", "--gpu", "0", *options, "--", *command]


def said(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The next thing that a worker says."""
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def hooks() -> list[tuple[str, int]]:
    """What programs ask cuGetProcAddress for, of all that the shim intercepts."""
    text = (ROOT / "hami/shim/src/hooks.def").read_text(encoding="utf-8")
    rows = re.findall(r'^HAMI_HOOK\(CUDA, \w+, "(\w+)", (\d+),', text, re.MULTILINE)
    return sorted({(symbol, int(version)) for symbol, version in rows})
