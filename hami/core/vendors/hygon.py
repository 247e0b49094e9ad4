"""Hygon's row: shared DCUs, registered by an agent of their maker's project."""

from __future__ import annotations

from typing import Final

from hami.core.device import VendorName
from hami.core.quantity import Percent
from hami.core.vendor import Lock, ResourceNames, SelectionKeys, Vendor

HYGON: Final = Vendor(
    name=VendorName("DCU"),
    resources=ResourceNames(
        count="hygon.com/dcunum", memory="hygon.com/dcumem", cores="hygon.com/dcucores"
    ),
    register_key="hami.io/node-dcu-register",
    handshake_key="hami.io/node-handshake-dcu",
    to_allocate_key="hami.io/dcu-devices-to-allocate",
    allocated_key="hami.io/dcu-devices-allocated",
    selection_keys=SelectionKeys(
        use_type="hygon.com/use-dcutype",
        avoid_type="hygon.com/nouse-dcutype",
        use_uuid="hygon.com/use-gpuuuid",
        avoid_uuid="hygon.com/nouse-gpuuuid",
    ),
    lock=Lock.NODE,
    default_count=0,
    default_cores=Percent(100),
    fill_cores=False,
)
