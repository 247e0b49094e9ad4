"""Why: the value behind every reason that the extender, an event, a page or a command shows.

A Verdict says of one node, device by device, which rule failed first and by how much. The words on
the wire (``Reason``) are those of HAMi's messages, which dashboards and people know.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final

from hami.core.device import DeviceUuid


class Reason(StrEnum):
    """Why a device cannot serve a container; the order is that of the rules."""

    UNHEALTHY = "CardNotHealth"
    CORDONED = "CardCordoned"
    TYPE = "CardTypeMismatch"
    UUID = "CardUuidMismatch"
    SLOTS = "CardTimeSlicingExhausted"
    NOT_ALONE = "ExclusiveDeviceAllocateConflict"
    MEMORY = "CardInsufficientMemory"
    CORES = "CardInsufficientCore"
    CORES_EXHAUSTED = "CardComputeUnitsExhausted"
    MIG = "CardMigTopologyInfeasible"


PERMANENT: Final = frozenset({Reason.UNHEALTHY, Reason.CORDONED, Reason.TYPE, Reason.UUID})
"""Reasons that do not go away when pods end."""


class NodeReason(StrEnum):
    """Why a node as a whole cannot serve."""

    UNREGISTERED = "node unregistered"
    TOO_FEW_DEVICES = "NodeInsufficientDevice"
    TOO_FEW_FIT = "AllocatedCardsInsufficientRequest"
    NUMA = "NumaNotFit"
    QUOTA = "ResourceQuotaNotFit"
    GANG = "GangNotFit"
    BUSY = "NodeBusy"
    """Pods before it wait there for their devices, one after the other; other nodes are free."""


class Unit(Enum):
    """What a lack is counted in."""

    NONE = ""
    MIB = "MiB"
    PERCENT = "%"
    SLOTS = "slots"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceVerdict:
    """One device against one container's request: None where it fits."""

    uuid: DeviceUuid
    reason: Reason | None
    needed: int = 0
    free: int = 0
    unit: Unit = Unit.NONE

    def __str__(self) -> str:
        """For people: the device, the rule, and by how much."""
        if self.reason is None:
            return f"{self.uuid} fits"
        if self.unit is Unit.NONE:
            return f"{self.uuid} {self.reason}"
        lack = self.needed - self.free
        return f"{self.uuid} {self.reason}: lacks {lack} {self.unit.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why one node cannot hold a pod: the first container that finds no devices."""

    node: str
    container: str = ""
    needed: int = 0
    """Devices the container asks for."""
    devices: tuple[DeviceVerdict, ...] = ()
    """Of the vendor asked for; empty for a node without any."""
    reason: NodeReason | None = None
    """What is against the node as a whole, where no device is."""
    note: str = ""
    """The same with names and numbers."""

    def __str__(self) -> str:
        """In the form ``7/8 CardInsufficientMemory, 1/8 CardNotHealth``."""
        if self.reason is not None:
            return f"{self.reason.value}: {self.note}" if self.note else self.reason.value
        reasons = Counter(d.reason for d in self.devices if d.reason is not None)
        return summary(self.needed, len(self.devices), reasons)


def summary(needed: int, total: int, reasons: Counter[Reason]) -> str:
    """One node's reasons in a line: how many devices failed for what, in order of the text."""
    if total == 0:
        return NodeReason.UNREGISTERED.value
    if needed > total:
        return f"{NodeReason.TOO_FEW_DEVICES.value} {needed} of {total}"
    parts = [f"{n}/{total} {reason.value}" for reason, n in reasons.items()]
    fitting = total - reasons.total()
    if fitting:
        word = NodeReason.NUMA if fitting >= needed else NodeReason.TOO_FEW_FIT
        parts.append(f"{fitting}/{total} {word.value}")
    return ", ".join(sorted(parts))
