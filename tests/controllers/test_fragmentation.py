"""What is free, and what of it nobody can have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from hami.controllers.fragmentation import MODELS_SHOWN, OTHER, Free, by_model
from hami.core.allocation import Charge
from hami.core.device import MODE_MIG, Device
from hami.core.mig import counters_of
from hami.core.table import DeviceTable
from tests.support.builders import make_device, make_table
from tests.support.geometries import A100
from tests.support.strategies import charges, node_devices


def frees(table: DeviceTable) -> dict[str, Free]:
    columns = table.columns.take(slice(0, len(table)))
    return {free.model: free for free in by_model(columns, table.words, table.geometries)}


def one(device: Device, used: Charge) -> Free:
    table = make_table([device])
    table.charge("node-0", {device.uuid: used}, sign=1)
    return frees(table)[device.model]


@pytest.mark.parametrize(
    ("size", "used", "memory", "cores"),
    [
        pytest.param({}, Charge(), (1000, 0), (100, 0), id="empty"),
        pytest.param({}, Charge(slots=1, memory=400, cores=30), (600, 0), (70, 0), id="shared"),
        pytest.param(
            {}, Charge(slots=2, memory=400, cores=30), (600, 600), (70, 70), id="no slot left"
        ),
        pytest.param(
            {}, Charge(slots=1, memory=400, cores=100), (600, 600), (0, 0), id="no compute left"
        ),
        pytest.param(
            {}, Charge(slots=1, memory=1000, cores=30), (0, 0), (70, 70), id="no memory left"
        ),
        pytest.param(
            {}, Charge(slots=3, memory=1200, cores=120), (0, 0), (0, 0), id="more than there is"
        ),
        pytest.param({"cores": 0}, Charge(slots=1), (1000, 0), (0, 0), id="no compute to give"),
        pytest.param({"memory": 0}, Charge(slots=1), (0, 0), (100, 0), id="no memory to give"),
        pytest.param({"slots": 0}, Charge(), (1000, 1000), (100, 100), id="nothing to give"),
    ],
)
def test_free_and_stranded(
    size: dict[str, int], used: Charge, memory: tuple[int, int], cores: tuple[int, int]
) -> None:
    device = make_device(
        slots=size.get("slots", 2), memory=size.get("memory", 1000), cores=size.get("cores", 100)
    )

    free = one(device, used)

    assert (free.memory, free.stranded_memory) == memory
    assert (free.cores, free.stranded_cores) == cores


def test_devices_that_nobody_can_get_do_not_count() -> None:
    table = DeviceTable()
    table.set_node(
        "n",
        [
            make_device("a", memory=1),
            make_device("b", memory=10, healthy=False),
            make_device("c", memory=100),
        ],
        cordoned=frozenset({"c"}),
    )

    assert [free.memory for free in frees(table).values()] == [1]


def test_partitioned_devices_count_by_slices() -> None:
    """A whole device but for its last slice is taken: nothing stands in what is left of 3g."""
    device = replace(make_device(slots=7), mode=MODE_MIG, mig_profiles=A100)
    at = A100[0].placements[0]

    untouched = one(device, Charge())
    crooked = one(device, Charge(slots=1, mig=sum(counters_of(p) for p in A100[0].placements)))

    assert untouched == Free(model=device.model)
    assert crooked.stranded_slices == 1, "slice 7 belongs to no small profile"
    assert one(device, Charge(slots=1, mig=counters_of(at))).stranded_slices == 0
    assert crooked.memory == 0


def test_models_are_bounded_the_most_frequent_come_first() -> None:
    table = DeviceTable()
    for number in range(MODELS_SHOWN + 10):
        devices = [make_device(f"GPU-{number}", model=f"model-{number:03}", memory=1)]
        table.set_node(f"n{number}", devices)
    table.set_node("many", [make_device(f"x{i}", model="zebra", memory=1) for i in range(3)])

    found = frees(table)

    assert len(found) == MODELS_SHOWN + 1
    assert next(iter(found)) == "zebra"
    assert found[OTHER].memory == 11
    assert sum(free.memory for free in found.values()) == MODELS_SHOWN + 13


@hypothesis_given(st.lists(node_devices(max_size=4), max_size=4), st.data())
def test_stranded_is_part_of_free_and_nothing_is_lost(
    nodes: list[tuple[Device, ...]], data: st.DataObject
) -> None:
    table = make_table(*nodes)
    memory = cores = 0
    for number, devices in enumerate(nodes):
        for device in devices:
            used = data.draw(charges)
            table.charge(f"node-{number}", {device.uuid: used}, sign=1)
            if device.healthy and device.mode != MODE_MIG:
                memory += max(device.memory - used.memory, 0)
                cores += max(device.cores - used.cores, 0)

    found = frees(table).values()

    assert sum(free.memory for free in found) == memory
    assert sum(free.cores for free in found) == cores
    assert all(0 <= free.stranded_memory <= free.memory for free in found)
    assert all(0 <= free.stranded_cores <= free.cores for free in found)
