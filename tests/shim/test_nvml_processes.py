"""A container sees its own processes on a device, and nobody else's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.gpu import MIB, Client, Machine

StartObjects = Callable[..., Client]

INSUFFICIENT_SIZE = 7
VERSIONS = [1, 2, 3]


def pairs(answer: tuple[int, ...]) -> list[tuple[int, int]]:
    return sorted(zip(answer[2::2], answer[3::2], strict=True))


@pytest.mark.parametrize("version", VERSIONS)
def test_only_processes_of_the_container_are_listed(
    exact: Machine, start_objects: StartObjects, version: int
) -> None:
    mine = exact.container(100 * MIB)
    ours = [start_objects(mine) for _ in range(2)]
    for client in ours:
        client.alloc(4 * MIB)
    start_objects(exact.container(100 * MIB, name="other")).alloc(6 * MIB)
    start_objects(exact).alloc(8 * MIB)

    answer = ours[0].ask("processes", version, 10)

    assert answer[:2] == (0, 2)
    assert pairs(answer) == sorted((client.process.pid, 4 * MIB) for client in ours)


@pytest.mark.parametrize("version", VERSIONS)
def test_how_many_there_are_is_told_where_they_find_no_room(
    exact: Machine, start_objects: StartObjects, version: int
) -> None:
    mine = exact.container(100 * MIB)
    ours = [start_objects(mine) for _ in range(3)]
    for client in ours:
        client.alloc(MIB)
    start_objects(exact).alloc(MIB)

    assert ours[0].ask("processes", version, 0) == (INSUFFICIENT_SIZE, 3)
    answer = ours[0].ask("processes", version, 2)
    assert answer[:2] == (INSUFFICIENT_SIZE, 3)
    assert {pid for pid, _ in pairs(answer)} < {client.process.pid for client in ours}


def test_nobody_is_listed_where_nobody_is(exact: Machine, start_objects: StartObjects) -> None:
    start_objects(exact).alloc(MIB)
    client = start_objects(exact.container(100 * MIB))

    assert client.ask("processes", 3, 0) == (0, 0)


def test_without_the_shim_all_are_listed(exact: Machine, start_objects: StartObjects) -> None:
    clients = [start_objects(exact) for _ in range(2)]
    for client in clients:
        client.alloc(MIB)

    assert clients[0].ask("processes", 3, 10)[:2] == (0, 2)
