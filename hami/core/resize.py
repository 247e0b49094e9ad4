"""Whether a bound pod may have other amounts of its devices, and what its record is then. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hami.core import codec, record
from hami.core.allocation import Allocation, Charge, ContainerDevice, Containers
from hami.core.codec_enforcement import (
    ENFORCEMENT_STATUS_KEY,
    SHIM,
    decode_enforcement_status,
)
from hami.core.codec_resize import (
    RESIZE_APPLIED_KEY,
    RESIZE_STATUS_KEY,
    Applied,
    Wanted,
    decode_applied,
    decode_decision,
)
from hami.core.device import DeviceUuid, VendorName
from hami.core.objects import Pod
from hami.core.quantity import MiB, Percent
from hami.core.table import DeviceTable
from hami.core.vendor import VendorTable
from hami.errors import ResizeError


def resized(allocation: Allocation, pod: Pod, wanted: Mapping[str, Wanted]) -> Allocation:
    """The pod's allocation with what is wanted, for all of its containers or none.

    Raises:
        ResizeError: A container cannot be resized; the message names it.
    """
    backends = decode_enforcement_status(pod.annotations.get(ENFORCEMENT_STATUS_KEY, ""))
    places = {c.name: (i, c, init) for i, (c, init) in enumerate(pod.containers())}
    changed = list(allocation.containers)
    for name, want in wanted.items():
        if name not in places:
            raise ResizeError(f"there is no container {name[:80]!r}")
        index, container, init = places[name]
        if init and container.restart_policy != "Always":
            raise ResizeError(f"container {name} is an init container")
        devices = allocation.containers[index] if index < len(allocation.containers) else ()
        if not devices:
            raise ResizeError(f"container {name} has no devices")
        if any(device.mig is not None for device in devices):
            raise ResizeError(f"container {name} has devices that are divided in hardware")
        backend = backends.get(name)
        if backend != SHIM:
            why = "was started without the shim" if backend else "has limits of another agent"
            raise ResizeError(f"container {name} {why}: nothing could change them")
        changed[index] = tuple(
            replace(
                device,
                memory=device.memory if want.gpumem is None else MiB(want.gpumem),
                cores=device.cores if want.gpucores is None else Percent(want.gpucores),
            )
            for device in devices
        )
    return replace(allocation, containers=tuple(changed))


def held(allocation: Allocation, pod: Pod) -> Allocation:
    """The pod's allocation with what its containers may still hold of what they had.

    Memory that a shrink takes is not free before the agent says that the new limit is in force, nor
    while processes use more than that: until then it must not be promised to anybody. No container
    counts for more than it had, whatever it writes.
    """
    decision = decode_decision(pod.annotations.get(RESIZE_STATUS_KEY, ""))
    if decision is None or not decision.had:
        return allocation
    applied = decode_applied(pod.annotations.get(RESIZE_APPLIED_KEY, ""))
    changed = list(allocation.containers)
    for index, (container, _) in enumerate(pod.containers()):
        before = decision.had.get(container.name, ())
        if index < len(changed) and len(before) == len(changed[index]):
            said = applied.get(container.name)
            if said is not None and said.number != decision.number:
                said = None
            changed[index] = tuple(
                replace(device, memory=_may_hold(device.memory, MiB(most), said))
                for device, most in zip(changed[index], before, strict=True)
            )
    return replace(allocation, containers=tuple(changed))


def _may_hold(limit: MiB, most: MiB, in_force: Applied | None) -> MiB:
    held = most if in_force is None else min(most, limit + max(in_force.blocked, 0))
    return MiB(max(limit, held))


def shrinking(now: Allocation, after: Allocation, pod: Pod) -> dict[str, tuple[int, ...]]:
    """Of the containers that are to have less memory than they hold ``now``, what that is."""
    names = [container.name for container, _ in pod.containers()]
    return {
        name: tuple(device.memory for device in mine)
        for name, mine, yours in zip(names, now.containers, after.containers, strict=False)
        if any(a.memory > b.memory for a, b in zip(mine, yours, strict=True))
    }


def larger(one: Allocation, other: Allocation) -> Allocation:
    """What has room for both, where both are of the same devices; else the first."""
    mine, yours = _uuids(one), _uuids(other)
    if mine != yours or one.node != other.node:
        return one
    return replace(
        one,
        containers=tuple(
            tuple(
                replace(a, memory=max(a.memory, b.memory), cores=max(a.cores, b.cores))
                for a, b in zip(left, right, strict=True)
            )
            for left, right in zip(one.containers, other.containers, strict=True)
        ),
    )


def check_room(
    table: DeviceTable,
    node: str,
    before: Mapping[DeviceUuid, Charge],
    after: Mapping[DeviceUuid, Charge],
) -> None:
    """Make sure that what grows fits beside what is held already, ``before`` included.

    Raises:
        ResizeError: It does not; the message says by how much.
    """
    there = {device.uuid: device for device in table.devices(node)}
    used = table.used(node)
    for uuid, charge in after.items():
        old = before.get(uuid, Charge())
        memory, cores = charge.memory - old.memory, charge.cores - old.cores
        if memory <= 0 and cores <= 0:
            continue
        if uuid not in there:
            raise ResizeError(f"device {uuid} is not registered by its node")
        device, now = there[uuid], used[uuid]
        if memory > 0 and now.memory + memory > device.memory:
            lack = now.memory + memory - device.memory
            raise ResizeError(f"device {uuid} lacks {lack} MiB of the {memory} that are asked for")
        if cores > 0 and now.cores + cores > device.cores:
            lack = now.cores + cores - device.cores
            raise ResizeError(f"device {uuid} lacks {lack} % of the {cores} that are asked for")
        if cores > 0 and charge.cores >= device.cores and now.slots > charge.slots:
            raise ResizeError(f"device {uuid} is shared: nobody can have all of its cores")


def texts_of(pod: Pod, allocation: Allocation, vendors: VendorTable) -> dict[str, str]:
    """The pod's records as they are to be, by annotation; segments stand where they stood."""
    written = {}
    for vendor in vendors.values():
        text = pod.annotations.get(vendor.allocated_key)
        if text:
            old = codec.decode_allocation(text, vendor.name)
            places = record.places(old, pod, vendor)
            new = list(old)
            for position, index in places.items():
                new[position] = _of(allocation.containers, index, vendor.name)
            if tuple(new) != old:
                written[vendor.allocated_key] = codec.encode_allocation(new, vendor.name)
    return written


def _of(containers: Containers, index: int, vendor: VendorName) -> tuple[ContainerDevice, ...]:
    return tuple(device for device in containers[index] if device.vendor == vendor)


def _uuids(allocation: Allocation) -> list[list[str]]:
    return [[device.uuid for device in devices] for devices in allocation.containers]
