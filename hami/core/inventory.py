"""A node's devices, as its annotations and its kubelet tell them.

Each vendor's agent publishes an inventory in an annotation of its own; a malformed one is a problem
to report and hurts no other vendor. The kubelet's word on the count resource decides whether the
devices can be given out at all: it refuses every pod where it has none allocatable. Input: Node
objects, which anybody with access to the node may have written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from hami.core import codec
from hami.core.device import Device, VendorName
from hami.core.objects import Node
from hami.core.quantity import parse_quantity
from hami.core.vendor import Vendor, VendorTable
from hami.errors import CodecError


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One vendor's inventory that cannot be read."""

    vendor: VendorName
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What a node says it has."""

    devices: Mapping[VendorName, tuple[Device, ...]]
    """Of each vendor whose annotation is there and readable."""
    problems: tuple[Problem, ...]
    """Of the others whose annotation is there."""


def devices_of(node: Node, vendors: VendorTable) -> Inventory:
    """Every vendor's devices, with the health that their agents give them."""
    devices: dict[VendorName, tuple[Device, ...]] = {}
    problems: list[Problem] = []
    for vendor in vendors.values():
        text = node.annotations.get(vendor.register_key)
        if text is None:
            continue
        try:
            devices[vendor.name] = codec.decode_register(text, vendor.name)
        except CodecError as error:
            problems.append(
                Problem(vendor=vendor.name, error=f"annotation {vendor.register_key}: {error}")
            )
    return Inventory(devices=devices, problems=tuple(problems))


def usable(
    devices: Mapping[VendorName, tuple[Device, ...]], *, without: Collection[VendorName]
) -> tuple[Device, ...]:
    """All devices in one list, those of the vendors ``without`` a living agent unhealthy."""
    return tuple(
        replace(device, healthy=False) if vendor in without else device
        for vendor, own in devices.items()
        for device in own
    )


def allocatable(node: Node, vendor: Vendor) -> int | None:
    """How many shares of the vendor's devices the kubelet can give out; None if it does not say.

    A quantity that cannot be read counts as unsaid.
    """
    value = (node.status.allocatable or {}).get(vendor.resources.count)
    if value is None:
        return None
    try:
        return int(parse_quantity(value))
    except CodecError:
        return None


def cordoned(node: Node) -> frozenset[str]:
    """The devices that an operator has closed for new pods."""
    return frozenset(codec.split_list(node.annotations.get(codec.CORDON_KEY)))


def identity(node: Node, vendors: VendorTable) -> tuple[object, ...]:
    """Whatever of a node decides its inventory: while this is equal, so is that."""
    texts = tuple(node.annotations.get(vendor.register_key) for vendor in vendors.values())
    told = node.status.allocatable or {}
    shares = tuple(told.get(vendor.resources.count) for vendor in vendors.values())
    return (texts, shares, node.annotations.get(codec.CORDON_KEY))
