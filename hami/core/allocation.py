"""Decided devices of a pod, and what they cost while it runs.

An Allocation lists devices for each container in container order (init first). What it occupies is
the peak over the pod's life, counted as Kubernetes counts resources: init containers run one after
the other beside the sidecars started before them; app containers run beside all sidecars.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from hami.core import mig
from hami.core.device import DeviceUuid, MigPlacement, Role, VendorName
from hami.core.quantity import MiB, Percent


class BindPhase(StrEnum):
    """How far a bound pod has come; written to its annotation."""

    ALLOCATING = "allocating"
    SUCCESS = "success"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class MigInstance:
    """The instance that an agent made for a reservation."""

    uuid: str
    gpu_instance: int
    compute_instance: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MigShare:
    """The part of a device that is partitioned in hardware."""

    profile: str
    placement: MigPlacement
    instance: MigInstance | None = None
    """None until the agent has made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerDevice:
    """One device, or a share of it, given to one container."""

    uuid: DeviceUuid
    vendor: VendorName
    memory: MiB
    cores: Percent
    mig: MigShare | None = None
    """The part of the device, where it is partitioned in hardware."""


Containers = tuple[tuple[ContainerDevice, ...], ...]
"""For each container of the pod, in container order, its devices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigReservation:
    """Where the instance stands that a device of a container is."""

    container: int
    """Position of the container in its pod, init containers first."""
    device: int
    """Position among the container's devices."""
    uuid: DeviceUuid
    """Of the whole device."""
    share: MigShare


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The devices decided for a pod on a node."""

    uid: str
    namespace: str
    name: str
    node: str
    containers: Containers
    roles: tuple[Role, ...]
    """Of each container, in the same order; containers beyond count as app containers."""
    unmatched: tuple[MigReservation, ...] = ()
    """MIG reservations of the record that belong to none of its devices; they hold their slices."""

    @property
    def pod(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    def mig_parts(self) -> Iterator[MigReservation]:
        """What the pod has of devices that are partitioned in hardware."""
        for position, devices in enumerate(self.containers):
            for at, device in enumerate(devices):
                if device.mig is not None:
                    yield MigReservation(
                        container=position, device=at, uuid=device.uuid, share=device.mig
                    )
        yield from self.unmatched

    def charges(self, *, init_done: bool = False) -> dict[DeviceUuid, Charge]:
        """What the pod occupies on each device; without its init containers once they are done."""
        charges = peak(self.containers, self.roles, init_done=init_done)
        for reservation in self.unmatched:
            held = Charge(mig=mig.counters_of(reservation.share.placement))
            charges[reservation.uuid] = charges.get(reservation.uuid, Charge()) + held
        return charges


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What is occupied of one device."""

    slots: int = 0
    memory: int = 0
    """MiB."""
    cores: int = 0
    """Percent."""
    mig: int = 0
    """Holders of each MIG slice, packed as ``hami.core.mig`` says."""

    def __add__(self, other: Charge) -> Charge:
        """Both at the same time."""
        return Charge(
            slots=self.slots + other.slots,
            memory=self.memory + other.memory,
            cores=self.cores + other.cores,
            mig=self.mig + other.mig,
        )

    def __or__(self, other: Charge) -> Charge:
        """One after the other: the larger of each."""
        return Charge(
            slots=max(self.slots, other.slots),
            memory=max(self.memory, other.memory),
            cores=max(self.cores, other.cores),
            mig=mig.maximum(self.mig, other.mig),
        )


def peak(
    containers: Containers, roles: Sequence[Role], *, init_done: bool = False
) -> dict[DeviceUuid, Charge]:
    """The most that is occupied of each device at one time.

    Args:
        containers: Devices of each container, in container order.
        roles: Role of each container; positions beyond it are app containers.
        init_done: Whether the (non-sidecar) init containers have ended and hold nothing.
    """
    highest: dict[DeviceUuid, Charge] = defaultdict(Charge)
    running: dict[DeviceUuid, Charge] = defaultdict(Charge)
    for position, devices in enumerate(containers):
        role = roles[position] if position < len(roles) else Role.APP
        own = _sum(devices)
        if role is not Role.INIT:
            for uuid, charge in own.items():
                running[uuid] += charge
            continue
        if not init_done:
            for uuid, charge in own.items():
                highest[uuid] |= running[uuid] + charge
    for uuid, charge in running.items():
        highest[uuid] |= charge
    return dict(highest)


def _sum(devices: Iterable[ContainerDevice]) -> Mapping[DeviceUuid, Charge]:
    total: dict[DeviceUuid, Charge] = defaultdict(Charge)
    for device in devices:
        total[device.uuid] += _charge(device)
    return total


def _charge(device: ContainerDevice) -> Charge:
    held = 0 if device.mig is None else mig.counters_of(device.mig.placement)
    return Charge(slots=1, memory=device.memory, cores=device.cores, mig=held)
