"""The simulated driver alone: NVML's samples of utilisation, their periods, lag and options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from hami.sandbox.gpu import catalogue, node
from tests.shim.test_simulated_gpu import tell
from tests.support import cuda
from tests.support.gpu import ROOT, Client, Machine, wait_for

OBJECTS = ROOT / "tests/shim/programs/objects.py"
BUSY = """
kernel = function(3_600_000_000)
launch(kernel)
print("busy", flush=True)
input()
"""
NOT_SUPPORTED, NOT_FOUND = "error 3", "error 6"
SAMPLES = "[(p.pid, p.smUtil) for p in n.nvmlDeviceGetProcessUtilization(h(0), 0)]"


def start_busy(machine: Machine) -> int:
    """A process that has work for an hour; its pid."""
    process = cuda.begin(machine, BUSY)
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    return process.pid


def wait_for_samples(machine: Machine, expected: list[list[int]]) -> None:
    wait_for(lambda: tell(machine, SAMPLES) == [expected], f"utilisation is {expected}")


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_with_work_get_equal_percentages(machine: Machine, count: int) -> None:
    pids = [start_busy(machine) for _ in range(count)]

    wait_for_samples(machine, [[pid, 100 // count] for pid in pids])
    assert tell(
        machine,
        "n.nvmlDeviceGetUtilizationRates(h(0)).gpu",
        "n.nvmlDeviceGetUtilizationRates(h(1)).gpu",
        "n.nvmlDeviceGetProcessUtilization(h(1), 0)",
        "[(p.pid, p.smUtil) for p in n.nvmlDeviceGetProcessesUtilizationInfo(h(0), 0)]",
    ) == [100, 0, NOT_FOUND, [[pid, 100 // count] for pid in pids]]


def test_samples_are_of_whole_periods_and_given_once(tmp_path: Path) -> None:
    period = 3600 * 10**9
    machine = Machine.create(tmp_path, [catalogue.get("t4")], nvml_period_ns=period)
    cuda.run(machine, 'launch(function(1000)); cu("cuCtxSynchronize")')

    assert tell(machine, SAMPLES) == [NOT_FOUND]


def test_sample_is_not_seen_before_its_lag_nor_twice(tmp_path: Path) -> None:
    settings = {"nvml_period_ns": 50 * 10**6, "nvml_lag_ns": 100 * 10**6}
    machine = Machine.create(tmp_path, [catalogue.get("t4")], **settings)
    try:
        start_busy(machine)
        wait_for(lambda: tell(machine, SAMPLES) != [NOT_FOUND], "there is a sample")

        answers: list[Any] = tell(
            machine,
            "globals().update(time=__import__('time'))",
            "globals().update(s=n.nvmlDeviceGetProcessUtilization(h(0), 0)[0])",
            "(time.time() * 1e6 - s.timeStamp) >= 100_000",
            "n.nvmlDeviceGetProcessUtilization(h(0), int(s.timeStamp) + 10**9)",
        )
    finally:
        machine.stop()

    assert answers == [None, None, True, NOT_FOUND]


def test_dead_process_has_no_sample(machine: Machine) -> None:
    victim = cuda.begin(machine, BUSY)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "busy\n"
    heir = start_busy(machine)
    wait_for_samples(machine, [[victim.pid, 50], [heir, 50]])

    victim.kill()
    victim.wait()

    wait_for_samples(machine, [[heir, 100]])


def test_utilisation_of_processes_may_be_unsupported(machine: Machine) -> None:
    start_busy(machine)
    node.set_nvml(machine.state, process_utilization=False)

    assert tell(
        machine,
        "n.nvmlDeviceGetProcessUtilization(h(0), 0)",
        "n.nvmlDeviceGetProcessesUtilizationInfo(h(0), 0)",
        "n.nvmlDeviceGetName(h(0))",
    ) == [NOT_SUPPORTED, NOT_SUPPORTED, "NVIDIA H100 80GB HBM3"]


def test_processes_go_by_their_pids_on_the_host_if_asked(machine: Machine) -> None:
    """In a pid namespace of its own, with its parent's /proc, a process has two of them."""
    words: list[str | Path] = [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        sys.executable,
        "-S",
        OBJECTS,
    ]
    listed = "[p.pid for p in n.nvmlDeviceGetComputeRunningProcesses_v3(h(0))]"
    with Client(words, machine.environment()) as client:
        assert client.ask("init", 0) == (0,)
        client.alloc(1)
        outside = Path(f"/proc/{client.process.pid}/task/{client.process.pid}/children")

        assert tell(machine, listed) == [[1]]
        node.set_nvml(machine.state, host_pids=True)
        assert tell(machine, listed) == [[int(outside.read_text())]]


def test_queries_can_be_slow(machine: Machine) -> None:
    node.set_nvml(machine.state, delay_ns=20 * 10**6)

    (took,) = tell(
        machine,
        "(t := __import__('time').monotonic(), n.nvmlDeviceGetName(h(0)),"
        " __import__('time').monotonic() - t >= 0.02)[2]",
    )

    assert took is True
