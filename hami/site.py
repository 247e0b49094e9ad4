"""This site's vendor table and choice of nodes: what the settings mean to the core.

Both processes read pods and nodes by the same table, so it is made in one place. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from dataclasses import replace

from hami.config import EnflameSettings, HygonSettings, NvidiaSettings, Settings
from hami.core import selectors
from hami.core.device import VendorName
from hami.core.quantity import MiB, Percent
from hami.core.selectors import Selector
from hami.core.vendor import ResourceNames, Vendor, VendorTable, table
from hami.core.vendors.enflame import ENFLAME_GCU
from hami.core.vendors.hygon import HYGON
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import CodecError, ConfigError


def check(settings: Settings) -> None:
    """Refuse what is wrong only together, or only for what it is about.

    Raises:
        ConfigError: It is; the message names the setting or the resource.
    """
    vendor_table(settings)
    node_selector(settings)


def node_selector(settings: Settings) -> Selector:
    """Which nodes get pods with devices.

    Raises:
        ConfigError: The setting is no label selector.
    """
    try:
        return selectors.parse(settings.controller.node_label_selector)
    except CodecError as error:
        raise ConfigError(f"controller.node_label_selector: {error}") from error


def vendor_table(settings: Settings) -> VendorTable:
    """Every vendor's row, as this site has configured it; without a count's name it is left out.

    Raises:
        ConfigError: Two resources have one name.
    """
    rows = (_nvidia(settings.nvidia), _hygon(settings.hygon), _gcu(settings.enflame))
    used = [row for row in rows if row.resources.count]
    _refuse_repeated(used)
    return table(used)


def _refuse_repeated(rows: Iterable[Vendor]) -> None:
    owners: dict[str, Vendor] = {}
    for row in rows:
        for name in row.resources.all():
            if name in owners:
                raise ConfigError(
                    f"resource name {name!r}: expected one meaning, met it for "
                    f"{owners[name].name} and {row.name}"
                )
            owners[name] = row


def _nvidia(settings: NvidiaSettings) -> Vendor:
    return replace(
        NVIDIA,
        resources=ResourceNames(
            count=settings.count_name,
            memory=settings.memory_name,
            memory_percentage=settings.memory_percentage_name,
            cores=settings.cores_name,
            priority=settings.priority_name,
        ),
        default_count=settings.default_count,
        default_memory=MiB(settings.default_memory),
        default_cores=Percent(settings.default_cores),
        memory_factor=settings.memory_factor,
        runtime_class_name=settings.runtime_class_name,
        overwrite_env=settings.overwrite_env,
        core_policy=settings.core_policy,
    )


def _hygon(settings: HygonSettings) -> Vendor:
    return replace(
        HYGON,
        resources=ResourceNames(
            count=settings.count_name, memory=settings.memory_name, cores=settings.cores_name
        ),
        memory_factor=settings.memory_factor,
    )


def _gcu(settings: EnflameSettings) -> Vendor:
    return replace(ENFLAME_GCU, resources=ResourceNames(count=settings.gcu_count_name))


class CurrentVendors(Mapping[VendorName, Vendor]):
    """The vendor table of the settings of now, for a process whose settings change."""

    def __init__(self, now: Callable[[], Settings]) -> None:
        self._now = now
        self._of = now()
        self._table = vendor_table(self._of)

    def _current(self) -> VendorTable:
        now = self._now()
        if now is not self._of:
            self._of, self._table = now, vendor_table(now)
        return self._table

    def __getitem__(self, name: VendorName) -> Vendor:
        return self._current()[name]

    def __iter__(self) -> Iterator[VendorName]:
        return iter(self._current())

    def __len__(self) -> int:
        return len(self._current())

    def values(self) -> ValuesView[Vendor]:
        """The rows; as fast as those of the table itself."""
        return self._current().values()

    def items(self) -> ItemsView[VendorName, Vendor]:
        """Names and rows; as fast as those of the table itself."""
        return self._current().items()
