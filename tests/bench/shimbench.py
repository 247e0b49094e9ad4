"""What the benchmarks of the shim share: a driver that costs nothing, regions, and turns.

A figure is the difference between two processes, one with the shim, that take turns round by
round: whatever else the machine does falls on both. Shown is the median, and beside it the tenth
of a hundred: what it costs while nobody else wants the core's other half.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import native
from hami.nodeagent import region
from hami.nodeagent.region_layout import Slot, Usage
from tests.support.gpu import SHIM

PROGRAMS = Path(__file__).parent / "programs"
LIMIT = 2**50
STUB_UUID = "GPU-11111111-1111-1111-1111-111111111111"


@dataclass(frozen=True)
class Bed:
    """A directory with the stub driver, programs and regions."""

    directory: Path

    @classmethod
    def make(cls, directory: Path) -> Self:
        native.build()
        stub = directory / "stub" / "libcuda.so.1"
        stub.parent.mkdir()
        native.compile_c(
            stub,
            [PROGRAMS / "stub_cuda.c"],
            ["-shared", "-Wl,-Bsymbolic", "-Wl,-soname,libcuda.so.1", "-fvisibility=default"],
        )
        return cls(directory)

    def program(self, name: str) -> Path:
        """The compiled program of that name."""
        target = self.directory / name
        if not target.exists():
            native.compile_c(target, [PROGRAMS / f"{name}.c"], [])
        return target

    @property
    def plain(self) -> dict[str, str]:
        """The environment without the shim."""
        return {"LD_LIBRARY_PATH": str(self.directory / "stub")}

    def with_shim(self, name: str, *, slots: int = 1) -> dict[str, str]:
        """The environment with it, and a new region in which so many slots are in use."""
        place = self.directory / f"region-{name}"
        place.mkdir()
        device = region.RegionDevice(uuid=STUB_UUID, memory_limit_bytes=LIMIT)
        region.create(place, devices=[device])
        _fill(place / region.USAGE, slots - 1)
        return {**self.plain, "LD_PRELOAD": str(SHIM), "HAMI_REGION_DIR": str(place)}


def _fill(usage: Path, count: int) -> None:
    """Processes of other pid namespaces, which nobody here can call dead."""
    with usage.open("r+b") as file:
        for number in range(count):
            slot = Slot(owner=(number + 1) << 42 | 1 << 22 | 1, pid_namespace=1)
            slot.rows[0].used_bytes = 2**20
            file.seek(Usage.slots.offset + number * ctypes.sizeof(Slot))
            file.write(bytes(slot))
        words = [2 ** max(0, min(64, count - 64 * word)) - 1 for word in range(16)]
        file.seek(Usage.active.offset)
        file.write(b"".join(word.to_bytes(8, "little") for word in words))
        file.seek(Usage.active_words.offset)
        file.write(sum(1 << i for i, word in enumerate(words) if word).to_bytes(4, "little"))


class Ordered:
    """A program that obeys one order a line and answers each with a number."""

    def __init__(self, program: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [program],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def order(self, what: str, count: int) -> float:
        """Nanoseconds a call."""
        pipe_in, pipe_out = (_open(pipe) for pipe in (self._process.stdin, self._process.stdout))
        pipe_in.write(f"{what} {count}\n")
        pipe_in.flush()
        return float(pipe_out.readline())

    def stop(self) -> None:
        """End it."""
        self._process.communicate()


def _open(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def turns(pair: Sequence[Ordered], what: str, count: int, rounds: int) -> dict[str, float]:
    """What a call takes without and with the shim."""
    times = [[ordered.order(what, count) for ordered in pair] for _ in range(rounds)]
    plain, shim = (statistics.median(column) for column in zip(*times, strict=True))
    added = [row[1] - row[0] for row in times]
    tenth = statistics.quantiles([*added, *added], n=10, method="inclusive")[0]
    return {
        "plain_ns": round(plain, 1),
        "shim_ns": round(shim, 1),
        "added_ns": round(statistics.median(added), 1),
        "added_p10_ns": round(tenth, 1),
    }
