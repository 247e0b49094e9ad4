"""A node's devices, as its annotations and its kubelet tell them.

Each vendor's agent publishes an inventory in an annotation of its own; where a vendor has no such
agent, the kubelet's capacity tells how many there are. What is malformed is a problem to report and
hurts no other vendor; what is not there is no device. The kubelet's word on the count resource
decides whether the devices can be given out at all: it refuses every pod where it has none
allocatable. Input: Node objects, which anybody with access to the node may have written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from hami.core import codec
from hami.core.codec_links import PairScores, decode_pair_scores
from hami.core.device import Device, DeviceUuid, VendorName
from hami.core.objects import Node
from hami.core.quantity import parse_quantity, parse_whole
from hami.core.vendor import Vendor, VendorTable
from hami.errors import CodecError


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One vendor's inventory that is there and cannot be read."""

    vendor: VendorName
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What a node says it has."""

    devices: Mapping[VendorName, tuple[Device, ...]]
    """Of each vendor that has any here, readable."""
    problems: tuple[Problem, ...]
    pairs: PairScores
    """How well devices are linked to each other, where their agents tell."""
    pair_problems: tuple[str, ...]
    """Which of that cannot be read; the devices are none the worse."""


def devices_of(node: Node, vendors: VendorTable) -> Inventory:
    """Every vendor's devices, with the health that their agents give them."""
    devices: dict[VendorName, tuple[Device, ...]] = {}
    problems: list[Problem] = []
    seen: set[str] = set()
    for vendor in vendors.values():
        try:
            own = _counted(node, vendor) if vendor.counted else _registered(node, vendor)
            _refuse_known(own, seen)
        except CodecError as error:
            problems.append(Problem(vendor=vendor.name, error=f"{_source(vendor)}: {error}"))
            continue
        if own:
            devices[vendor.name] = own
            seen.update(device.uuid for device in own)
    pairs, pair_problems = _pairs(node, vendors)
    return Inventory(
        devices=devices,
        problems=tuple(problems),
        pairs=pairs,
        pair_problems=tuple(pair_problems),
    )


def _pairs(node: Node, vendors: VendorTable) -> tuple[PairScores, list[str]]:
    """The scores of the links between all devices, and what is wrong with those left out."""
    pairs: PairScores = {}
    problems: list[str] = []
    for vendor in vendors.values():
        text = node.annotations.get(vendor.pair_scores_key) if vendor.pair_scores_key else None
        try:
            pairs |= decode_pair_scores(text) if text else {}
        except CodecError as error:
            problems.append(f"annotation {vendor.pair_scores_key}: {error}")
    return pairs, problems


def _source(vendor: Vendor) -> str:
    """Where the vendor's inventory stands on a node."""
    if vendor.counted:
        return f"capacity of {vendor.resources.count}"
    return f"annotation {vendor.register_key}"


def _registered(node: Node, vendor: Vendor) -> tuple[Device, ...]:
    text = node.annotations.get(vendor.register_key)
    return () if text is None else codec.decode_register(text, vendor.name)


def _counted(node: Node, vendor: Vendor) -> tuple[Device, ...]:
    """As many devices as the kubelet has, all alike.

    Which of them are sick it does not say. Devices are given out from the last to the first, so the
    first ones stand for those that are idle and cannot be used.

    Raises:
        CodecError: The capacity is no number, or beyond any in earnest.
    """
    kind = vendor.counted
    value = (node.status.capacity or {}).get(vendor.resources.count)
    if kind is None or value is None:
        return ()
    count = parse_whole(value, maximum=codec.MAX_DEVICES)
    told = allocatable(node, vendor)
    sick = 0 if told is None else count - told
    return tuple(
        Device(
            uuid=DeviceUuid(kind.uuid.format(node=node.name, index=index)),
            vendor=vendor.name,
            index=index,
            slots=kind.slots,
            memory=kind.memory,
            cores=kind.cores,
            model=vendor.name,
            healthy=index >= sick,
        )
        for index in range(count)
    )


def _refuse_known(devices: Iterable[Device], seen: Collection[str]) -> None:
    """Two vendors' devices of one id could not be told apart in the accounts."""
    for device in devices:
        if device.uuid in seen:
            raise CodecError(f"device {device.uuid[:80]!r} is another vendor's as well")


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
    texts = tuple(node.annotations.get(v.register_key) for v in vendors.values() if v.register_key)
    capacity, told = node.status.capacity or {}, node.status.allocatable or {}
    counts = tuple(capacity.get(v.resources.count) for v in vendors.values() if v.counted)
    shares = tuple(told.get(v.resources.count) for v in vendors.values())
    cordon = node.annotations.get(codec.CORDON_KEY)
    links = tuple(node.annotations.get(v.pair_scores_key) for v in vendors.values())
    return (node.metadata.uid, node.name, texts, counts, shares, cordon, links)
