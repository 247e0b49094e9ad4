"""What differs between accelerators: one frozen row a vendor, one table.

Rules are the same for all; a row says names, keys and defaults. Site settings make a new row with
``dataclasses.replace``; nothing is registered at import.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hami.core.device import VendorName
from hami.core.quantity import MiB, Percent

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
class Vendor:
    """One maker's devices."""

    name: VendorName
    """The keyword: second field of an allocation's entries on the wire."""
    resources: ResourceNames
    register_key: str
    """Node annotation with the device inventory."""
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
    default_count: int = 1
    """Devices for a request that names memory or cores alone; 0 leaves such a pod alone."""
    default_memory: MiB = MiB(0)
    """For a request without memory; 0 is the whole device."""
    default_cores: Percent = Percent(0)
    memory_factor: int = 1
    runtime_class_name: str = ""
    overwrite_env: bool = False
    core_policy: str = "default"


def table(rows: Iterable[Vendor]) -> VendorTable:
    """The rows by name, in the given order."""
    return MappingProxyType({row.name: row for row in rows})
