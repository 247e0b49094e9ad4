"""Where device memory is short: managed memory takes its place, if the region allows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hami.nodeagent.region import Flag
from hami.sandbox.gpu import catalogue, node
from tests.support.gpu import MIB, OUT_OF_MEMORY, Client, Machine

StartPooler = Callable[..., Client]

PLENTY = 2**40
PREFER_DEVICE = 3
"""CU_MEM_ADVISE_SET_PREFERRED_LOCATION, of the device."""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A node with a GPU of 1000 MiB."""
    small = replace(catalogue.get("h100"), memory_bytes=1024 * MIB, reserved_bytes=24 * MIB)
    machine = Machine.create(tmp_path, [small], exact_peaks=True)
    yield machine
    machine.stop()


def capacity(client: Client) -> int:
    return client.ask("info")[2]


def use(machine: Machine) -> node.GpuUse:
    return node.read_use(machine.state)[0]


# --- the simulated driver ---


def test_managed_memory_may_exceed_the_device_and_its_resident_part_may_not(
    machine: Machine, start_pooler: StartPooler
) -> None:
    plain = start_pooler(machine)
    device = capacity(plain)

    plain.value("managed", 2 * device)
    assert machine.used_bytes() == 0
    assert plain.ask("kernel", 1, 1)[0] == 0

    assert machine.used_bytes() == device
    assert use(machine).moved_bytes == 2 * device


