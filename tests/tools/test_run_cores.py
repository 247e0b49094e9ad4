"""``hami run --cores``: limits of compute, and the governor that runs of one user share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hami.nodeagent import region
from hami.nodeagent.controlfile import ControlFile
from hami.tools import rundir
from tests.support.gpu import Machine, wait_for
from tests.support.runs import beat, busy, directory_of, spin


def test_cores_are_limited_from_the_start(
    machine: Machine, runs: Path, compile_program: Callable[..., Path]
) -> None:
    process = spin(machine, compile_program("spinner"), "--cores", "30", "--policy", "force")

    with ControlFile(directory_of(runs, process)) as control:
        device = control.control.devices[0]
        assert device.core_limit_permille == 300
        assert device.core_mode == region.CoreMode.LIMIT
        assert device.grants[device.grant_sequence % 2].rate_ns_per_second > 0
        assert control.control.policy == region.Policy.FORCE


def test_runs_share_a_gpu_as_they_were_told(
    machine: Machine, runs: Path, compile_program: Callable[..., Path]
) -> None:
    program = compile_program("spinner")
    small, large = (spin(machine, program, "--cores", cores) for cores in ("30", "70"))
    wait_for(lambda: min(busy(machine).values()) > 5 * 10**8, "both have worked for a while")
    before = busy(machine)

    def worked() -> list[int]:
        now = busy(machine)
        return [now[process.pid] - before[process.pid] for process in (small, large)]

    wait_for(lambda: sum(worked()) > 4 * 10**9, "four seconds of device time")

    ratio = worked()[0] / worked()[1]
    assert 0.36 < ratio < 0.52, ratio  # 30 to 70


def test_the_lock_of_the_governor_passes_on(
    machine: Machine, runs: Path, compile_program: Callable[..., Path]
) -> None:
    program = compile_program("spinner")
    first, second = (spin(machine, program, "--cores", "50") for _ in range(2))
    left = directory_of(runs, second)
    wait_for(lambda: beat(directory_of(runs, first)) > 0 and beat(left) > 0, "one governs both")

    first.kill()
    first.communicate()
    wait_for(lambda: len(list(rundir.runs(runs))) == 1, "its directory was removed")
    last = beat(left)

    wait_for(lambda: beat(left) > last, "the other warden governs")
