"""The pod annotations that record an allocation: written at bind, read back after a restart.

They are the durable truth about what a pod occupies. Input: Pod objects and Allocations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from hami.core import codec, codec_mig
from hami.core.allocation import Allocation, BindPhase, Containers, MigReservation
from hami.core.device import VendorName
from hami.core.objects import Pod
from hami.core.request import asks_for, roles_of
from hami.core.vendor import Vendor, VendorTable, table
from hami.errors import CodecError


def allocation_of(pod: Pod, vendors: VendorTable) -> Allocation | None:
    """What the pod's annotations say it holds; None if they name no node or no devices.

    Raises:
        CodecError: An annotation with devices cannot be read.
    """
    node = pod.annotations.get(codec.NODE_KEY)
    if not node:
        return None
    parts: list[Containers] = []
    unmatched: list[MigReservation] = []
    for vendor in vendors.values():
        text = pod.annotations.get(vendor.allocated_key)
        if text:
            held = codec.decode_allocation(text, vendor.name)
            held, loose = _with_shares(held, _reservations(pod, vendor))
            parts.append(_aligned(held, pod, vendor))
            unmatched += loose
    containers = codec.merge_vendors(parts)
    if not any(containers):
        return None
    return Allocation(
        uid=pod.metadata.uid,
        namespace=pod.metadata.namespace,
        name=pod.metadata.name,
        node=node,
        containers=containers,
        roles=roles_of(pod),
        unmatched=tuple(unmatched),
    )


def problems(pod: Pod, vendors: VendorTable) -> tuple[str, ...]:
    """What of the pod's record is left out because it cannot be read, though the rest can.

    Without its reservations a MIG device counts as taken whole.
    """
    found: list[str] = []
    for vendor in vendors.values():
        try:
            codec_mig.decode_mig_reservations(pod.annotations.get(vendor.mig_key, ""))
        except CodecError as error:
            found.append(f"annotation {vendor.mig_key}: {error}")
    return tuple(found)


def _reservations(pod: Pod, vendor: Vendor) -> tuple[MigReservation, ...]:
    with contextlib.suppress(CodecError):  # told by ``problems``
        return codec_mig.decode_mig_reservations(pod.annotations.get(vendor.mig_key, ""))
    return ()


def _with_shares(
    held: Containers, reservations: Sequence[MigReservation]
) -> tuple[Containers, list[MigReservation]]:
    """The devices with their MIG shares, and the reservations of no device among them.

    A reservation is of the device at its place; one whose place has another device is of the first
    device of its uuid that has none yet, as other writers count places differently.
    """
    devices = [list(container) for container in held]
    loose: list[MigReservation] = []
    for r in reservations:
        spots = [(r.container, r.device)]
        spots += [(i, j) for i, own in enumerate(devices) for j in range(len(own))]
        for i, j in spots:
            if i < len(devices) and j < len(devices[i]):
                device = devices[i][j]
                if device.uuid == r.uuid and device.mig is None:
                    devices[i][j] = replace(device, mig=r.share)
                    break
        else:
            loose.append(r)
    return tuple(tuple(container) for container in devices), loose


def salvage(pod: Pod, vendors: VendorTable) -> Allocation | None:
    """What the pod holds of those vendors whose annotations can be read; None if that is nothing.

    So one vendor's malformed annotation does not free another's devices.
    """
    readable = [vendor for vendor in vendors.values() if _is_readable(pod, vendor)]
    return allocation_of(pod, table(readable))


def _is_readable(pod: Pod, vendor: Vendor) -> bool:
    try:
        codec.decode_allocation(pod.annotations.get(vendor.allocated_key, ""), vendor.name)
    except CodecError:
        return False
    return True


def init_done(pod: Pod) -> bool:
    """Whether every plain init container has ended well, so that only the others hold devices."""
    ended = {
        status.name
        for status in pod.status.init_container_statuses or ()
        if status.state and status.state.terminated and status.state.terminated.exit_code == 0
    }
    inits = [c.name for c in pod.spec.init_containers or () if c.restart_policy != "Always"]
    return bool(inits) and all(name in ended for name in inits)


def annotations_for(
    allocation: Allocation, vendors: VendorTable, *, now_seconds: int, scheduled_by: str
) -> dict[str, str]:
    """Everything that bind writes on the pod, in one patch.

    Args:
        allocation: The decision.
        vendors: The table; only vendors with devices in the allocation get keys.
        now_seconds: Unix time of the decision.
        scheduled_by: The reign that decided.
    """
    written = {
        codec.NODE_KEY: allocation.node,
        codec.TIME_KEY: str(now_seconds),
        codec.BIND_TIME_KEY: str(now_seconds),
        codec.BIND_PHASE_KEY: BindPhase.ALLOCATING.value,
        codec.SCHEDULED_BY_KEY: scheduled_by,
    }
    used = {device.vendor for devices in allocation.containers for device in devices}
    for name in sorted(used):
        text = codec.encode_allocation(allocation.containers, name)
        written[vendors[name].to_allocate_key] = text
        written[vendors[name].allocated_key] = text
        reservations = _reservations_of(allocation, name)
        if reservations and vendors[name].mig_key:
            written[vendors[name].mig_key] = codec_mig.encode_mig_reservations(reservations)
    return written


def _reservations_of(allocation: Allocation, vendor: VendorName) -> list[MigReservation]:
    """One for each MIG instance, at its place among the vendor's devices of its container."""
    return [
        MigReservation(container=i, device=j, uuid=device.uuid, share=device.mig)
        for i, devices in enumerate(allocation.containers)
        for j, device in enumerate(d for d in devices if d.vendor == vendor)
        if device.mig is not None
    ]


def cleared_annotations(vendors: VendorTable) -> dict[str, None]:
    """The same keys, to be removed from a pod that was not bound after all."""
    keys = [codec.NODE_KEY, codec.TIME_KEY, codec.BIND_TIME_KEY, codec.BIND_PHASE_KEY]
    keys.append(codec.SCHEDULED_BY_KEY)
    for vendor in vendors.values():
        keys += [vendor.to_allocate_key, vendor.allocated_key]
        keys += [vendor.mig_key] if vendor.mig_key else []
    return dict.fromkeys(keys)


def places(record: Containers, pod: Pod, vendor: Vendor) -> dict[int, int]:
    """Whose the filled segments of a record are: from position to the index of the container.

    Some writers leave out the empty segments of containers that ask for nothing. Where exactly as
    many segments hold devices as containers ask for some, order decides; else positions stand.
    """
    filled = [position for position, devices in enumerate(record) if devices]
    askers = [i for i, (c, _) in enumerate(pod.containers()) if asks_for(c, vendor)]
    return dict(zip(filled, askers if len(askers) == len(filled) else filled, strict=True))


def _aligned(record: Containers, pod: Pod, vendor: Vendor) -> Containers:
    """The devices of each container, in container order."""
    found = {index: record[position] for position, index in places(record, pod, vendor).items()}
    return tuple(found.get(index, ()) for index in range(max(found, default=-1) + 1))
