"""This site's vendor table: the built-in rows with the settings' names and defaults put in.

Both processes read pods and nodes by the same table, so it is made in one place. Pure.
"""

from __future__ import annotations

from dataclasses import replace

from hami.config import NvidiaSettings, Settings
from hami.core.quantity import MiB, Percent
from hami.core.vendor import ResourceNames, Vendor, VendorTable, table
from hami.core.vendors.nvidia import NVIDIA


def vendor_table(settings: Settings) -> VendorTable:
    """Every vendor's row, as this site has configured it."""
    return table([_nvidia(settings.nvidia)])


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
