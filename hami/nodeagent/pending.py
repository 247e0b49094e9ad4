"""Which pod, and which of its containers, the kubelet is asking devices for.

The kubelet's calls carry device ids but no pod. Pure: pods and what this process has consumed
already are arguments. A candidate is a pod that was bound here, is being allocated, and whose next
container in line takes exactly as many devices as the kubelet hands out. Among several the one
whose devices are those of the ids wins, then the one bound first; whether the guess was right is
checked before the container starts (see ``identity``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hami.core import codec, record
from hami.core.allocation import BindPhase, ContainerDevice
from hami.core.device import DeviceUuid
from hami.core.objects import Pod
from hami.core.vendor import Vendor, VendorTable
from hami.errors import CodecError

Consumed = Mapping[str, Collection[int]]
"""Positions that this process has consumed, by pod uid: the watch may not have shown it yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One container's part of a pod's allocation."""

    position: int
    """Of its segment in the annotation."""
    container: str
    index: int
    """Of the container in the pod, init containers first."""
    init: bool
    """Whether it is a plain init container: the kubelet does not tell who holds its devices."""
    devices: tuple[ContainerDevice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A pod that the kubelet may mean, with the container that is next in line."""

    pod: Pod
    entry: Entry
    region: Path | None = None
    """Prepared and consumed before, by an answer that the kubelet lost (see ``repeat``)."""


def physical(device_id: str) -> DeviceUuid:
    """The device behind an id that was offered to the kubelet as ``<uuid>-<number>``.

    Raises:
        CodecError: The id has another form.
    """
    uuid, dash, number = device_id.rpartition("-")
    if not dash or not uuid or not (number.isascii() and number.isdigit()):
        raise CodecError(f"expected a device id <uuid>-<number>, met {device_id[:80]!r}")
    return DeviceUuid(uuid)


def allocating(pod: Pod, node: str) -> bool:
    """Whether the pod was bound to the node and is not through with its allocation."""
    return (
        not pod.finished
        and pod.metadata.deletion_timestamp is None
        and pod.annotations.get(codec.NODE_KEY) == node
        and pod.annotations.get(codec.BIND_PHASE_KEY) == BindPhase.ALLOCATING
    )


def recorded(pod: Pod, vendor: Vendor) -> tuple[Entry, ...]:
    """Every container's part of the pod's allocation, consumed or not, in container order.

    Raises:
        CodecError: The annotation cannot be read, or names more containers than there are.
    """
    return _entries(pod, vendor, pod.annotations.get(vendor.allocated_key, ""))


def waiting(pod: Pod, vendor: Vendor, *, consumed: Collection[int] = ()) -> tuple[Entry, ...]:
    """The parts of the pod's allocation that no container has got yet, in container order.

    Raises:
        CodecError: The annotation cannot be read, or names more containers than there are.
    """
    text = pod.annotations.get(vendor.to_allocate_key, "")
    return tuple(e for e in _entries(pod, vendor, text) if e.position not in consumed)


def candidates(
    pods: Iterable[Pod],
    vendor: Vendor,
    *,
    node: str,
    count: int,
    consumed: Consumed,
    on_malformed: Callable[[Pod, CodecError], None],
) -> tuple[Candidate, ...]:
    """Every pod that the kubelet may mean by ``count`` devices, first bound first.

    Pods with unreadable annotations are told to ``on_malformed`` and passed over.
    """
    found = []
    for pod in pods:
        if not allocating(pod, node):
            continue
        try:
            line = waiting(pod, vendor, consumed=consumed.get(pod.metadata.uid, ()))
        except CodecError as error:
            on_malformed(pod, error)
            continue
        if line and len(line[0].devices) == count:
            found.append(Candidate(pod=pod, entry=line[0]))
    return tuple(sorted(found, key=_order))


def choose(found: Sequence[Candidate], uuids: Sequence[DeviceUuid]) -> Candidate | None:
    """The candidate that holds just these devices, else the first; None if there is none."""
    wanted = Counter(uuids)
    for candidate in found:
        if Counter(device.uuid for device in candidate.entry.devices) == wanted:
            return candidate
    return found[0] if found else None


def align(
    devices: Sequence[ContainerDevice], *, available: Collection[str], must_include: Collection[str]
) -> tuple[str, ...] | None:
    """Ids that stand for just these devices, in their order; None if there are not enough.

    Args:
        devices: What the container is to get.
        available: The ids the kubelet may hand out.
        must_include: Those of them that it will hand out in any case.
    """
    pools: dict[str, list[str]] = {}
    for device_id in sorted(available, key=lambda i: (i not in must_include, len(i), i)):
        uuid, _, _ = device_id.rpartition("-")
        pools.setdefault(uuid, []).append(device_id)
    chosen = []
    for device in devices:
        pool = pools.get(device.uuid)
        if not pool:
            return None
        chosen.append(pool.pop(0))
    return tuple(chosen) if set(must_include) <= set(chosen) else None


def blank(text: str, position: int) -> str:
    """The annotation's text with one container's devices taken out; positions stay as they are."""
    segments = text.split(";")
    if position < len(segments):
        segments[position] = ""
    return ";".join(segments)


def restore(text: str, whole: str, position: int) -> str:
    """The annotation's text with one container's devices put back from the full record."""
    segments = text.split(";")
    segments += [""] * (position + 1 - len(segments))
    segments[position] = whole.split(";")[position]
    return ";".join(segments)


def complete(annotations: Mapping[str, str], vendors: VendorTable) -> bool:
    """Whether no container of the pod waits for a device that some vendor's agent hands out."""
    return not any(
        "," in annotations.get(vendor.to_allocate_key, "")
        for vendor in vendors.values()
        if vendor.agent_consumes
    )


def _entries(pod: Pod, vendor: Vendor, text: str) -> tuple[Entry, ...]:
    """The filled segments, each with its container."""
    containers = list(pod.containers())
    segments = codec.decode_allocation(text, vendor.name)
    whole = codec.decode_allocation(pod.annotations.get(vendor.allocated_key, ""), vendor.name)
    places = record.places(whole, pod, vendor)
    entries = []
    for position, devices in enumerate(segments):
        if not devices:
            continue
        index = places.get(position, position)
        if index >= len(containers):
            raise CodecError(
                f"allocation of {pod.key}: expected {len(containers)} containers at most, "
                f"met devices for container {index}"
            )
        container, among_init = containers[index]
        entries.append(
            Entry(
                position=position,
                container=container.name,
                index=index,
                init=among_init and container.restart_policy != "Always",
                devices=devices,
            )
        )
    return tuple(entries)


def _order(candidate: Candidate) -> tuple[float, str]:
    """First bound first; a pod whose time cannot be read comes last."""
    pod = candidate.pod
    text = pod.annotations.get(codec.BIND_TIME_KEY, "")
    when = int(text[:18]) if text.isascii() and text.isdigit() else float("inf")
    return when, pod.key
