"""Memory that is made and mapped apart counts until its last handle and mapping are gone."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.support.gpu import MIB, OUT_OF_MEMORY, Client, Machine

StartObjects = Callable[..., Client]

BLOCK = 2 * MIB
LIMIT = 100 * BLOCK
INVALID_VALUE = 1
DEVICE, HOST = 1, 2


def test_created_memory_counts_and_every_query_shows_it(
    exact: Machine, start_objects: StartObjects
) -> None:
    container = exact.container(LIMIT)
    client = start_objects(container)

    handle = client.value("create", 10 * BLOCK)

    assert container.used_bytes() == 10 * BLOCK
    assert client.ask("info") == (0, LIMIT - 10 * BLOCK, LIMIT)
    assert client.ask("release", handle) == (0,)
    assert client.ask("info") == (0, LIMIT, LIMIT)


def test_last_block_of_the_limit_can_be_had_and_no_more(
    exact: Machine, start_objects: StartObjects
) -> None:
    container = exact.container(LIMIT)
    client = start_objects(container)
    client.value("create", LIMIT - BLOCK)
    client.value("create", BLOCK)

    assert client.ask("create", BLOCK)[0] == OUT_OF_MEMORY
    assert client.ask("alloc", 1)[0] == OUT_OF_MEMORY
    assert container.used_bytes() == LIMIT


@pytest.mark.parametrize("released_first", [True, False])
def test_memory_goes_with_the_last_of_handle_and_mapping(
    exact: Machine, start_objects: StartObjects, released_first: bool
) -> None:
    container = exact.container(LIMIT)
    client = start_objects(container)
    handle = client.value("create", BLOCK)
    address = client.value("reserve", BLOCK)
    assert client.ask("map", address, BLOCK, handle) == (0,)
    steps = [f"release {handle}", f"unmap {address} {BLOCK}"]

    first, last = steps if released_first else reversed(steps)

    assert client.ask(first) == (0,)
    assert container.used_bytes() == BLOCK
    assert client.ask(last) == (0,)
    assert container.used_bytes() == 0


def test_segment_that_grows_by_pieces_is_charged_piece_by_piece(
    exact: Machine, start_objects: StartObjects
) -> None:
    """As PyTorch's expandable segments do it."""
    container = exact.container(LIMIT)
    client = start_objects(container)
    start = client.value("reserve", 2 * LIMIT)
    device_before = exact.used_bytes()
    sizes = [BLOCK, 10 * BLOCK, BLOCK, 20 * BLOCK]
    at = start
    for size in sizes:
        handle = client.value("create", size)
        assert client.ask("map", at, size, handle) == (0,)
        assert client.ask("allow", at, size) == (0,)
        assert client.ask("release", handle) == (0,)
        at += size
        assert container.used_bytes() == at - start
        assert exact.used_bytes() - device_before == at - start

    assert client.ask("write", at - 8, 42) == (0,)
    assert client.ask("read", at - 8) == (0, 42)
    assert client.ask("unmap", start + BLOCK, 11 * BLOCK) == (0,)
    assert container.used_bytes() == at - start - 11 * BLOCK
    assert client.ask("unmap", start, BLOCK) == (0,)
    assert client.ask("unmap", start + 12 * BLOCK, 20 * BLOCK) == (0,)
    assert container.used_bytes() == 0
    assert client.ask("unreserve", start, 2 * LIMIT) == (0,)


def test_retained_handle_is_a_holder_more(exact: Machine, start_objects: StartObjects) -> None:
    container = exact.container(LIMIT)
    client = start_objects(container)
    handle = client.value("create", BLOCK)
    address = client.value("reserve", BLOCK)
    client.ask("map", address, BLOCK, handle)
    assert client.ask("release", handle) == (0,)

    assert client.value("retain", address) == handle
    assert client.ask("unmap", address, BLOCK) == (0,)
    assert container.used_bytes() == BLOCK
    assert client.ask("release", handle) == (0,)
    assert container.used_bytes() == 0


