"""Whose slot is whose: after an exec, without /proc, and in the eyes of the node agent."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hami.nodeagent import processes, region
from hami.nodeagent.reclaim import reclaim
from hami.nodeagent.region_layout import ANONYMOUS_SLOT, Slot, Usage, UsageRow
from hami.nodeagent.regions import DeathCheck
from tests.support.gpu import MIB, OUT_OF_MEMORY, Client, Container, Machine

Compile = Callable[..., Path]
StartClient = Callable[..., Client]

LIMIT = 100 * MIB
NAMESPACE = Path("/proc/self/ns/pid").stat().st_ino


@pytest.fixture
def container(machine: Machine) -> Container:
    return machine.container(LIMIT)


def token_of(pid: int, namespace: int = NAMESPACE) -> int:
    """As ``process.h`` packs it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return pid << 42 | (namespace & 0xFFFFF) << 22 | int(fields[19]) & 0x3FFFFF


def write_slot(container: Container, index: int, *, token: int, used: int, pid: int = 0) -> None:
    """Make the usage file say that this owner of a slot uses that much of the first device."""
    with (container.directory / "usage").open("r+b") as file:

        def put(offset: int, layout: str, value: int) -> None:
            file.seek(offset)
            file.write(struct.pack(layout, value))

        start = Usage.slots.offset + index * ctypes.sizeof(Slot)
        put(start + Slot.owner.offset, "<Q", token)
        put(start + Slot.pid.offset, "<i", pid)
        put(start + Slot.pid_namespace.offset, "<I", NAMESPACE)
        put(start + Slot.rows.offset + UsageRow.used_bytes.offset, "<Q", used)
        put(Usage.active_words.offset, "<I", 1)
        put(Usage.active.offset, "<Q", 0b111)


def ended_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_everything_from_before_an_exec_is_given_back(
    container: Container, start_client: StartClient
) -> None:
    client = start_client(container, initialised=False)
    for index in (0, 2):  # its own, and one that it was just taking from a dead process
        write_slot(container, index, token=token_of(client.process.pid), used=LIMIT // 2)

    assert client.ask("init", 0) == (0,)

    assert client.ask("info") == (0, LIMIT, LIMIT)
    assert len(region.read_usage(container.directory).processes) == 1


def test_process_that_cannot_tell_who_it_is_shares_the_anonymous_slot(
    container: Container, start_client: StartClient, compile_program: Compile
) -> None:
    hidden = ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs none /proc; exec "$@"', "sh"]
    if subprocess.run([*hidden, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody hide /proc")
    nobody = container.start(*hidden, compile_program("client"))
    assert nobody.stdin is not None
    assert nobody.stdout is not None

    nobody.stdin.write(f"init 0\nalloc {LIMIT // 2}\n")
    nobody.stdin.flush()
    answers = [nobody.stdout.readline().split()[0] for _ in range(3)]

    assert answers == ["ready", "0", "0"]
    (process,) = region.read_usage(container.directory).processes
    assert (process.slot, process.devices[0].used_bytes) == (ANONYMOUS_SLOT, LIMIT // 2)
    assert start_client(container).ask("alloc", LIMIT // 2 + 1)[0] == OUT_OF_MEMORY
    nobody.kill()
    nobody.communicate()


def test_new_owner_is_not_taken_for_the_dead_one_before_it(container: Container) -> None:
    write_slot(container, 0, token=token_of(os.getpid()), used=MIB, pid=ended_pid())

    (process,) = region.read_usage(container.directory).processes

    assert (process.pid, process.pid_namespace) == (os.getpid(), NAMESPACE)


def test_owner_in_an_unknown_namespace_is_nobody_known(container: Container) -> None:
    write_slot(container, 0, token=token_of(os.getpid(), NAMESPACE + 1), used=MIB)

    (process,) = region.read_usage(container.directory).processes

    assert process.pid_namespace == 0
    assert not DeathCheck(processes.look())(process)


def test_process_that_started_after_the_look_at_all_processes_is_not_reclaimed(
    container: Container, start_client: StartClient
) -> None:
    earlier = processes.look()
    living, victim = start_client(container), start_client(container)
    for client in (living, victim):
        client.alloc(MIB)
    victim.process.kill()
    victim.process.wait()

    assert reclaim(container.directory, DeathCheck(earlier)) == 1

    (process,) = region.read_usage(container.directory).processes
    assert process.pid == living.process.pid
