"""What a node's annotations and its kubelet say of its devices."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from hami.core import codec, inventory
from hami.core.device import Device
from hami.core.objects import Node, NodeStatus
from hami.core.vendor import table
from hami.core.vendors.enflame import ENFLAME_GCU
from hami.core.vendors.nvidia import NVIDIA
from tests.support.builders import OTHER, VENDORS, make_device, make_devices, make_node

BOTH = table([NVIDIA, OTHER])
COUNTED = table([NVIDIA, ENFLAME_GCU])
GCU = ENFLAME_GCU.resources.count


def test_every_vendor_is_read() -> None:
    other = make_device("NPU-0", vendor=OTHER.name)
    node = make_node(
        devices=make_devices(2), annotations={OTHER.register_key: codec.encode_register([other])}
    )

    found = inventory.devices_of(node, BOTH)

    assert found.devices == {NVIDIA.name: make_devices(2), OTHER.name: (other,)}
    assert found.problems == ()


def test_malformed_inventory_is_a_problem_and_hurts_no_other() -> None:
    node = make_node(devices=make_devices(1), annotations={OTHER.register_key: "[null]"})

    found = inventory.devices_of(node, BOTH)

    assert found.devices == {NVIDIA.name: make_devices(1)}
    (problem,) = found.problems
    assert problem.vendor == OTHER.name
    assert OTHER.register_key in problem.error


def test_devices_without_a_living_agent_are_unhealthy() -> None:
    other = make_device("NPU-0", vendor=OTHER.name)
    devices = {NVIDIA.name: make_devices(1), OTHER.name: (other,)}

    usable = inventory.usable(devices, without={OTHER.name})

    assert usable == (*make_devices(1), replace(other, healthy=False))


def test_allocatable_is_what_the_kubelet_says_or_unknown() -> None:
    silent = replace_allocatable(None)
    unreadable = replace_allocatable({NVIDIA.resources.count: "many"})

    assert inventory.allocatable(make_node(devices=make_devices(1)), NVIDIA) == 10
    assert inventory.allocatable(make_node(allocatable=0), NVIDIA) == 0
    assert inventory.allocatable(silent, NVIDIA) is None
    assert inventory.allocatable(unreadable, NVIDIA) is None


def test_cordoned_devices_are_a_trimmed_list() -> None:
    node = make_node(annotations={codec.CORDON_KEY: " GPU-1, ,GPU-2 "})

    assert inventory.cordoned(node) == {"GPU-1", "GPU-2"}


def test_identity_changes_with_what_counts_and_with_nothing_else() -> None:
    node = make_node(devices=make_devices(1))
    same = make_node(devices=make_devices(1), annotations={"other": "x"})
    others = [
        make_node(devices=make_devices(2)),
        make_node(devices=make_devices(1), allocatable=0),
        make_node(devices=make_devices(1), annotations={codec.CORDON_KEY: "GPU-0"}),
    ]

    assert inventory.identity(same, VENDORS) == inventory.identity(node, VENDORS)
    assert all(inventory.identity(o, VENDORS) != inventory.identity(node, VENDORS) for o in others)


def counting(capacity: str | int | None, allocatable: str | int | None = None) -> Node:
    """A node with NVIDIA devices whose kubelet also counts others."""
    return msgspec.structs.replace(
        make_node(devices=make_devices(1)),
        status=NodeStatus(
            capacity=None if capacity is None else {GCU: capacity},
            allocatable=None if allocatable is None else {GCU: allocatable},
        ),
    )


def counted(node: Node) -> tuple[Device, ...]:
    found = inventory.devices_of(node, COUNTED)
    assert found.problems == ()
    return found.devices.get(ENFLAME_GCU.name, ())


def test_devices_that_nobody_registers_are_made_from_the_capacity() -> None:
    devices = counted(counting("2", "2"))

    assert [(d.uuid, d.index) for d in devices] == [("node-0-GCU-0", 0), ("node-0-GCU-1", 1)]
    assert {(d.slots, d.memory, d.cores, d.healthy) for d in devices} == {(1, 100, 100, True)}


@pytest.mark.parametrize("capacity", [None, "0", 0])
def test_without_capacity_there_are_none(capacity: str | int | None) -> None:
    assert counted(counting(capacity)) == ()


@pytest.mark.parametrize("capacity", ["many", "1500m", "-1", "129", "99999999999"])
def test_capacity_that_means_nothing_is_a_problem(capacity: str) -> None:
    found = inventory.devices_of(counting(capacity), COUNTED)

    assert list(found.devices) == [NVIDIA.name]
    (problem,) = found.problems
    assert GCU in problem.error


@pytest.mark.parametrize(
    ("allocatable", "healthy"),
    [("3", [True, True, True]), ("2", [False, True, True]), ("0", [False, False, False]),
     (None, [True, True, True]), ("9", [True, True, True]), ("?", [True, True, True])],
)  # fmt: skip
def test_as_many_are_sick_as_cannot_be_allocated(
    allocatable: str | None, healthy: list[bool]
) -> None:
    assert [d.healthy for d in counted(counting("3", allocatable))] == healthy


def test_two_vendors_devices_of_one_id_are_a_problem_of_the_second() -> None:
    same = make_device("GPU-0", vendor=OTHER.name)
    node = make_node(
        devices=make_devices(1), annotations={OTHER.register_key: codec.encode_register([same])}
    )

    found = inventory.devices_of(node, BOTH)

    assert list(found.devices) == [NVIDIA.name]
    assert "another vendor" in found.problems[0].error


def test_identity_of_counted_devices_is_their_number() -> None:
    nodes = [counting("1", "1"), counting("2", "1"), counting("2", "2"), counting(None)]
    other_life = msgspec.structs.replace(
        nodes[0], metadata=msgspec.structs.replace(nodes[0].metadata, uid="next")
    )

    identities = [inventory.identity(node, COUNTED) for node in [*nodes, other_life]]

    assert len(set(identities)) == 5


def replace_allocatable(allocatable: dict[str, str | int | float] | None) -> Node:
    return msgspec.structs.replace(make_node(), status=NodeStatus(allocatable=allocatable))