def test_memory_that_is_mapped_twice_counts_once(
    exact: Machine, start_objects: StartObjects
) -> None:
    container = exact.container(LIMIT)
    client = start_objects(container)
    handle = client.value("create", BLOCK)
    address = client.value("reserve", 2 * BLOCK)
    for at in (address, address + BLOCK):
        assert client.ask("map", at, BLOCK, handle) == (0,)
        assert client.ask("allow", at, BLOCK) == (0,)
    client.ask("release", handle)

    assert client.ask("write", address, 7) == (0,)
    assert client.ask("read", address + BLOCK) == (0, 7)
    assert container.used_bytes() == BLOCK
    assert client.ask("unmap", address, 2 * BLOCK) == (0,)
    assert container.used_bytes() == 0


def test_calls_that_the_driver_refuses_change_nothing(
    exact: Machine, start_objects: StartObjects
) -> None:
    container = exact.container(LIMIT)
    client = start_objects(container)
    handle = client.value("create", 2 * BLOCK)
    address = client.value("reserve", 4 * BLOCK)
    client.ask("map", address, 2 * BLOCK, handle)

    assert client.ask("create", BLOCK + 1)[0] == INVALID_VALUE
    assert client.ask("map", address, 2 * BLOCK, handle) == (INVALID_VALUE,)
    assert client.ask("map", address + 2 * BLOCK, BLOCK, 12345) == (INVALID_VALUE,)
    assert client.ask("unmap", address, BLOCK) == (INVALID_VALUE,)
    assert client.ask("unmap", address, 4 * BLOCK) == (INVALID_VALUE,)
    assert client.ask("unreserve", address, 4 * BLOCK) == (INVALID_VALUE,)
    assert client.ask("free", address) == (INVALID_VALUE,)
    assert client.ask("retain", address + 3 * BLOCK)[0] == INVALID_VALUE

    assert container.used_bytes() == 2 * BLOCK
    assert client.ask("unmap", address, 2 * BLOCK) == (0,)
    assert client.ask("release", handle) == (0,)
    assert client.ask("release", handle) == (INVALID_VALUE,)
    assert container.used_bytes() == 0


@pytest.mark.parametrize("call", ["cuMemCreate", "cuMemRelease", "cuMemMap", "cuMemUnmap"])
def test_call_that_fails_in_the_driver_leaves_the_charge_as_it_was(
    exact: Machine, start_objects: StartObjects, call: str
) -> None:
    container = exact.container(LIMIT)
    client = start_objects(container, HAMI_SIM_FAULTS=f"{call}:2=999")
    address = client.value("reserve", 2 * BLOCK)

    def round_trip() -> list[int]:
        results = []
        result, handle = client.ask("create", BLOCK)
        results.append(result)
        if result == 0:
            results += client.ask("map", address, BLOCK, handle)
            results += client.ask("unmap", address, BLOCK) if results[-1] == 0 else ()
            results += client.ask("release", handle)
        return results

    assert round_trip() == [0, 0, 0, 0]
    before = exact.used_bytes()
    assert 999 in round_trip()
    assert container.used_bytes() == exact.used_bytes() - before


def test_handle_that_is_given_out_again_belongs_to_the_newcomer(
    exact: Machine, start_objects: StartObjects
) -> None:
    container = exact.container(LIMIT)
    client = start_objects(container)
    handle = client.value("create", BLOCK)
    client.ask("release", handle)

    assert client.value("create", 3 * BLOCK) == handle
    assert container.used_bytes() == 3 * BLOCK


def test_host_memory_is_not_charged(exact: Machine, start_objects: StartObjects) -> None:
    container = exact.container(LIMIT)
    client = start_objects(container)

    handle = client.value("create", 2 * LIMIT, HOST, 0)
    address = client.value("reserve", 2 * LIMIT)
    assert client.ask("map", address, 2 * LIMIT, handle) == (0,)
    assert container.used_bytes() == 0


