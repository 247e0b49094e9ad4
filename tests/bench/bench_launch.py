"""What a launch costs more with the shim: nanoseconds over a driver that does next to nothing.

    python -m tests.bench.bench_launch [--rounds N] [--json FILE]

Processes in every situation take turns round by round, so that whatever else the machine does falls
on all of them. Each round times batches of launches; p10, p50 and p99 are over the batches of all
rounds. p10 is what it costs while nobody else wants the core's other half.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final

import native
from hami.nodeagent import region
from hami.nodeagent.controlfile import ControlFile
from tests.bench import harness
from tests.support.gpu import SHIM

PROGRAMS: Final = Path(__file__).parent / "programs"
STUB_UUID: Final = "GPU-11111111-1111-1111-1111-111111111111"
CALLS: Final = {"kernel": "cuLaunchKernel", "ex": "cuLaunchKernelEx", "graph": "cuGraphLaunch"}
SITUATIONS: Final = {
    "none": "no shim",
    "off": "shim, no limits asked for",
    "memory": "memory limit only",
    "idle": "core limit that does not hold now",
    "active": "core limit holds, credit at hand",
}
LOADS: Final = ((1, 1), (2, 1), (1, 2), (1, 4), (2, 4))
"""Threads a process, processes."""
BATCHES: Final = 40
LAUNCHES: Final = 5_000
TICK_SECONDS: Final = 0.1
PLENTY: Final = 2**40 - 1


class Bench:
    """A running launch_bench program."""

    def __init__(self, program: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, call: str, threads: int) -> None:
        pipe = _open(self.process.stdin)
        pipe.write(f"{call} {threads} {BATCHES} {LAUNCHES}\n")
        pipe.flush()

    def answer(self) -> list[float]:
        return [float(word) for word in _open(self.process.stdout).readline().split()]

    def stop(self) -> None:
        self.process.communicate()


def _open(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def build_stub(directory: Path) -> Path:
    """The directory of a libcuda.so.1 whose calls do nothing."""
    stub = directory / "stub" / "libcuda.so.1"
    stub.parent.mkdir()
    native.compile_c(
        stub,
        [PROGRAMS / "stub_cuda.c"],
        ["-shared", "-Wl,-Bsymbolic", "-Wl,-soname,libcuda.so.1", "-fvisibility=default"],
    )
    return stub.parent


@contextmanager
def ticking(control: ControlFile, mode: region.CoreMode) -> Iterator[None]:
    """The pulse of a governor, and a grant that is never used up."""
    now = time.monotonic_ns()
    control.set_pace(0, ns_per_second=PLENTY, burst_ns=10**7, now_ns=now)
    control.set_core_mode(0, mode)
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(TICK_SECONDS):
            control.beat(time.monotonic_ns())

    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        yield
    finally:
        ended.set()
        ticker.join()


def prepare(directory: Path, stack: ExitStack) -> dict[str, dict[str, str]]:
    """The environment of each situation."""
    plain = {"LD_LIBRARY_PATH": str(build_stub(directory))}
    environments = {"none": plain, "off": {**plain, "LD_PRELOAD": str(SHIM)}}
    for name in ("memory", "idle", "active"):
        place = directory / name
        place.mkdir()
        devices = [region.RegionDevice(uuid=STUB_UUID, memory_limit_bytes=2**30)]
        region.create(place, devices=devices)
        environments[name] = {**environments["off"], "HAMI_REGION_DIR": str(place)}
        if name != "memory":
            control = stack.enter_context(ControlFile(place))
            mode = region.CoreMode.LIMIT if name == "active" else region.CoreMode.OFF
            stack.enter_context(ticking(control, mode))
    return environments


def measure(
    program: Path, environments: dict[str, dict[str, str]], load: tuple[int, int], rounds: int
) -> list[dict[str, Any]]:
    """Every call in every situation under one load; the situations take turns."""
    threads, processes = load
    benches = {
        name: [Bench(program, environment) for _ in range(processes)]
        for name, environment in environments.items()
    }
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for call in CALLS:
            for name, group in benches.items():
                for bench in group:
                    bench.tell(call, threads)
                for bench in group:
                    times.setdefault((call, name), []).extend(bench.answer())
    for group in benches.values():
        for bench in group:
            bench.stop()
    return [
        _row(call, name, load, batch, times[(call, "none")])
        for (call, name), batch in times.items()
    ]


def _row(
    call: str, name: str, load: tuple[int, int], batch: Sequence[float], plain: Sequence[float]
) -> dict[str, Any]:
    cuts, without = (
        statistics.quantiles(times, n=100, method="inclusive") for times in (batch, plain)
    )
    return {
        "call": CALLS[call],
        "situation": SITUATIONS[name],
        "threads": load[0],
        "processes": load[1],
        "p10_ns": round(cuts[9], 2),
        "p50_ns": round(cuts[49], 2),
        "p99_ns": round(cuts[98], 2),
        "added_p10_ns": round(cuts[9] - without[9], 2),
        "added_p50_ns": round(cuts[49] - without[49], 2),
    }


def run(rounds: int) -> list[dict[str, Any]]:
    native.build()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        program = directory / "launch_bench"
        native.compile_c(program, [PROGRAMS / "launch_bench.c"], [])
        environments = prepare(directory, stack)
        return [row for load in LOADS for row in measure(program, environments, load, rounds)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    harness.add_json(parser)
    options = parser.parse_args()
    figures = run(options.rounds)
    harness.write_json(options.json, figures)
    harness.print_rows(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
