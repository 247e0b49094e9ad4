"""What the shim costs: nanoseconds a driver call, with and without it.

    python -m tests.bench.bench_shim [--rounds N] [--json FILE]

Two processes, one with the shim, take turns round by round, so that whatever else the machine does
falls on both. Shown are medians. The stub driver's calls cost next to nothing: its difference is
the shim's own cost. The simulated driver's calls cost what a real system's cheapest ones do.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import native
from hami.nodeagent import region
from hami.sandbox.gpu import catalogue, node
from tests.bench import harness
from tests.support.gpu import SHIM

PROGRAMS = Path(__file__).parent / "programs"
LIVE_POINTERS = (0, 10_000, 1_000_000)
CALLS = {"alloc": 100_000, "info": 100_000}
LIMIT = 40 * 2**30
STUB_UUID = "GPU-11111111-1111-1111-1111-111111111111"


@dataclass(frozen=True)
class Figure:
    driver: str
    call: str
    live_pointers: int
    plain_ns: float
    shim_ns: float

    @property
    def added_ns(self) -> float:
        return self.shim_ns - self.plain_ns

    @property
    def ratio(self) -> float:
        return self.shim_ns / self.plain_ns


class Bench:
    """A running shim_bench program."""

    def __init__(self, program: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def order(self, what: str, count: int) -> float:
        pipe_in, pipe_out = (_open(pipe) for pipe in (self.process.stdin, self.process.stdout))
        pipe_in.write(f"{what} {count}\n")
        pipe_in.flush()
        return float(pipe_out.readline())

    def stop(self) -> None:
        self.process.communicate()


def _open(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def prepare(directory: Path) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """For each driver the environments without and with the shim."""
    stub = directory / "stub" / "libcuda.so.1"
    stub.parent.mkdir()
    native.compile_c(
        stub,
        [PROGRAMS / "stub_cuda.c"],
        ["-shared", "-Wl,-Bsymbolic", "-Wl,-soname,libcuda.so.1", "-fvisibility=default"],
    )
    (uuid,) = node.create_node_state(directory / "gpus", [catalogue.get("h100")], node_name="bench")
    drivers = {
        "stub": (STUB_UUID, {"LD_LIBRARY_PATH": str(stub.parent)}),
        "simulated": (
            uuid,
            {"LD_LIBRARY_PATH": str(node.LIBRARY_DIR), node.NODE_ENV: str(directory / "gpus")},
        ),
    }
    environments = {}
    for name, (device, plain) in drivers.items():
        place = directory / f"region-{name}"
        place.mkdir()
        region.create(place, devices=[region.RegionDevice(uuid=device, memory_limit_bytes=LIMIT)])
        shim = {**plain, "LD_PRELOAD": str(SHIM), "HAMI_REGION_DIR": str(place)}
        environments[name] = (plain, shim)
    return environments


def measure(
    driver: str, program: Path, environments: tuple[dict[str, str], dict[str, str]], rounds: int
) -> list[Figure]:
    """All figures of one driver; the two processes take turns."""
    pair = [Bench(program, environment) for environment in environments]
    figures = []
    held = 0
    for live in LIVE_POINTERS:
        for bench in pair:
            bench.order("live", live - held)
        held = live
        for call, count in CALLS.items():
            times = [[bench.order(call, count) for bench in pair] for _ in range(rounds)]
            plain, shim = (statistics.median(column) for column in zip(*times, strict=True))
            figures.append(Figure(driver, call, live, plain, shim))
    for bench in pair:
        bench.stop()
    return figures


def run(rounds: int) -> list[Figure]:
    native.build()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        program = directory / "shim_bench"
        native.compile_c(program, [PROGRAMS / "shim_bench.c"], [])
        return [
            figure
            for driver, environments in prepare(directory).items()
            for figure in measure(driver, program, environments, rounds)
        ]


def as_row(figure: Figure) -> dict[str, Any]:
    return {**asdict(figure), "added_ns": figure.added_ns, "ratio": figure.ratio}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    harness.add_json(parser)
    options = parser.parse_args()
    figures = run(options.rounds)
    harness.write_json(options.json, [as_row(figure) for figure in figures])
    print(
        f"{'driver':10} {'call':8} {'live':>9} {'plain ns':>9} {'shim ns':>9} {'added':>7} {'x':>6}"
    )
    for figure in figures:
        print(
            f"{figure.driver:10} {figure.call:8} {figure.live_pointers:9d} {figure.plain_ns:9.1f} "
            f"{figure.shim_ns:9.1f} {figure.added_ns:7.1f} {figure.ratio:6.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
