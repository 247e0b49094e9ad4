"""The simulated driver's pools: how they grow, keep and let go."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.gpu import MIB, OUT_OF_MEMORY, Client, Machine

StartPooler = Callable[..., Client]

STEP = 32 * MIB
LIMIT = 320 * MIB
ON_DEVICE = 1
THRESHOLD, RESERVED, RESERVED_HIGH, USED = 4, 5, 6, 7


def reserved(client: Client, pool: int) -> int:
    return client.value("get", pool, RESERVED)


def test_pool_grows_in_steps_and_keeps_what_is_freed_until_a_synchronisation(
    exact: Machine, start_pooler: StartPooler
) -> None:
    plain = start_pooler(exact)
    pool = plain.value("default", 0)

    address = plain.value("async", 40 * MIB)
    assert (reserved(plain, pool), plain.value("get", pool, USED)) == (2 * STEP, 40 * MIB)
    assert plain.ask("free-async", address) == (0,)
    assert (reserved(plain, pool), plain.value("get", pool, USED)) == (2 * STEP, 0)
    assert exact.used_bytes() == 2 * STEP

    assert plain.ask("sync-stream") == (0,)
    assert (reserved(plain, pool), exact.used_bytes()) == (0, 0)
    assert plain.value("get", pool, RESERVED_HIGH) == 2 * STEP


def test_release_threshold_keeps_so_much_across_a_synchronisation(
    exact: Machine, start_pooler: StartPooler
) -> None:
    plain = start_pooler(exact)
    pool = plain.value("default", 0)
    assert plain.ask("set", pool, THRESHOLD, STEP) == (0,)

    assert plain.ask("free-async", plain.value("async", 3 * STEP)) == (0,)
    assert plain.ask("sync") == (0,)

    assert reserved(plain, pool) == STEP
    assert plain.ask("trim", pool, 0) == (0,)
    assert exact.used_bytes() == 0


def test_pool_has_a_maximum_and_the_device_has_one_too(
    exact: Machine, start_pooler: StartPooler
) -> None:
    plain = start_pooler(exact)
    pool = plain.value("create", ON_DEVICE, 0, 50 * MIB)

    assert plain.ask("from", pool, 51 * MIB)[0] == OUT_OF_MEMORY
    assert plain.ask("from", pool, 50 * MIB)[0] == 0
    assert reserved(plain, pool) == 50 * MIB

    _, free, _ = plain.ask("info")
    plain.value("alloc", free - STEP)
    assert plain.ask("async", STEP + 1)[0] == OUT_OF_MEMORY
    assert plain.ask("async", STEP)[0] == 0


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(("create", 0, 0, 0), id="no location"),
        pytest.param(("get", 4711, 5), id="unknown pool"),
        pytest.param(("destroy", 4711), id="destroying an unknown pool"),
        pytest.param(("trim", 4711, 0), id="trimming an unknown pool"),
        pytest.param(("from", 4711, 1), id="taking from an unknown pool"),
        pytest.param(("from", 0, 1), id="taking from no pool"),
        pytest.param(("async", 0), id="no bytes"),
        pytest.param(("free-async", 4711), id="freeing an unknown pointer"),
    ],
)
def test_driver_says_what_it_thinks_of_nonsense(
    exact: Machine, start_pooler: StartPooler, order: tuple[object, ...]
) -> None:
    clients = [start_pooler(exact), start_pooler(exact.container(LIMIT))]

    answers = {client.ask(str(order[0]), *order[1:])[0] for client in clients}

    assert answers == {1}
