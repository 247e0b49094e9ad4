"""Many threads, many processes, and the sudden death of any of them."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hami.nodeagent import region
from hami.nodeagent.reclaim import reclaim
from hami.nodeagent.region_layout import ANONYMOUS_SLOT
from hami.sandbox.gpu import catalogue
from tests.support.gpu import MIB, OUT_OF_MEMORY, Client, Container, Machine, wait_for

Compile = Callable[..., Path]
StartClient = Callable[..., Client]

LIMIT = 400 * MIB


@pytest.fixture
def container(machine: Machine) -> Container:
    return machine.container(LIMIT)


@pytest.fixture
def exact(tmp_path: Path) -> Iterator[Container]:
    """A container on a device whose peak never counts the dead."""
    machine = Machine.create(tmp_path, [catalogue.get("h100")], exact_peaks=True)
    yield machine.container(LIMIT)
    machine.stop()


def test_racing_processes_and_threads_never_pass_the_limit(
    machine: Machine, container: Container, compile_program: Compile
) -> None:
    racer = compile_program("racer", "-pthread")

    racers = [
        container.start(racer, *map(str, (2, 200, seed, LIMIT // MIB // 4))) for seed in range(64)
    ]
    results = [process.communicate(timeout=60) for process in racers]

    assert [
        (process.returncode, err) for process, (_, err) in zip(racers, results, strict=True)
    ] == [(0, "")] * 64
    granted, refused = (sum(int(out.split()[i]) for out, _ in results) for i in (0, 1))
    assert (granted > 1000, refused > 100) == (True, True)
    assert LIMIT * 0.9 < machine.peak_bytes() <= LIMIT
    assert container.used_bytes() == 0


def test_exactly_one_of_two_requests_wins_that_fit_only_alone(
    container: Container, start_client: StartClient
) -> None:
    first, second = start_client(container), start_client(container)

    for _ in range(200):
        for client in (first, second):
            client.tell("alloc", LIMIT * 2 // 3)
        answers = [first.answer(), second.answer()]
        assert sorted(result for result, _ in answers) == [0, OUT_OF_MEMORY]
        for client, (result, address) in zip((first, second), answers, strict=True):
            if result == 0:
                assert client.ask("free", address) == (0,)


@pytest.mark.parametrize("threads", [2, 8, 32])
def test_as_many_threads_win_as_fit(
    container: Container, start_client: StartClient, threads: int
) -> None:
    client = start_client(container)
    share = LIMIT // (threads // 2)

    for _ in range(20):
        assert client.ask("threads", threads, share) == (0, threads // 2)
        assert client.ask("reset") == (0,)


def test_as_many_processes_win_as_fit(container: Container, compile_program: Compile) -> None:
    crowd = compile_program("crowd")

    for _ in range(10):
        done = container.run(crowd, "16", str(LIMIT // 5))
        assert done.stdout.split() == ["5", "11"]


def test_killed_process_leaves_its_memory_to_the_next(
    container: Container, start_client: StartClient
) -> None:
    victim, heir = start_client(container), start_client(container)
    victim.alloc(LIMIT)
    assert heir.ask("alloc", 1)[0] == OUT_OF_MEMORY

    victim.process.kill()
    victim.process.wait()

    assert heir.ask("alloc", LIMIT)[0] == 0


def test_zombie_holds_no_memory(container: Container, start_client: StartClient) -> None:
    victim, heir = start_client(container), start_client(container)
    victim.alloc(LIMIT)

    victim.process.kill()  # and nobody waits for it: it stays a zombie

    def heir_gets_it() -> bool:
        return heir.ask("alloc", LIMIT)[0] == 0

    wait_for(heir_gets_it, "the zombie's memory is granted")


def test_memory_of_a_killed_process_shows_as_free_again(
    container: Container, start_client: StartClient
) -> None:
    victim, witness = start_client(container), start_client(container)
    victim.alloc(LIMIT)
    assert witness.ask("info") == (0, 0, LIMIT)

    victim.process.kill()
    victim.process.wait()

    wait_for(lambda: witness.ask("info") == (0, LIMIT, LIMIT), "the memory shows as free")


def test_process_that_ends_without_freeing_is_forgotten(
    container: Container, start_client: StartClient
) -> None:
    leaver = start_client(container)
    leaver.alloc(LIMIT)
    leaver.tell("exit", 0)
    leaver.process.wait()

    assert start_client(container).ask("alloc", LIMIT)[0] == 0


def test_stopped_process_keeps_its_memory_and_stops_nobody_else(
    container: Container, start_client: StartClient
) -> None:
    stopped, other = start_client(container), start_client(container)
    stopped.alloc(LIMIT // 2)

    stopped.process.send_signal(signal.SIGSTOP)

    assert other.ask("alloc", LIMIT // 2 + 1)[0] == OUT_OF_MEMORY
    assert other.ask("alloc", LIMIT // 2)[0] == 0
    stopped.process.send_signal(signal.SIGCONT)


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_while_processes_are_killed_at_random(
    exact: Container, compile_program: Compile
) -> None:
    racer = compile_program("racer", "-pthread")
    chance = random.Random(20261123)
    deadline = time.monotonic() + 8
    racers: list[subprocess.Popen[str]] = []
    killed = 0

    while time.monotonic() < deadline:
        while len(racers) < 6:
            arguments = (3, 10**6, chance.randrange(10**6), LIMIT // MIB // 3)
            racers.append(exact.start(racer, *map(str, arguments)))
        time.sleep(chance.uniform(0, 0.02))
        victim = racers.pop(chance.randrange(len(racers)))
        victim.kill()
        victim.communicate()
        killed += 1
    for process in racers:
        process.kill()
        process.communicate()

    assert killed > 50
    assert LIMIT * 0.9 < exact.machine.peak_bytes() <= LIMIT
    done = exact.run(racer, "1", "1", "1", "2")
    assert (done.returncode, exact.used_bytes()) == (0, 0)


@pytest.mark.slow
def test_more_processes_than_slots_share_the_limit(
    machine: Machine, container: Container, compile_program: Compile
) -> None:
    crowd = container.start(compile_program("crowd"), "1100", str(LIMIT // 1000))
    assert crowd.stdin is not None
    assert crowd.stdout is not None

    assert crowd.stdout.readline().split() == ["1000", "100"]

    processes = region.read_usage(container.directory).processes
    assert len([process for process in processes if process.slot != ANONYMOUS_SLOT]) == 1024
    assert container.used_bytes() == LIMIT // 1000 * 1000
    assert crowd.communicate(timeout=30)[1] == ""


def test_agent_can_empty_what_dead_processes_left(
    container: Container, start_client: StartClient
) -> None:
    victim, living = start_client(container), start_client(container)
    victim.alloc(5 * MIB)
    living.alloc(7 * MIB)
    victim.process.kill()
    victim.process.wait()

    emptied = reclaim(container.directory, lambda process: process.pid == victim.process.pid)

    assert emptied == 1
    assert container.used_bytes() == 7 * MIB
    assert reclaim(container.directory, lambda _: False) == 0


def test_forked_child_has_a_slot_of_its_own_and_inherits_no_charge(
    container: Container, start_client: StartClient
) -> None:
    client = start_client(container)
    inherited = client.alloc(100 * MIB)

    client.tell("fork")
    _, child_pid = client.ask("pid")

    assert child_pid != client.process.pid
    assert client.ask("init", 0) == (0,)
    assert client.ask("free", inherited) == (1,)
    assert client.ask("info") == (0, LIMIT - 100 * MIB, LIMIT)
    client.alloc(200 * MIB)
    used = {
        process.pid: process.devices[0].used_bytes
        for process in region.read_usage(container.directory).processes
    }
    assert used == {client.process.pid: 100 * MIB, child_pid: 200 * MIB}

    assert client.ask("exit", 7) == (7,)  # from here on the parent answers
    assert client.ask("free", inherited) == (0,)
    assert client.ask("alloc", LIMIT)[0] == 0


def test_forks_of_a_process_whose_threads_allocate_do_not_hang(
    container: Container, compile_program: Compile
) -> None:
    done = container.run(compile_program("forker", "-pthread"), "200")

    assert (done.returncode, done.stdout, done.stderr) == (0, "200 children\n", "")
    assert (
        container.used_bytes() == 0 or container.run(compile_program("forker"), "0").returncode == 0
    )


def test_executed_successor_starts_with_nothing(
    container: Container, start_client: StartClient
) -> None:
    client = start_client(container)
    client.alloc(LIMIT)

    client.exec_anew()

    assert client.ask("init", 0) == (0,)
    assert client.ask("info") == (0, LIMIT, LIMIT)
    assert client.ask("alloc", LIMIT)[0] == 0
    assert len(region.read_usage(container.directory).processes) == 1


def test_process_in_another_pid_namespace_is_not_taken_for_dead(
    container: Container, start_client: StartClient, compile_program: Compile
) -> None:
    nested = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*nested, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody make a pid namespace")
    outer = start_client(container)
    outer.alloc(LIMIT // 2)
    inner = container.start(*nested, str(compile_program("client")))
    assert inner.stdin is not None
    assert inner.stdout is not None

    inner.stdin.write(f"init 0\nalloc {LIMIT // 2 + 1}\nalloc {LIMIT // 2}\n")
    inner.stdin.flush()
    answers = [inner.stdout.readline().split()[0] for _ in range(4)]

    assert answers == ["ready", "0", "2", "0"]
    assert outer.ask("alloc", 1)[0] == OUT_OF_MEMORY
    inner.kill()
    inner.communicate()
