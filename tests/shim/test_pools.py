"""Pools count with what the driver reserves for them, on whatever device they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hami.nodeagent.controlfile import ControlFile
from tests.support.gpu import MIB, OUT_OF_MEMORY, Client, Machine, wait_for

StartPooler = Callable[..., Client]

STEP = 32 * MIB
LIMIT = 320 * MIB
ON_DEVICE, ON_HOST = 1, 2
THRESHOLD, RESERVED = 4, 5


def reserved(client: Client, pool: int) -> int:
    return client.value("get", pool, RESERVED)


def test_reserve_is_what_counts_and_every_query_shows_it(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)

    client.value("async", 1)

    assert container.used_bytes() == STEP
    assert client.ask("info") == (0, LIMIT - STEP, LIMIT)
    assert client.ask("nvml", container.uuids[0]) == (0, LIMIT - STEP, LIMIT, STEP)


def test_last_byte_of_the_limit_can_be_had_from_a_pool_and_no_more(
    exact: Machine, start_pooler: StartPooler
) -> None:
    client = start_pooler(exact.container(LIMIT))

    for _ in range(LIMIT // STEP):
        client.value("async", STEP)

    assert client.ask("async", 1)[0] == OUT_OF_MEMORY
    assert client.ask("alloc", 1)[0] == OUT_OF_MEMORY
    assert exact.peak_bytes() == LIMIT


def test_what_the_pool_has_to_spare_is_granted_where_it_could_not_grow(
    exact: Machine, start_pooler: StartPooler
) -> None:
    client = start_pooler(exact.container(LIMIT))
    client.value("async", LIMIT - STEP)
    client.value("async", 1)

    assert client.ask("async", STEP - 512)[0] == 0
    assert client.ask("async", 1)[0] == OUT_OF_MEMORY
    assert exact.peak_bytes() == LIMIT


@pytest.mark.parametrize("how", ["sync", "sync-stream", "sync-event"])
def test_synchronisation_gives_back_what_the_driver_let_go(
    exact: Machine, start_pooler: StartPooler, how: str
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    address = client.value("async", STEP)

    assert client.ask("free-async", address) == (0,)
    assert container.used_bytes() == STEP

    assert client.ask(how) == (0,)
    assert container.used_bytes() == 0


def test_kept_reserve_counts_and_goes_when_it_is_trimmed(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    pool = client.value("default", 0)
    assert client.ask("set", pool, THRESHOLD, 2**64 - 1) == (0,)

    assert client.ask("free-async", client.value("async", 4 * STEP)) == (0,)
    assert client.ask("sync") == (0,)
    assert container.used_bytes() == 4 * STEP

    assert client.ask("trim", pool, STEP) == (0,)
    assert container.used_bytes() == STEP


@pytest.mark.parametrize("order", ["alloc", "async"])
def test_unused_reserve_of_the_process_goes_before_a_request_is_refused(
    exact: Machine, start_pooler: StartPooler, order: str
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    kept = client.value("create", ON_DEVICE, 0, 0)
    assert client.ask("set", kept, THRESHOLD, 2**64 - 1) == (0,)
    assert client.ask("free-async", client.value("from", kept, LIMIT)) == (0,)
    assert client.ask("sync") == (0,)
    assert container.used_bytes() == LIMIT

    assert client.ask(order, LIMIT)[0] == 0

    assert (reserved(client, kept), container.used_bytes()) == (0, LIMIT)
    assert exact.peak_bytes() == LIMIT


def test_pool_memory_may_be_freed_as_any_other(exact: Machine, start_pooler: StartPooler) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    pool = client.value("default", 0)

    assert client.ask("free", client.value("async", STEP)) == (0,)
    assert client.ask("trim", pool, 0) == (0,)
    assert container.used_bytes() == 0

    assert client.ask("free-async", client.value("alloc", STEP)) == (0,)
    assert container.used_bytes() == 0


def test_plain_memory_that_is_freed_behind_work_stays_charged_until_the_work_is_done(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    client, other = start_pooler(container), start_pooler(container)
    address = client.value("alloc", LIMIT)

    assert client.ask("work", 200_000) == (0,)
    assert client.ask("free-async", address) == (0,)
    assert client.ask("free-async", address) == (1,)
    assert client.ask("sync") == (0,)

    assert container.used_bytes() == exact.used_bytes() == 0
    assert other.ask("alloc", LIMIT)[0] == 0
    assert exact.peak_bytes() == LIMIT


def test_plain_memory_freed_behind_endless_work_stays_charged_as_long_as_its_context(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    client, other = start_pooler(container), start_pooler(container)
    address = client.value("alloc", LIMIT)

    assert client.ask("work", 2_000_000_000) == (0,)
    assert client.ask("free-async", address) == (0,)

    assert other.ask("alloc", 1)[0] == OUT_OF_MEMORY
    assert client.ask("async", 1)[0] == OUT_OF_MEMORY
    assert container.used_bytes() == exact.used_bytes() == LIMIT
    assert client.ask("reset") == (0,)
    assert container.used_bytes() == exact.used_bytes() == 0


def test_who_is_about_to_be_refused_looks_whether_freed_memory_is_gone(
    exact: Machine, start_pooler: StartPooler
) -> None:
    client = start_pooler(exact.container(LIMIT))
    address = client.value("alloc", LIMIT)

    assert client.ask("work", 100_000) == (0,)
    assert client.ask("free-async", address) == (0,)

    wait_for(lambda: client.ask("alloc", LIMIT)[0] == 0, "the freed memory is granted again")
    assert exact.peak_bytes() == LIMIT


def test_pool_of_another_device_counts_there(exact: Machine, start_pooler: StartPooler) -> None:
    container = exact.container(LIMIT, STEP)
    client = start_pooler(container)
    created, default = client.value("create", ON_DEVICE, 1, 0), client.value("default", 1)

    address = client.value("from", created, STEP)
    assert (container.used_bytes(0), container.used_bytes(1)) == (0, STEP)
    assert client.ask("from", default, 1)[0] == OUT_OF_MEMORY
    assert client.ask("free-async", address) == (0,)
    assert client.ask("from", default, 1)[0] == 0

    assert (exact.used_bytes(0), exact.peak_bytes(1)) == (0, STEP)


def test_devices_own_pool_can_be_replaced(exact: Machine, start_pooler: StartPooler) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    pool = client.value("create", ON_DEVICE, 0, 0)

    assert client.ask("set-current", 0, pool) == (0,)
    client.value("async", STEP + 1)

    assert client.value("current", 0) == pool
    assert (reserved(client, pool), container.used_bytes()) == (2 * STEP, 2 * STEP)


def test_pool_of_host_memory_is_not_charged(exact: Machine, start_pooler: StartPooler) -> None:
    container = exact.container(STEP)
    client = start_pooler(container)
    pool = client.value("create", ON_HOST, 0, 0)

    address = client.value("from", pool, 4 * STEP)
    assert container.used_bytes() == 0
    assert client.ask("free-async", address) == (0,)
    assert client.ask("async", STEP)[0] == 0


def test_pool_below_a_step_is_judged_by_its_maximum(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(20 * MIB)
    client = start_pooler(container)
    pool = client.value("create", ON_DEVICE, 0, 16 * MIB)

    assert client.ask("async", 1)[0] == OUT_OF_MEMORY
    assert client.ask("from", pool, 16 * MIB)[0] == 0

    assert container.used_bytes() == 16 * MIB


def test_destroyed_pool_is_discharged_with_the_last_of_its_memory(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    pool = client.value("create", ON_DEVICE, 0, 0)
    first, second = client.value("from", pool, STEP), client.value("from", pool, STEP)

    assert client.ask("destroy", pool) == (0,)
    assert client.ask("free-async", first) == (0,)
    assert container.used_bytes() == 2 * STEP
    assert client.ask("free-async", second) == (0,)
    assert (container.used_bytes(), exact.used_bytes()) == (0, 0)

    again = client.value("create", ON_DEVICE, 0, 0)
    client.value("from", again, STEP)
    assert container.used_bytes() == STEP


def test_unused_pool_is_discharged_when_it_is_destroyed(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    pool = client.value("create", ON_DEVICE, 0, 0)
    assert client.ask("set", pool, THRESHOLD, 2**64 - 1) == (0,)
    assert client.ask("free-async", client.value("from", pool, STEP)) == (0,)

    assert client.ask("destroy", pool) == (0,)

    assert container.used_bytes() == 0


def test_default_pool_cannot_be_destroyed_and_goes_on_being_charged(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    client.value("async", STEP)

    assert client.ask("destroy", client.value("default", 0)) == (1,)

    client.value("async", STEP)
    assert container.used_bytes() == 2 * STEP


def test_memory_of_pools_goes_with_the_context(exact: Machine, start_pooler: StartPooler) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    client.value("async", LIMIT)

    assert client.ask("reset") == (0,)

    assert container.used_bytes() == exact.used_bytes() == 0
    assert client.ask("init", 0) == (0,)
    assert client.ask("async", LIMIT)[0] == 0


def test_driver_out_of_memory_is_passed_on_and_not_charged(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(None)
    client = start_pooler(container)

    assert client.ask("async", 2**40)[0] == OUT_OF_MEMORY

    assert container.used_bytes() == 0


@pytest.mark.parametrize("size", [2**63, 2**64 - 1])
def test_absurd_size_is_refused_and_leaves_nothing_behind(
    exact: Machine, start_pooler: StartPooler, size: int
) -> None:
    client = start_pooler(exact.container(LIMIT))

    assert client.ask("async", size)[0] == OUT_OF_MEMORY

    assert client.ask("info") == (0, LIMIT, LIMIT)


def test_device_that_the_container_was_not_given_has_no_pools(
    exact: Machine, start_pooler: StartPooler
) -> None:
    client = start_pooler(exact.container(LIMIT), NVIDIA_VISIBLE_DEVICES=exact.uuids[1])

    assert client.ask("async", 1)[0] == OUT_OF_MEMORY


def test_lowered_limit_leaves_what_the_pool_has_and_lets_it_not_grow(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    client.value("async", STEP + 1)

    with ControlFile(container.directory) as control:
        control.set_memory_limit(0, STEP)

    assert client.ask("async", MIB)[0] == 0
    assert client.ask("async", STEP)[0] == OUT_OF_MEMORY


@pytest.mark.parametrize("flags", ["0", "2"])
def test_functions_got_by_address_are_charged_as_well(
    exact: Machine, start_pooler: StartPooler, flags: str
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container, RESOLVE=flags)
    pool = client.value("create", ON_DEVICE, 0, 0)

    first, second = client.value("async", STEP), client.value("from", pool, STEP)
    assert container.used_bytes() == 2 * STEP
    assert client.ask("free-async", first) == client.ask("free-async", second) == (0,)
    assert client.ask("sync-stream") == (0,)

    assert container.used_bytes() == 0


def test_forked_child_begins_with_no_pools(exact: Machine, start_pooler: StartPooler) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    client.value("async", STEP)

    client.tell("fork")
    assert client.ask("init", 0) == (0,)
    client.value("async", STEP)
    assert container.used_bytes() == 2 * STEP
    client.tell("exit", 7)
    assert client.answer() == (7,)

    client.value("async", STEP)
    assert reserved(client, client.value("default", 0)) == 2 * STEP


def test_32_racing_processes_never_pass_the_limit(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    clients = [start_pooler(container) for _ in range(32)]
    for client in clients:  # who has got some keeps it: others will be refused
        assert client.ask("set", client.value("default", 0), THRESHOLD, 2**64 - 1) == (0,)

    for number, client in enumerate(clients):
        client.tell("loop", 0, (number % 4 + 1) * STEP - MIB, 60)
    granted = [client.answer()[1] for client in clients]

    assert sum(granted) > 32
    assert LIMIT - 4 * STEP < exact.peak_bytes() <= LIMIT
    for client in clients:
        assert client.ask("trim", client.value("default", 0), 0) == (0,)
    assert container.used_bytes() == exact.used_bytes() == 0


def test_racing_threads_leave_nothing_behind(exact: Machine, start_pooler: StartPooler) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)

    granted = client.ask("race", 16, 2 * STEP, 200)[1]

    assert granted > 200
    assert client.ask("sync") == (0,)
    assert container.used_bytes() == exact.used_bytes() == 0
    assert client.ask("async", LIMIT)[0] == 0


def test_stream_of_another_device_takes_from_that_devices_pool(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT, STEP)
    client = start_pooler(container)
    assert client.ask("stream", 1) == (0,)

    address = client.value("async", STEP)

    assert (container.used_bytes(0), container.used_bytes(1)) == (0, STEP)
    assert client.ask("async", 1)[0] == OUT_OF_MEMORY
    assert client.ask("free-async", address) == (0,)
    assert client.ask("sync-stream") == (0,)
    assert (container.used_bytes(0), container.used_bytes(1)) == (0, 0)
