"""What differs between accelerators: one frozen row a vendor, one table.

Rules are the same for all; a row says names, keys and defaults. Site settings make a new row with
``dataclasses.replace``; nothing is registered at import.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from hami.core.device import VendorName
from hami.core.quantity import MiB, Percent
from hami.core.verdict import Reason

VendorTable = Mapping[VendorName, "Vendor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceNames:
    """Extended resources that users write in a container's limits; empty means not offered."""

    count: str
    memory: str = ""
    memory_percentage: str = ""
    cores: str = ""
    priority: str = ""

    def all(self) -> tuple[str, ...]:
        """Those that are offered, in the order above."""
        names = (self.count, self.memory, self.memory_percentage, self.cores, self.priority)
        return tuple(name for name in names if name)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionKeys:
    """Pod annotations by which users choose among the vendor's devices; empty means none."""

    use_type: str = ""
    avoid_type: str = ""
    use_uuid: str = ""
    avoid_uuid: str = ""
    mode: str = ""
    numa_bind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvNames:
    """Variables that admission writes into containers; empty means never."""

    priority: str = ""
    core_policy: str = ""
    visible_devices: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedDevices:
    """What devices are like that no agent registers: the kubelet tells how many, nothing else."""

    uuid: str
    """With ``{node}`` and ``{index}`` in it."""
    slots: int
    memory: MiB
    cores: Percent


class Lock(Enum):
    """What bind takes before it gives a pod to a node, for the vendor's agent to find its pod."""

    NONE = "none"
    NODE = "node"
    """The node's lock annotation (see ``nodelock``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """One maker's devices."""

    name: VendorName
    """The keyword: second field of an allocation's entries on the wire."""
    resources: ResourceNames
    register_key: str = ""
    """Node annotation with the device inventory; empty: the devices are ``counted``."""
    counted: CountedDevices | None = None
    """What the devices are like where the node's capacity is all there is to know."""
    handshake_key: str = ""
    """Node annotation by which controller and agent see each other live; empty: none."""
    to_allocate_key: str
    """Pod annotation that the vendor's agent consumes."""
    allocated_key: str
    """Pod annotation that stays as the record."""
    mig_key: str = ""
    """Pod annotation with the MIG instances among its devices; empty: there are none."""
    pair_scores_key: str = ""
    """Node annotation that says how well its devices are linked; empty: nobody tells."""
    selection_keys: SelectionKeys = SelectionKeys()
    env: EnvNames = EnvNames()
    skipped_rules: frozenset[Reason] = frozenset()
    """Rules that do not apply to these devices."""
    lock: Lock = Lock.NONE
    agent_consumes: bool = True
    """Whether the vendor's agent takes the devices of a kubelet's call from the pod's annotation.

    Else the kubelet's choice of devices stands, nobody writes on the pod, and pods in flight on
    one node cannot be mistaken for each other.
    """
    default_count: int = 1
    """Devices for a request that names memory or cores alone; 0 leaves such a pod alone."""
    default_memory: MiB = MiB(0)
    """For a request without memory; 0 is the whole device."""
    default_cores: Percent = Percent(0)
    fill_cores: bool = True
    """Whether admission writes the cores of a request for whole devices into its limits."""
    memory_factor: int = 1
    runtime_class_name: str = ""
    overwrite_env: bool = False
    core_policy: str = "default"


def table(rows: Iterable[Vendor]) -> VendorTable:
    """The rows by name, in the given order."""
    return MappingProxyType({row.name: row for row in rows})