def test_each_device_is_charged_for_its_own(exact: Machine, start_objects: StartObjects) -> None:
    container = exact.container(LIMIT, 2 * BLOCK)
    client = start_objects(container)

    client.value("create", 2 * BLOCK, DEVICE, 1)

    assert (container.used_bytes(0), container.used_bytes(1)) == (0, 2 * BLOCK)
    assert client.ask("create", BLOCK, DEVICE, 1)[0] == OUT_OF_MEMORY


def test_who_maps_another_process_memory_is_charged_for_it(
    exact: Machine, start_objects: StartObjects
) -> None:
    container = exact.container(LIMIT)
    owner, other = start_objects(container), start_objects(container)
    handle = owner.value("create", 40 * BLOCK, DEVICE, 0, 1)
    file = owner.value("export", handle)
    own = owner.value("reserve", 40 * BLOCK)
    owner.ask("map", own, 40 * BLOCK, handle)
    owner.ask("allow", own, 40 * BLOCK)
    owner.ask("write", own, 99)

    imported = other.value("import", owner.process.pid, file)
    address = other.value("reserve", 40 * BLOCK)
    assert other.ask("map", address, 40 * BLOCK, imported) == (0,)
    assert other.ask("allow", address, 40 * BLOCK) == (0,)
    assert other.ask("read", address) == (0, 99)
    assert container.used_bytes() == 80 * BLOCK

    owner.ask("unmap", own, 40 * BLOCK)
    owner.ask("release", handle)
    assert container.used_bytes() == 40 * BLOCK
    assert other.ask("release", imported) == (0,)
    assert container.used_bytes() == 40 * BLOCK
    assert other.ask("unmap", address, 40 * BLOCK) == (0,)
    assert container.used_bytes() == 0


def test_mapping_of_another_process_memory_that_does_not_fit_is_refused(
    exact: Machine, start_objects: StartObjects
) -> None:
    container = exact.container(LIMIT)
    owner, other = start_objects(container), start_objects(container)
    handle = owner.value("create", 60 * BLOCK, DEVICE, 0, 1)
    imported = other.value("import", owner.process.pid, owner.value("export", handle))
    address = other.value("reserve", 60 * BLOCK)

    assert other.ask("map", address, 60 * BLOCK, imported) == (OUT_OF_MEMORY,)
    assert container.used_bytes() == 60 * BLOCK


def test_memory_goes_with_its_process(exact: Machine, start_objects: StartObjects) -> None:
    container = exact.container(LIMIT)
    first = start_objects(container)
    first.value("create", LIMIT)
    first.stop()

    second = start_objects(container)

    assert second.ask("create", LIMIT)[0] == 0


def test_threads_that_do_everything_at_once_leave_nothing(
    exact: Machine, start_objects: StartObjects
) -> None:
    container = exact.container(8 * BLOCK)
    clients = [start_objects(container) for _ in range(2)]
    before = exact.used_bytes()

    for client in clients:
        client.tell("churn", 300, 4)
    refused = [client.answer()[1] for client in clients]

    assert sum(refused) > 0
    assert container.used_bytes() == exact.used_bytes() - before == 0
    assert exact.peak_bytes() <= before + 8 * BLOCK


def test_unreadable_limits_mean_no_memory(exact: Machine, start_objects: StartObjects) -> None:
    container = exact.container(LIMIT)
    os.truncate(container.directory / "control", 100)

    client = start_objects(container)

    assert client.ask("create", BLOCK)[0] == OUT_OF_MEMORY
    assert client.ask("create", BLOCK, HOST, 0)[0] == 0


def test_simulated_driver_lets_nobody_touch_what_is_not_mapped_and_allowed(
    machine: Machine, start_objects: StartObjects
) -> None:
    client = start_objects(machine)
    handle = client.value("create", BLOCK)
    address = client.value("reserve", 2 * BLOCK)

    assert client.ask("write", address, 1) == (INVALID_VALUE,)
    client.ask("map", address, BLOCK, handle)
    assert client.ask("write", address, 1) == (INVALID_VALUE,)
    client.ask("allow", address, BLOCK)
    assert client.ask("write", address, 1) == (0,)
    assert client.ask("write", address + BLOCK - 4, 1) == (INVALID_VALUE,)
