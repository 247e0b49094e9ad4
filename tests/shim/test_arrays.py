"""Arrays, mipmapped arrays and other interfaces' memory count with what they really take."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.gpu import MIB, OUT_OF_MEMORY, Client, Machine

StartObjects = Callable[..., Client]

LIMIT = 200 * MIB
SPARSE, DEFERRED, LAYERED = 0x40, 0x80, 0x01
ODD = (100, 37, 3)
"""A form whose size nobody could tell who does not know how it lies in memory."""


@pytest.mark.parametrize(
    ("order", "back"),
    [
        ("array {} {} {}".format(*ODD), "unarray"),
        ("array 1000 0 0", "unarray"),
        ("array 64 64 6 1", "unarray"),
        ("array2 333 777", "unarray"),
        ("mipmap 500 300 5", "unmipmap"),
        (f"foreign {5 * MIB} {5 * MIB}", "unforeign"),
    ],
)
def test_it_counts_exactly_what_the_device_gave(
    exact: Machine, start_objects: StartObjects, order: str, back: str
) -> None:
    container = exact.container(LIMIT)
    client = start_objects(container)
    before = exact.used_bytes()

    made = client.value(order)

    assert container.used_bytes() == exact.used_bytes() - before > 0
    assert client.ask("info") == (0, LIMIT - container.used_bytes(), LIMIT)
    assert client.ask(back, made) == (0,)
    assert container.used_bytes() == exact.used_bytes() - before == 0


def test_where_the_driver_does_not_tell_it_is_estimated_and_not_too_low(
    exact: Machine, start_objects: StartObjects
) -> None:
    """Drivers before 11.6 have no cuArrayGetMemoryRequirements."""
    container = exact.container(LIMIT)
    dropped = "cuArrayGetMemoryRequirements,cuMipmappedArrayGetMemoryRequirements"
    client = start_objects(container, HAMI_SIM_DROP=dropped)
    before = exact.used_bytes()

    client.value("array", *ODD)
    client.value("mipmap", 500, 300, 5)

    assert exact.used_bytes() - before <= container.used_bytes() < 4 * (exact.used_bytes() - before)


@pytest.mark.parametrize("flag", [SPARSE, DEFERRED])
def test_array_without_memory_of_its_own_costs_nothing(
    exact: Machine, start_objects: StartObjects, flag: int
) -> None:
    container = exact.container(LIMIT)
    client = start_objects(container)

    made = client.value("array", 4096, 4096, 0, flag)

    assert container.used_bytes() == 0
    assert client.ask("unarray", made) == (0,)


def test_what_does_not_fit_is_refused(exact: Machine, start_objects: StartObjects) -> None:
    container = exact.container(LIMIT)
    client = start_objects(container)
    before = exact.used_bytes()

    assert client.ask("array", 4096, 4096, 0)[0] == OUT_OF_MEMORY  # 256 MiB
    assert client.ask("mipmap", 4096, 4096, 13)[0] == OUT_OF_MEMORY
    assert client.ask("array", 2**31, 2**31, 2**31)[0] == OUT_OF_MEMORY
    assert client.ask("foreign", LIMIT + MIB, LIMIT + MIB)[0] == OUT_OF_MEMORY
    assert container.used_bytes() == exact.used_bytes() - before == 0
    assert client.ask("array", 4096, 2048, 0)[0] == 0


def test_what_the_driver_refuses_is_not_charged(
    exact: Machine, start_objects: StartObjects
) -> None:
    container = exact.container(LIMIT)
    client = start_objects(container, HAMI_SIM_FAULTS="cuArrayCreate_v2:1=999")

    assert client.ask("array2", 100, 100)[0] == 999
    assert client.ask("foreign", MIB, 2 * MIB)[0] not in {0, OUT_OF_MEMORY}
    assert client.ask("unarray", 4711)[0] != 0
    assert container.used_bytes() == 0


def test_refused_destruction_leaves_the_charge(exact: Machine, start_objects: StartObjects) -> None:
    container = exact.container(LIMIT)
    client = start_objects(container, HAMI_SIM_FAULTS="cuArrayDestroy:2=999")
    made = client.value("array", *ODD)
    held = container.used_bytes()

    assert client.ask("unarray", made) == (999,)
    assert container.used_bytes() == held
    assert client.ask("unarray", made) == (0,)
    assert container.used_bytes() == 0


def test_they_go_with_their_context(exact: Machine, start_objects: StartObjects) -> None:
    container = exact.container(LIMIT)
    client = start_objects(container)
    before = exact.used_bytes()
    own = client.value("context")
    client.value("array", *ODD)
    client.value("mipmap", 500, 300, 5)
    client.value("foreign", MIB, MIB)

    assert client.ask("destroy", own) == (0,)
    assert container.used_bytes() == exact.used_bytes() - before == 0
