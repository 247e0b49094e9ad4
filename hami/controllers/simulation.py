"""Filter over whole nodes: what would be, for a caller that only wonders. Never a side effect.

The cluster autoscaler and its like send Node objects, some of which do not exist: templates of
nodes that could be added. Nodes that are registered here are answered from the allocation cache,
the others from their own annotations, with nothing used. Every node that fits is in the answer,
whatever the mode; nothing is held and nobody is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

import anyio.to_thread
import msgspec

from hami.controllers.extender import Feasible, rank
from hami.core import inventory, whatif
from hami.core.cache import AllocationCache
from hami.core.device import PodRequest, VendorName
from hami.core.objects import Node, Pod
from hami.core.placement import Placer
from hami.core.quota import Room
from hami.core.request import Defaults, read_request
from hami.core.table import DeviceTable
from hami.core.vendor import VendorTable
from hami.core.verdict import NodeReason

AT_ONCE: Final = 50
"""Unregistered nodes that are read without leaving the event loop; more take a thread."""

_NODE = msgspec.json.Decoder(Node)


class Simulation:
    """Answers filters that carry whole nodes."""

    def __init__(
        self, cache: AllocationCache, placer: Placer, *, vendors: VendorTable, defaults: Defaults
    ) -> None:
        self._cache = cache
        self._placer = placer
        self._vendors = vendors
        self._defaults = defaults

    async def filter(self, pod: Pod, objects: Mapping[str, msgspec.Raw]) -> Feasible:
        """Which of these nodes could take the pod, and why the others could not.

        Raises:
            CodecError: The request cannot be read.
        """
        request = read_request(pod, self._vendors, self._defaults)
        names = tuple(objects)
        if request.empty:
            return Feasible(nodes=names, failed=None)
        unknown = {name: raw for name, raw in objects.items() if name not in self._cache.table.rows}
        known = tuple(name for name in names if name not in unknown)
        now = rank(self._cache, self._placer, pod, request, known)
        failed = {**now.failed, **await self._failing_templates(pod, request, unknown)}
        own_node = self._would_fit_without_itself(pod, request, failed)
        if own_node is not None:
            del failed[own_node]
        return Feasible(nodes=tuple(name for name in names if name not in failed), failed=failed)

    async def _failing_templates(
        self, pod: Pod, request: PodRequest, raws: Mapping[str, msgspec.Raw]
    ) -> dict[str, str]:
        room = self._cache.quotas.room(pod.metadata.namespace)
        ask = partial(_failing, request, raws, room, self._vendors)
        return ask() if len(raws) <= AT_ONCE else await anyio.to_thread.run_sync(ask)

    def _would_fit_without_itself(
        self, pod: Pod, request: PodRequest, failed: Mapping[str, str]
    ) -> str | None:
        """The node that fails only for what the pod itself holds there already."""
        own = self._cache.get(pod.metadata.uid) if pod.metadata.uid else None
        if own is None or own.allocation.node not in failed:
            return None
        node = own.allocation.node
        (fits,) = whatif.fits_without(self._cache.table, request, node, [[own.charges]])
        return node if fits else None


def _failing(
    request: PodRequest,
    raws: Mapping[str, msgspec.Raw],
    room: Room | None,
    vendors: VendorTable,
) -> dict[str, str]:
    """Why nodes that nobody uses do not fit, each as its own object describes it."""
    table = DeviceTable()
    unreadable: dict[str, str] = {}
    for name, raw in raws.items():
        try:
            _register(table, name, _NODE.decode(raw), vendors)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            unreadable[name] = f"{NodeReason.UNREGISTERED.value}: {error}"
    return Placer(table).rank(request, tuple(raws), room=room).failed | unreadable


def _register(table: DeviceTable, name: str, node: Node, vendors: VendorTable) -> None:
    devices = inventory.devices_of(node, vendors).devices
    without = _without_shares(node, vendors)
    usable = inventory.usable(devices, without=without)
    if usable:
        table.set_node(name, usable, cordoned=inventory.cordoned(node))


def _without_shares(node: Node, vendors: VendorTable) -> list[VendorName]:
    return [v.name for v in vendors.values() if inventory.allocatable(node, v) == 0]
