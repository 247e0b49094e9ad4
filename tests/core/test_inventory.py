"""What a node's annotations and its kubelet say of its devices."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from hami.core import codec, inventory
from hami.core.objects import Node, NodeStatus
from hami.core.vendor import table
from hami.core.vendors.nvidia import NVIDIA
from tests.support.builders import OTHER, VENDORS, make_device, make_devices, make_node

BOTH = table([NVIDIA, OTHER])


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


def replace_allocatable(allocatable: dict[str, str | int | float] | None) -> Node:
    return msgspec.structs.replace(make_node(), status=NodeStatus(allocatable=allocatable))
