"""The limit holds to the byte, and everything that can be asked agrees with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hami.nodeagent.controlfile import ControlFile
from tests.support.gpu import MIB, OUT_OF_MEMORY, Client, Machine

StartClient = Callable[..., Client]

LIMIT = 3000 * MIB


def test_last_byte_of_the_limit_is_granted_and_one_more_is_refused(
    machine: Machine, start_client: StartClient
) -> None:
    client = start_client(machine.container(LIMIT))

    assert client.ask("alloc", LIMIT)[0] == 0
    assert client.ask("alloc", 1)[0] == OUT_OF_MEMORY


def test_freed_memory_can_be_had_again(machine: Machine, start_client: StartClient) -> None:
    client = start_client(machine.container(LIMIT))
    address = client.alloc(LIMIT)

    assert client.ask("free", address) == (0,)

    assert client.ask("alloc", LIMIT)[0] == 0


def test_processes_of_one_container_share_its_limit(
    machine: Machine, start_client: StartClient
) -> None:
    container = machine.container(LIMIT)
    first, second = start_client(container), start_client(container)

    first.alloc(LIMIT - MIB)

    assert second.ask("alloc", MIB + 1)[0] == OUT_OF_MEMORY
    assert second.ask("alloc", MIB)[0] == 0


def test_two_containers_on_one_device_do_not_share_a_limit(
    machine: Machine, start_client: StartClient
) -> None:
    first = start_client(machine.container(LIMIT, name="one"))
    second = start_client(machine.container(LIMIT, name="two"))

    first.alloc(LIMIT)
    second.alloc(LIMIT)

    assert machine.used_bytes() == 2 * LIMIT


def test_each_device_has_its_own_limit(machine: Machine, start_client: StartClient) -> None:
    container = machine.container(100 * MIB, 200 * MIB)
    first, second = start_client(container), start_client(container)
    assert second.ask("init", 1) == (0,)

    assert first.ask("alloc", 100 * MIB + 1)[0] == OUT_OF_MEMORY
    assert second.ask("alloc", 200 * MIB)[0] == 0
    assert first.ask("alloc", 100 * MIB)[0] == 0


def test_devices_are_told_apart_by_uuid_not_by_order(
    machine: Machine, start_client: StartClient
) -> None:
    container = machine.container(100 * MIB, 200 * MIB)

    client = start_client(container, CUDA_VISIBLE_DEVICES=container.uuids[1])

    assert client.ask("total") == (0, 200 * MIB)
    assert client.ask("alloc", 200 * MIB)[0] == 0


def test_device_that_the_container_was_not_given_has_no_memory(
    machine: Machine, start_client: StartClient
) -> None:
    container = machine.container(100 * MIB)

    client = start_client(container, NVIDIA_VISIBLE_DEVICES=machine.uuids[1])

    assert client.ask("alloc", 1)[0] == OUT_OF_MEMORY
    assert client.ask("info") == (0, 0, 0)


def test_container_without_a_limit_gets_the_whole_device_and_is_still_measured(
    machine: Machine, start_client: StartClient
) -> None:
    container = machine.container(None)
    client = start_client(container)
    _, free, total = client.ask("info")

    client.alloc(free)

    assert total == free
    assert client.ask("alloc", 1)[0] == OUT_OF_MEMORY
    assert container.used_bytes() == free


def test_limit_of_zero_grants_nothing(machine: Machine, start_client: StartClient) -> None:
    client = start_client(machine.container(0))

    assert client.ask("alloc", 1)[0] == OUT_OF_MEMORY


def test_limit_above_the_device_shows_what_the_device_has(
    machine: Machine, start_client: StartClient
) -> None:
    client = start_client(machine.container(2**40))
    plain = start_client(machine.container(None, name="plain"))

    assert client.ask("info") == plain.ask("info")
    assert client.ask("total") == plain.ask("total")


def test_every_query_shows_limit_and_use(machine: Machine, start_client: StartClient) -> None:
    container = machine.container(LIMIT)
    client = start_client(container)
    start_client(container).alloc(500 * MIB)
    client.alloc(300 * MIB)

    free, uuid = LIMIT - 800 * MIB, container.uuids[0]

    assert client.ask("info") == (0, free, LIMIT)
    assert client.ask("total") == (0, LIMIT)
    assert client.ask("nvml", uuid) == (0, free, LIMIT, 800 * MIB)
    assert client.ask("nvml2", uuid) == (0, free, LIMIT, 800 * MIB, 0)


def test_free_memory_is_never_more_than_the_device_has_left(
    machine: Machine, start_client: StartClient
) -> None:
    neighbour = start_client(machine.container(None, name="neighbour"))
    client = start_client(machine.container(LIMIT))

    neighbour.alloc(neighbour.ask("info")[1] - 1000 * MIB)

    assert client.ask("info") == (0, 1000 * MIB, LIMIT)


def test_query_into_nowhere_is_no_crash(machine: Machine, start_client: StartClient) -> None:
    client = start_client(machine.container(LIMIT))

    assert client.ask("info-null") == (0,)


def test_managed_memory_counts_in_full(machine: Machine, start_client: StartClient) -> None:
    client = start_client(machine.container(LIMIT))

    assert client.ask("managed", LIMIT)[0] == 0
    assert client.ask("managed", 1)[0] == OUT_OF_MEMORY


def test_pitched_memory_counts_with_the_pitch_that_the_driver_chose(
    machine: Machine, start_client: StartClient
) -> None:
    container = machine.container(LIMIT)
    client = start_client(container)

    result, _, pitch = client.ask("pitch", 100, 4096)

    assert (result, pitch) == (0, 512)
    assert container.used_bytes() == 512 * 4096


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(("alloc", 2**64 - 1), id="plain"),
        pytest.param(("managed", 2**63), id="managed"),
        pytest.param(("pitch", 2**63, 2**62), id="pitched, product overflows"),
        pytest.param(("pitch", 2**64 - 1, 1), id="pitched, rounding overflows"),
    ],
)
def test_absurd_size_is_refused_and_leaves_nothing_behind(
    machine: Machine, start_client: StartClient, order: tuple[object, ...]
) -> None:
    container = machine.container(LIMIT)
    client = start_client(container)

    assert client.ask(str(order[0]), *order[1:])[0] == OUT_OF_MEMORY

    assert client.ask("info") == (0, LIMIT, LIMIT)


def test_refusal_of_the_driver_is_passed_on_and_not_charged(
    machine: Machine, start_client: StartClient
) -> None:
    container = machine.container(None)
    client = start_client(container)

    assert client.ask("alloc", 2**40)[0] == OUT_OF_MEMORY
    assert client.ask("alloc", 0)[0] == 1

    assert container.used_bytes() == 0


def test_free_of_an_unknown_pointer_is_the_drivers_business(
    machine: Machine, start_client: StartClient
) -> None:
    client = start_client(machine.container(LIMIT))

    assert client.ask("free", 4711) == (1,)
    assert client.ask("free", 0) == (0,)


def test_limit_can_be_changed_while_a_process_runs(
    machine: Machine, start_client: StartClient
) -> None:
    container = machine.container(100 * MIB)
    client = start_client(container)
    assert client.ask("alloc", 200 * MIB)[0] == OUT_OF_MEMORY

    with ControlFile(container.directory) as control:
        control.set_memory_limit(0, 300 * MIB)

    assert client.ask("info") == (0, 300 * MIB, 300 * MIB)
    address = client.alloc(200 * MIB)
    with ControlFile(container.directory) as control:
        control.set_memory_limit(0, 150 * MIB)
    assert client.ask("info") == (0, 0, 150 * MIB)
    assert client.ask("alloc", 1)[0] == OUT_OF_MEMORY
    assert client.ask("free", address) == (0,)
    assert client.ask("alloc", 150 * MIB)[0] == 0


def test_untracked_memory_counts_towards_the_limit(
    machine: Machine, start_client: StartClient
) -> None:
    container = machine.container(LIMIT)
    client = start_client(container)

    with ControlFile(container.directory) as control:
        control.set_untracked(0, 500 * MIB)

    assert client.ask("info") == (0, LIMIT - 500 * MIB, LIMIT)
    assert client.ask("alloc", LIMIT - 500 * MIB + 1)[0] == OUT_OF_MEMORY
    assert client.ask("alloc", LIMIT - 500 * MIB)[0] == 0


@pytest.mark.parametrize("ending", ["destroy", "reset"])
def test_memory_of_an_ended_context_is_given_back(
    machine: Machine, start_client: StartClient, ending: str
) -> None:
    container = machine.container(LIMIT)
    client = start_client(container)
    if ending == "destroy":
        assert client.ask("create", 0) == (0,)
    for _ in range(100):
        client.alloc(MIB)

    assert client.ask(ending) == (0,)

    assert container.used_bytes() == 0
    assert client.ask("init", 0) == (0,)
    assert client.ask("alloc", LIMIT)[0] == 0


def test_releasing_the_primary_context_gives_memory_back_with_the_last_reference(
    machine: Machine, start_client: StartClient
) -> None:
    container = machine.container(LIMIT)
    client = start_client(container)
    assert client.ask("init", 0) == (0,)
    client.alloc(LIMIT)

    assert client.ask("release") == (0,)
    assert container.used_bytes() == LIMIT

    assert client.ask("release") == (0,)
    assert container.used_bytes() == 0
