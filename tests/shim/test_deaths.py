"""Death and standstill at every step by which memory changes hands."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import native
from hami.nodeagent import region
from hami.nodeagent.reclaim import reclaim
from hami.sandbox.gpu import catalogue
from tests.support.elf import Library
from tests.support.gpu import MIB, OUT_OF_MEMORY, SHIM, Client, Container, Machine, wait_for

StartClient = Callable[..., Client]

LIMIT = 400 * MIB
HALF = LIMIT // 2
BLOCK = 2 * MIB
"""What a driver takes at least."""

ATTACHING = ("start.begun", "claim.taken", "claim.emptied", "claim.named", "claim.active")
ATTACHED = ("start.attached", "charge.announced", "commit.begun", "commit.counted")
NOTHING_ANNOUNCED = (*ATTACHING, "start.attached")
FREEING = ("discharge.begun",)
REFUSED = ("withdraw.begun", "charge.refused")
RECLAIMING = ("reclaim.taken", "reclaim.emptied", "reclaim.inactive")


@pytest.fixture(scope="module")
def points() -> Path:
    """The shim with its test points."""
    return native.build_with_test_points()


@pytest.fixture
def container(tmp_path: Path, points: Path) -> Iterator[Container]:
    """On a device whose peak never counts the dead."""
    machine = Machine.create(tmp_path, [catalogue.get("h100")], exact_peaks=True)
    machine.shim = points
    yield machine.container(LIMIT)
    machine.stop()


def allocate_with(client: Client, size: int) -> Client:
    """Tell a fresh process to allocate; the context that it makes first is what attaches it."""
    client.tell(f"init 0\nalloc {size}")  # in one go: it may not live to read the second
    return client


def await_death(client: Client) -> None:
    assert client.process.wait(timeout=30) == -signal.SIGKILL


def test_shipped_library_knows_no_test_points(points: Path) -> None:
    assert b"HAMI_KILL_AT" in points.read_bytes()
    assert b"HAMI_KILL_AT" not in SHIM.read_bytes()
    assert Library(points).exported == Library(SHIM).exported


@pytest.mark.parametrize("point", ATTACHING + ATTACHED)
def test_killed_on_the_way_to_memory_a_process_leaves_no_charge(
    container: Container, start_client: StartClient, point: str
) -> None:
    witness = start_client(container)
    held = witness.alloc(HALF)
    victim = start_client(container, initialised=False, HAMI_KILL_AT=point)

    await_death(allocate_with(victim, HALF))

    assert witness.ask("alloc", HALF)[0] == 0
    assert witness.ask("alloc", 1)[0] == OUT_OF_MEMORY
    assert witness.ask("free", held) == (0,)
    assert container.used_bytes() == HALF
    assert container.machine.peak_bytes() == LIMIT


@pytest.mark.parametrize("point", FREEING + REFUSED)
def test_killed_when_memory_goes_back_a_process_leaves_no_charge(
    container: Container, start_client: StartClient, point: str
) -> None:
    witness = start_client(container)
    victim = start_client(container, HAMI_KILL_AT=point)
    address = victim.alloc(HALF)

    victim.tell(*(("free", address) if point in FREEING else ("alloc", HALF + 1)))
    await_death(victim)

    assert witness.ask("alloc", LIMIT)[0] == 0
    assert container.used_bytes() == LIMIT == container.machine.peak_bytes()


@pytest.mark.parametrize("point", RECLAIMING)
def test_killed_while_it_takes_over_from_the_dead_a_process_blocks_nobody(
    container: Container, start_client: StartClient, point: str
) -> None:
    witness = start_client(container)
    held = witness.alloc(BLOCK)
    dead = start_client(container)
    dead.alloc(HALF)
    dead.process.kill()
    dead.process.wait()
    heir = start_client(container, initialised=False, HAMI_KILL_AT=point)

    await_death(allocate_with(heir, LIMIT - BLOCK))

    assert witness.ask("alloc", LIMIT - BLOCK)[0] == 0
    assert witness.ask("free", held) == (0,)
    assert container.used_bytes() == LIMIT - BLOCK


@pytest.mark.parametrize("point", ATTACHING + ATTACHED)
def test_stopped_on_the_way_to_memory_a_process_blocks_nobody_for_long(
    container: Container, start_client: StartClient, point: str
) -> None:
    witness = start_client(container)
    stopped = start_client(container, initialised=False, HAMI_STOP_AT=point)

    allocate_with(stopped, HALF)
    pid = stopped.process.pid
    wait_for(lambda: state_of(pid) == "T", f"{point} is reached")

    result, address = witness.ask("alloc", HALF)
    assert result == (OUT_OF_MEMORY if point == "commit.counted" else 0)  # there it counts twice
    if result == 0:
        assert witness.ask("alloc", BLOCK)[0] == (0 if point in NOTHING_ANNOUNCED else 2)
        assert witness.ask("free", address) == (0,)
    os.kill(pid, signal.SIGCONT)
    assert (stopped.answer(), stopped.answer()[0]) == ((0,), 0)
    assert container.machine.peak_bytes() <= LIMIT


@pytest.mark.parametrize("point", RECLAIMING)
def test_stopped_while_it_takes_over_from_the_dead_a_process_blocks_nobody(
    container: Container, start_client: StartClient, point: str
) -> None:
    witness = start_client(container)
    witness.alloc(BLOCK)
    dead = start_client(container)
    dead.alloc(HALF)
    dead.process.kill()
    dead.process.wait()
    heir = start_client(container, initialised=False, HAMI_STOP_AT=point)

    allocate_with(heir, HALF)
    wait_for(lambda: state_of(heir.process.pid) == "T", f"{point} is reached")

    assert witness.ask("alloc", HALF - BLOCK)[0] == 0
    os.kill(heir.process.pid, signal.SIGCONT)
    assert (heir.answer(), heir.answer()[0]) == ((0,), 0)
    assert container.used_bytes() == LIMIT


def test_agent_can_tell_dead_from_living_whatever_step_they_are_at(
    container: Container, start_client: StartClient
) -> None:
    for point in ATTACHING + ATTACHED:
        victim = start_client(container, initialised=False, HAMI_KILL_AT=point)
        await_death(allocate_with(victim, MIB))
    living = start_client(container)
    living.alloc(MIB)

    reclaim(container.directory, lambda process: process.pid != living.process.pid)

    (process,) = region.read_usage(container.directory).processes
    assert process.pid == living.process.pid
    assert container.used_bytes() == MIB


def state_of(pid: int) -> str:
    """The letter of ``/proc/PID/stat``."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
