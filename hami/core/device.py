"""What nodes offer and what containers ask for, as plain values.

A Device is one schedulable accelerator as its node registered it; a DeviceRequest is what one
container asks of one vendor, normalised; a PodRequest is a pod's whole demand. Nothing here knows
annotations (see ``codec``) or rules (see ``fit``).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar, Final, NewType

from hami.core.quantity import MiB, Percent

DeviceUuid = NewType("DeviceUuid", str)
VendorName = NewType("VendorName", str)

MODE_SHARED: Final = "hami-core"
"""The device is shared in software, limits enforced by the shim."""
MODE_MIG: Final = "mig"


@dataclass(frozen=True, slots=True, kw_only=True)
class MigPlacement:
    """Where on a device a MIG instance of a profile may stand: ``[start, start + size)``."""

    start: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MigProfile:
    """One MIG profile a device offers."""

    name: str
    memory: MiB
    cores: Percent
    slices: int
    placements: tuple[MigPlacement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator of a node, as registered."""

    uuid: DeviceUuid
    vendor: VendorName
    index: int = 0
    slots: int = 0
    """How many containers may share it."""
    memory: MiB = MiB(0)
    """Total offered, after scaling."""
    cores: Percent = Percent(0)
    """Total offered, 100 times the core scaling."""
    model: str = ""
    numa: int = 0
    mode: str = MODE_SHARED
    healthy: bool = False
    mig_profiles: tuple[MigProfile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRequest:
    """What one container asks of one vendor: ``count`` devices with this much of each."""

    vendor: VendorName
    count: int
    memory: MiB = MiB(0)
    """0 where ``memory_percent`` decides."""
    memory_percent: Percent = Percent(0)
    """Of each device's total; used where ``memory`` is 0."""
    cores: Percent = Percent(0)
    skipped_rules: frozenset[str] = frozenset()
    """Reasons (see ``verdict``) for which no device of the vendor is refused."""


class Role(StrEnum):
    """When a container runs, seen from its pod."""

    INIT = "init"
    """Alone of its kind, before the app containers."""
    SIDECAR = "sidecar"
    """Started among the init containers, runs to the pod's end."""
    APP = "app"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRequest:
    """One container's demand, at its position in the pod (init containers first)."""

    name: str = field(compare=False)
    """For messages; two containers that ask for the same are equal whatever their names."""
    role: Role
    requests: tuple[DeviceRequest, ...] = ()
    """At most one for each vendor."""


class NodePolicy(StrEnum):
    """Which node is preferred."""

    BINPACK = "binpack"
    SPREAD = "spread"


class SortKey(StrEnum):
    """One thing by which devices are put in order of preference."""

    FULLEST = "fullest"
    """Highest score first."""
    EMPTIEST = "emptiest"
    """Lowest score first."""
    HIGH_NUMA = "high-numa"
    LOW_NUMA = "low-numa"
    FEWEST = "fewest"
    """Fewest containers first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePolicy:
    """Which device of a node is preferred, and which are not taken at all.

    ``parse`` reads the annotation's words. What remains equal is decided by index, then uuid, the
    higher first.
    """

    BINPACK: ClassVar[DevicePolicy]
    SPREAD: ClassVar[DevicePolicy]
    MUTEX: ClassVar[DevicePolicy]
    NUMA: ClassVar[DevicePolicy]
    TOPOLOGY: ClassVar[DevicePolicy]

    keys: tuple[SortKey, ...]
    mutex: bool = False
    """Only devices that nobody uses."""
    topology: bool = False
    """The set of devices with the best links; one device alone: the one with the worst."""

    @staticmethod
    def parse(text: str) -> DevicePolicy:
        """The policy of a word, or of several with commas between them. Never fails.

        A word that stands alone has a preference for NUMA nodes of its own; in a list, ``binpack``,
        ``spread`` and ``numa`` are sort keys in the given order. ``mutex`` and ``topology-aware``
        narrow the choice wherever they stand. What names no sort key means ``spread``.
        """
        words = [word.strip() for word in text.split(",")]
        if len(words) == 1:
            return _LONE_POLICIES.get(words[0], DevicePolicy.SPREAD)
        keys = dict.fromkeys(_LIST_KEYS[word] for word in words if word in _LIST_KEYS)
        return DevicePolicy(
            keys=tuple(keys) or (SortKey.EMPTIEST,),
            mutex="mutex" in words,
            topology="topology-aware" in words,
        )

    def bound_to_numa(self) -> DevicePolicy:
        """The same where all of a container's devices must be of one NUMA node.

        Which NUMA node is then decided first, by the policy: packing begins at the lowest.
        """
        if self == DevicePolicy.BINPACK:
            return replace(self, keys=(SortKey.LOW_NUMA, SortKey.FULLEST))
        if self.keys[0] in {SortKey.HIGH_NUMA, SortKey.FEWEST}:
            return self
        others = (key for key in self.keys if key is not SortKey.HIGH_NUMA)
        return replace(self, keys=(SortKey.HIGH_NUMA, *others))


DevicePolicy.BINPACK = DevicePolicy(keys=(SortKey.FULLEST, SortKey.HIGH_NUMA))
DevicePolicy.SPREAD = DevicePolicy(keys=(SortKey.EMPTIEST, SortKey.HIGH_NUMA))
DevicePolicy.MUTEX = DevicePolicy(keys=(SortKey.FEWEST, SortKey.HIGH_NUMA), mutex=True)
DevicePolicy.NUMA = DevicePolicy(keys=(SortKey.HIGH_NUMA,))
DevicePolicy.TOPOLOGY = replace(DevicePolicy.SPREAD, topology=True)

_LONE_POLICIES: Final = {
    "binpack": DevicePolicy.BINPACK,
    "spread": DevicePolicy.SPREAD,
    "mutex": DevicePolicy.MUTEX,
    "numa": DevicePolicy.NUMA,
    "topology-aware": DevicePolicy.TOPOLOGY,
}
_LIST_KEYS: Final = {
    "binpack": SortKey.FULLEST,
    "spread": SortKey.EMPTIEST,
    "numa": SortKey.HIGH_NUMA,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which devices of one vendor a pod accepts; empty means any."""

    use_types: tuple[str, ...] = ()
    """Upper-cased; one must be a substring of the upper-cased model."""
    avoid_types: tuple[str, ...] = ()
    use_uuids: frozenset[str] = frozenset()
    avoid_uuids: frozenset[str] = frozenset()
    modes: str = ""
    """A device's mode must be a substring of this, where it is not empty."""
    numa_bind: bool = False
    """All of the vendor's devices of one container must be on one NUMA node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How much each resource counts in a score."""

    slots: int = 1
    cores: int = 1
    memory: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRequest:
    """A pod's whole demand. Equal values are the same *signature*: they fit the same places."""

    containers: tuple[ContainerRequest, ...]
    node_policy: NodePolicy = NodePolicy.BINPACK
    device_policy: DevicePolicy = DevicePolicy.SPREAD
    weights: Weights = field(default_factory=Weights)
    selections: tuple[tuple[VendorName, Selection], ...] = ()
    """In order of vendor name; a vendor that is missing accepts any of its devices."""

    @property
    def empty(self) -> bool:
        """Whether no container asks for any device."""
        return not any(container.requests for container in self.containers)

    @property
    def roles(self) -> tuple[Role, ...]:
        """Of each container."""
        return tuple(container.role for container in self.containers)

    def selection(self, vendor: VendorName) -> Selection:
        """What the pod accepts of this vendor."""
        return next((s for name, s in self.selections if name == vendor), Selection())
