"""Real processes on the simulated GPU get the device time that is granted: no more, and in turn.

What is compared are sums of device time, never speeds: a busy machine makes processes late, and
what was granted grows meanwhile.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import native
from hami.nodeagent import region
from hami.nodeagent.controlfile import ControlFile
from hami.nodeagent.region import CoreMode
from hami.sandbox.gpu import node
from tests.support import pacing
from tests.support.gpu import Client, Container, Machine, wait_for
from tests.support.pacing import BURST_NS, MS, PIECE_NS, PLENTY, SECOND

Compile = Callable[..., Path]
Start = Callable[..., Client]

PERCENT = SECOND // 100
CRAWL = SECOND // 1000
"""The least rate there is."""


@pytest.fixture
def container(machine: Machine) -> Container:
    return machine.container(None)


@pytest.fixture
def control(container: Container) -> Iterator[ControlFile]:
    with ControlFile(container.directory) as control:
        yield control


@pytest.fixture
def start_pacer(compile_program: Compile, container: Container) -> Iterator[Start]:
    """Starts processes that launch a kernel of so many microseconds."""
    program = compile_program("pacer")
    clients: list[Client] = []

    def start(microseconds: int, where: Container | None = None, ordinal: int = 0) -> Client:
        client = Client(program, (where or container).environment)
        clients.append(client)
        assert client.ask("init", ordinal) == (0,)
        assert client.ask("kernel", microseconds) == (0,)
        return client

    yield start
    for client in clients:
        client.stop()


def busy_ns(machine: Machine, gpu: int = 0) -> int:
    """Device time of all that was ever launched."""
    return sum(process.busy_ns for process in node.read_processes(machine.state, gpu))


@pytest.mark.parametrize(
    ("percent", "microseconds", "launches"),
    [(10, 5, 8000), (10, 500, 200), (25, 50_000, 6), (50, 20, 20_000), (90, 1000, 600)],
)
def test_share_is_kept(
    machine: Machine,
    container: Container,
    control: ControlFile,
    start_pacer: Start,
    percent: int,
    microseconds: int,
    launches: int,
) -> None:
    client = start_pacer(microseconds)
    pacing.pace(control, percent * PERCENT)

    assert client.ask("launch", launches) == (0,)

    granted = pacing.granted_ns(control)
    busy, spent = busy_ns(machine), pacing.spent_ns(container.directory)
    assert busy == launches * microseconds * 1000
    unknown = 2 * microseconds * 1000
    assert busy <= granted + 2 * BURST_NS + PIECE_NS + unknown
    tolerance = 0.03 if microseconds >= 100 else 0.1  # of what ends while the host still works
    assert abs(spent - busy) <= tolerance * busy + PIECE_NS + unknown


def test_pieces_never_add_up_to_more_than_was_granted(compile_program: Compile) -> None:
    """The claim of docs/region.md, looked at from outside, while the rate changes."""
    program = compile_program(
        "taker",
        f"-I{native.ROOT / native.SHIM}",
        *(str(native.ROOT / native.SHIM / f"{name}.c") for name in ("bucket", "cost")),
    )

    done = subprocess.run(
        [program, "4", "5", "25"], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split(", ") == [f"{4 * 5 * 25} takes", "0 violations", "0 unaccounted\n"]


def test_threads_and_processes_share_one_grant(
    machine: Machine, container: Container, control: ControlFile, start_pacer: Start
) -> None:
    clients = [start_pacer(100) for _ in range(3)]
    pacing.pace(control, 40 * PERCENT)

    for client in clients:
        client.tell("threads", 4, 500)
    assert [client.answer() for client in clients] == [(0,)] * 3

    granted = pacing.granted_ns(control)
    assert busy_ns(machine) == 3 * 4 * 500 * 100_000
    assert busy_ns(machine) <= granted + 2 * BURST_NS + 12 * PIECE_NS + 3 * 2 * 100_000
    assert pacing.waited_ns(container.directory) > 0


def test_long_and_short_kernels_take_turns(
    container: Container, control: ControlFile, start_pacer: Start
) -> None:
    lengths = (5, 50, 500, 1000, 2000, 5000, 10_000, 20_000)
    clients = [start_pacer(length) for length in lengths]
    pacing.pace(control, 30 * PERCENT)
    for client in clients:
        assert client.ask("loop") == (0,)

    def turns() -> list[float]:
        """How often each was let through: a turn is a piece, or a launch that is longer."""
        spent = {
            p.pid: p.devices[0].spent_ns for p in region.read_usage(container.directory).processes
        }
        return [
            spent.get(client.process.pid, 0)
            / max(min(PIECE_NS, 128 * length * 1000), length * 1000)
            for client, length in zip(clients, lengths, strict=True)
        ]

    wait_for(lambda: max(turns()) >= 30, "thirty turns of somebody")
    taken = turns()
    assert min(taken) >= max(taken) / 5, taken


def test_waiter_feels_a_new_rate_at_once(control: ControlFile, start_pacer: Start) -> None:
    client = start_pacer(100_000)
    pacing.pace(control, PLENTY)
    assert client.ask("launch", 3) == (0,)
    pacing.pace(control, CRAWL)
    client.tell("launch", 3)  # five minutes at this rate
    pacing.wait_until_held(client)

    pacing.pace(control, 90 * PERCENT)

    assert client.answer() == (0,)


def test_waiter_goes_on_when_the_limit_is_lifted(
    container: Container, control: ControlFile, start_pacer: Start
) -> None:
    client = start_pacer(100_000)
    pacing.pace(control, PLENTY)
    assert client.ask("launch", 3) == (0,)
    pacing.pace(control, CRAWL)
    client.tell("launch", 5)
    pacing.wait_until_held(client)
    spent = pacing.spent_ns(container.directory)

    control.set_core_mode(0, CoreMode.OFF)

    assert client.answer() == (0,)
    assert pacing.spent_ns(container.directory) <= spent + 100 * MS
    assert client.ask("launch", 5) == (0,)


def test_blocked_launches_wait_until_they_are_paced_again(
    machine: Machine, control: ControlFile, start_pacer: Start
) -> None:
    client = start_pacer(1000)
    pacing.pace(control, 50 * PERCENT)
    assert client.ask("launch", 20) == (0,)
    busy = busy_ns(machine)
    control.set_core_mode(0, CoreMode.BLOCK)
    control.beat(time.monotonic_ns() + 3600 * SECOND)  # an agent that lives on

    client.tell("launch", 20)
    pacing.wait_until_held(client)
    assert busy_ns(machine) == busy

    control.set_core_mode(0, CoreMode.LIMIT)
    assert client.answer() == (0,)


def test_block_of_a_dead_agent_is_a_limit(
    machine: Machine, control: ControlFile, start_pacer: Start
) -> None:
    client = start_pacer(1000)
    pacing.pace(control, 50 * PERCENT)
    control.set_core_mode(0, CoreMode.BLOCK)
    control.beat(max(time.monotonic_ns() - 11 * SECOND, 1))

    assert client.ask("launch", 50) == (0,)

    assert busy_ns(machine) <= pacing.granted_ns(control) + 2 * BURST_NS + PIECE_NS


def test_suspended_container_waits_for_ever_and_resumes(
    machine: Machine, control: ControlFile, start_pacer: Start
) -> None:
    client = start_pacer(1000)
    pacing.pace(control, 50 * PERCENT)
    control.beat(1)  # whatever became of the agent
    control.set_core_mode(0, CoreMode.SUSPEND)

    client.tell("launch", 1)
    pacing.wait_until_held(client)
    assert busy_ns(machine) == 0

    control.set_core_mode(0, CoreMode.OFF)
    assert client.answer() == (0,)


def test_limit_of_nothing_still_moves(
    container: Container, control: ControlFile, start_pacer: Start
) -> None:
    client = start_pacer(5)
    pacing.pace(control, 0, burst_ns=0)

    assert client.ask("launch", 30) == (0,)

    assert pacing.waited_ns(container.directory) > 0


def test_limit_without_a_grant_limits_nothing(
    container: Container, control: ControlFile, start_pacer: Start
) -> None:
    client = start_pacer(1000)
    control.set_core_mode(0, CoreMode.LIMIT)

    assert client.ask("launch", 100) == (0,)

    assert pacing.spent_ns(container.directory) == 0


@pytest.mark.parametrize("debited", [2**64 - 1, 2**63, 2**64 - 10])
def test_scribbled_bucket_does_not_hold_a_program_for_ever(
    container: Container, control: ControlFile, start_pacer: Start, debited: int
) -> None:
    client = start_pacer(1000)
    pacing.pace(control, CRAWL)
    pacing.scribble_bucket(container.directory, debited)
    client.tell("launch", 5)
    pacing.wait_until_held(client)

    assert (
        pacing.read_bucket(container.directory)
        <= pacing.granted_ns(control) + 61 * CRAWL + BURST_NS
    )
    pacing.pace(control, SECOND)  # a minute of the old grant is no time of the new one
    assert client.answer() == (0,)


def test_killed_waiter_holds_up_nobody(
    container: Container, control: ControlFile, start_pacer: Start
) -> None:
    doomed, heir = start_pacer(20_000), start_pacer(20_000)
    pacing.pace(control, PLENTY)
    for client in (doomed, heir):
        assert client.ask("launch", 3) == (0,)
    pacing.pace(control, CRAWL)
    doomed.tell("launch", 5)
    pacing.wait_until_held(doomed)
    heir.tell("launch", 5)
    pacing.wait_until_held(heir)

    doomed.process.kill()
    pacing.pace(control, 50 * PERCENT)

    assert heir.answer() == (0,)


def test_forked_child_takes_from_the_grant_under_its_own_name(
    container: Container, control: ControlFile, start_pacer: Start
) -> None:
    client = start_pacer(1000)
    pacing.pace(control, 80 * PERCENT)
    assert client.ask("launch", 50) == (0,)
    assert client.ask("fork") == (0,)

    assert client.ask("init", 0) == (0,)
    assert client.ask("kernel", 1000) == (0,)
    assert client.ask("launch", 50) == (0,)

    spent = [p.devices[0].spent_ns for p in region.read_usage(container.directory).processes]
    assert len(spent) == 2
    assert all(abs(one - 50 * MS) <= 6 * MS for one in spent), spent
    client.tell("end")
    assert client.answer() == (0,)
    assert client.ask("launch", 50) == (0,)


def test_destroyed_context_takes_its_events_along(
    machine: Machine, container: Container, control: ControlFile, start_pacer: Start
) -> None:
    client = start_pacer(1000)
    pacing.pace(control, 80 * PERCENT)

    for _ in range(5):
        assert client.ask("queue", 10) == (0,)
        assert client.ask("reset", 0) == (0,)
        assert client.ask("launch", 10) == (0,)

    assert pacing.spent_ns(container.directory) >= 0.7 * busy_ns(machine)


def test_each_device_has_a_grant_of_its_own(machine: Machine, start_pacer: Start) -> None:
    pair = machine.container(None, None, name="pair")
    free, held = start_pacer(1000, pair, 0), start_pacer(1000, pair, 1)
    with ControlFile(pair.directory) as control:
        pacing.pace(control, CRAWL, device=1)
        held.tell("launch", 50)
        pacing.wait_until_held(held)

        assert free.ask("launch", 50) == (0,)

        assert pacing.spent_ns(pair.directory, 0) == 0
        pacing.pace(control, PLENTY, device=1)
        assert held.answer() == (0,)


def test_submissions_are_noted_once_a_tick(
    container: Container, control: ControlFile, start_pacer: Start
) -> None:
    client = start_pacer(1)

    def noted() -> int:
        (process,) = region.read_usage(container.directory).processes
        return process.last_submit_ns

    control.beat(time.monotonic_ns())
    assert client.ask("launch", 1) == (0,)
    first = noted()
    assert first > 0
    assert client.ask("launch", 100) == (0,)
    assert noted() == first

    def noted_anew() -> bool:
        control.beat(time.monotonic_ns())
        return client.ask("launch", 1) == (0,) and noted() > first

    wait_for(noted_anew, "a later submission is noted")
