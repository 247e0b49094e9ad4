"""Enflame's row: whole GCUs, of which the kubelet tells how many there are and nothing else.

Memory and cores are not asked for; a card has 100 of each, so that the shared scores and gauges
read as percent.
"""

from __future__ import annotations

from typing import Final

from hami.core.device import VendorName
from hami.core.quantity import MiB, Percent
from hami.core.vendor import CountedDevices, ResourceNames, Vendor
from hami.core.verdict import Reason

ENFLAME_GCU: Final = Vendor(
    name=VendorName("GCU"),
    resources=ResourceNames(count="enflame.com/gcu"),
    counted=CountedDevices(uuid="{node}-GCU-{index}", slots=1, memory=MiB(100), cores=Percent(100)),
    to_allocate_key="hami.io/enflame-gcu-devices-to-allocate",
    allocated_key="hami.io/enflame-gcu-devices-allocated",
    skipped_rules=frozenset({Reason.SLOTS, Reason.MEMORY, Reason.CORES, Reason.CORES_EXHAUSTED}),
    agent_consumes=False,
    default_count=0,
    default_memory=MiB(100),
    default_cores=Percent(100),
)