def test_plain_memory_gets_its_room_from_managed_memory(
    machine: Machine, start_pooler: StartPooler
) -> None:
    first, second = start_pooler(machine), start_pooler(machine)
    device = capacity(first)
    first.value("managed", device)
    assert first.ask("kernel", 1, 1)[0] == 0

    second.value("alloc", device // 2)

    assert machine.used_bytes() == device
    assert use(machine).evicted_bytes == -(-(device // 2) // (2 * MIB)) * 2 * MIB


def test_what_prefers_the_device_stays_there_and_takes_the_place_of_other_memory(
    machine: Machine, start_pooler: StartPooler
) -> None:
    first, other = start_pooler(machine), start_pooler(machine)
    device = capacity(first)
    other.value("managed", device)
    assert other.ask("kernel", 1, 1)[0] == 0

    address = first.value("managed", device)
    assert first.ask("advise", address, device, PREFER_DEVICE) == (0,)
    assert first.ask("prefetch", address, device) == (0,)
    assert use(machine).evicted_bytes == device
    assert other.ask("kernel", 1, 1)[0] == 0
    assert use(machine).evicted_bytes == device

    before = use(machine).moved_bytes
    assert first.ask("kernel", 1, 1)[0] == 0
    assert use(machine).moved_bytes == before


def test_managed_memory_goes_with_its_pointer_its_context_and_its_process(
    machine: Machine, start_pooler: StartPooler
) -> None:
    client, witness = start_pooler(machine), start_pooler(machine)
    for ending in ("free", "reset", "kill"):
        address = client.value("managed", MIB)
        assert client.ask("prefetch", address, MIB) == (0,)
        assert machine.used_bytes() == MIB
        if ending == "free":
            assert client.ask("free", address) == (0,)
        elif ending == "reset":
            assert client.ask("reset") == (0,)
        else:
            client.stop()
            witness.value("alloc", capacity(witness))
            assert machine.used_bytes() == capacity(witness)
            return
        assert machine.used_bytes() == 0
        assert client.ask("init", 0) == (0,)


# --- the shim over it ---


def crowded(machine: Machine, start: StartPooler, *, left: int) -> Client:
    """A neighbour that leaves so much of the device."""
    neighbour = start(machine.container(None, name="neighbour"))
    neighbour.value("alloc", capacity(neighbour) - left)
    return neighbour


def test_off_means_off(machine: Machine, start_pooler: StartPooler) -> None:
    container = machine.container(PLENTY)
    crowded(machine, start_pooler, left=100 * MIB)
    client = start_pooler(container)

    assert client.ask("alloc", 101 * MIB)[0] == OUT_OF_MEMORY
    assert client.ask("pitch", 512, 101 * 2048)[0] == OUT_OF_MEMORY

    assert container.used_bytes() == 0


@pytest.mark.parametrize("priority", [0, 1])
def test_where_the_device_is_short_managed_memory_takes_its_place_and_is_charged(
    machine: Machine, start_pooler: StartPooler, priority: int
) -> None:
    limit = 500 * MIB
    container = machine.container(limit, flags=Flag.OVERSUBSCRIBE, priority=priority)
    crowded(machine, start_pooler, left=100 * MIB)
    client = start_pooler(container)

    plain = client.value("alloc", 100 * MIB)
    address = client.value("alloc", 400 * MIB)

    assert client.ask("is-managed", plain) == (0, 0)
    assert client.ask("is-managed", address) == (0, 1)
    assert container.used_bytes() == limit
    assert client.ask("alloc", 1)[0] == OUT_OF_MEMORY
    assert client.ask("info") == (0, 0, limit)
    assert client.ask("free", address) == (0,)
    assert container.used_bytes() == 100 * MIB


def test_pitched_memory_finds_its_place_as_well(
    machine: Machine, start_pooler: StartPooler
) -> None:
    container = machine.container(PLENTY, flags=Flag.OVERSUBSCRIBE)
    crowded(machine, start_pooler, left=0)
    client = start_pooler(container)

    result, address, pitch = client.ask("pitch", 100, 4096)

    assert (result, pitch) == (0, 512)
    assert client.ask("is-managed", address) == (0, 1)
    assert container.used_bytes() == 512 * 4096


def test_every_query_shows_the_limit_although_the_device_is_smaller(
    machine: Machine, start_pooler: StartPooler
) -> None:
    container = machine.container(PLENTY, flags=Flag.OVERSUBSCRIBE)
    client = start_pooler(container)

    client.value("alloc", MIB)

    assert client.ask("info") == (0, PLENTY - MIB, PLENTY)
    assert client.ask("nvml", container.uuids[0]) == (0, PLENTY - MIB, PLENTY, MIB)


def test_pools_do_not_fall_back(machine: Machine, start_pooler: StartPooler) -> None:
    container = machine.container(PLENTY, flags=Flag.OVERSUBSCRIBE)
    crowded(machine, start_pooler, left=0)
    client = start_pooler(container)

    assert client.ask("async", 1)[0] == OUT_OF_MEMORY

    assert container.used_bytes() == 0


def test_unused_reserve_of_the_process_serves_before_managed_memory(
    machine: Machine, start_pooler: StartPooler
) -> None:
    container = machine.container(PLENTY, flags=Flag.OVERSUBSCRIBE)
    crowded(machine, start_pooler, left=64 * MIB)
    client = start_pooler(container)
    assert client.ask("free-async", client.value("async", 64 * MIB)) == (0,)

    address = client.value("alloc", 64 * MIB)

    assert client.ask("is-managed", address) == (0, 0)


def test_first_priority_is_brought_to_the_device_as_far_as_there_is_room(
    machine: Machine, start_pooler: StartPooler
) -> None:
    container = machine.container(PLENTY, flags=Flag.OVERSUBSCRIBE, priority=0)
    crowded(machine, start_pooler, left=100 * MIB)
    client = start_pooler(container)

    client.value("alloc", 200 * MIB)

    used = machine.used_bytes()
    assert used == capacity(start_pooler(machine)) - 64 * MIB
    assert use(machine).evicted_bytes == 0


def test_second_priority_takes_no_device_memory_from_anybody(
    machine: Machine, start_pooler: StartPooler
) -> None:
    container = machine.container(PLENTY, flags=Flag.OVERSUBSCRIBE, priority=1)
    crowded(machine, start_pooler, left=100 * MIB)
    client = start_pooler(container)
    before = machine.used_bytes()

    client.value("alloc", 200 * MIB)
    assert client.ask("kernel", 2, 1)[0] == 0

    assert machine.used_bytes() == before
    assert use(machine).moved_bytes == 2 * 200 * MIB


def test_memory_of_the_first_priority_stays_while_others_work(
    machine: Machine, start_pooler: StartPooler
) -> None:
    first = start_pooler(
        machine.container(PLENTY, name="first", flags=Flag.OVERSUBSCRIBE, priority=0)
    )
    second = start_pooler(
        machine.container(PLENTY, name="second", flags=Flag.OVERSUBSCRIBE, priority=1)
    )
    neighbour = crowded(machine, start_pooler, left=100 * MIB)
    first.value("alloc", 200 * MIB)
    second.value("alloc", 200 * MIB)
    neighbour.stop()
    for client in (second, first, second):
        assert client.ask("kernel", 1, 1)[0] == 0

    before = use(machine).moved_bytes
    assert first.ask("kernel", 1, 1)[0] == 0

    assert use(machine).moved_bytes == before
    assert use(machine).evicted_bytes == 0
