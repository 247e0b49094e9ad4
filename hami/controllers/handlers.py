"""From what the watch shows to the cache: level-based, idempotent, one object at a time.

Given a pod or a node, these make the allocation cache agree with it; being told twice changes
nothing. A pod counts from when it is bound until it is finished or gone: annotations of unbound
pods are left-overs, for what is on its way is known here as a reservation. An object that cannot be
read is reported, what was known of it stands, and no other object is touched.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from hami.controllers.counters import ControllerCounters
from hami.controllers.twins import Twins, keys_of_allocation
from hami.core import codec, inventory, record, resize
from hami.core.allocation import Allocation, BindPhase
from hami.core.cache import AllocationCache, State
from hami.core.codec_links import PairScores
from hami.core.codec_resize import RESIZE_STATUS_KEY, number_of
from hami.core.device import Device, VendorName
from hami.core.objects import Node, Pod
from hami.core.selectors import EVERYTHING, Selector
from hami.core.vendor import VendorTable
from hami.errors import CodecError
from hami.kube.events import EventRecorder
from hami.kube.resources import NODES, PODS, ObjectRef
from hami.logs import get_logger

log = get_logger(__name__)

DEVICES_SHOWN: Final = 8
"""In one line of the log."""


class PodHandler:
    """Keeps what pods hold, and which of them still wait for their devices."""

    def __init__(
        self,
        cache: AllocationCache,
        twins: Twins,
        *,
        vendors: VendorTable,
        recorder: EventRecorder,
        counters: ControllerCounters,
    ) -> None:
        self._cache = cache
        self._twins = twins
        self._vendors = vendors
        self._recorder = recorder
        self._counters = counters

    def on_set(self, pod: Pod, old: Pod | None) -> None:
        """Count the pod as it is now."""
        if pod.finished:
            self.on_delete(pod)
        elif pod.spec.node_name:
            self._count_bound(pod, old)

    def on_delete(self, pod: Pod) -> None:
        """Nothing is held for the pod any more."""
        self._cache.forget(pod.metadata.uid)
        self._twins.leave(pod.metadata.uid)

    def _count_bound(self, pod: Pod, old: Pod | None) -> None:
        uid = pod.metadata.uid
        try:
            allocation = record.allocation_of(pod, self._vendors)
        except CodecError as error:
            self._report(pod, old, f"the record of its devices cannot be read: {error}")
            self._keep_known(pod)
            return
        if allocation is not None and allocation.node != pod.spec.node_name:
            self._report(
                pod,
                old,
                f"the record of its devices is for node {allocation.node[:253]}, "
                f"but it is bound to {pod.spec.node_name}",
            )
            allocation = None
        if allocation is None:
            self._drop_unrecorded(pod)
            return
        self._cache.confirm(
            resize.held(allocation, pod),
            init_done=record.init_done(pod),
            resizes=number_of(pod.annotations.get(RESIZE_STATUS_KEY, "")),
        )
        if old is None or old.annotations != pod.annotations:
            self._tell_unknown(allocation)
        for problem in record.problems(pod, self._vendors):
            self._report(pod, old, problem)
        if _is_allocating(pod):
            self._twins.saw_allocating(
                uid, node=allocation.node, keys=keys_of_allocation(allocation, self._vendors)
            )
        else:
            self._twins.leave(uid)

    def _keep_known(self, pod: Pod) -> None:
        """What was bound here or seen before goes on counting, and does not expire."""
        known = self._cache.get(pod.metadata.uid)
        allocation = record.salvage(pod, self._vendors) if known is None else known.allocation
        if allocation is not None and allocation.node == pod.spec.node_name:
            self._cache.confirm(allocation, init_done=record.init_done(pod))

    def _tell_unknown(self, allocation: Allocation) -> None:
        """Devices that the node does not register: they count once it does."""
        there = {device.uuid for device in self._cache.table.devices(allocation.node)}
        unknown = sorted({d.uuid for own in allocation.containers for d in own} - there)
        if unknown:
            log.warning(
                "allocation_of_unknown_devices",
                pod=allocation.pod,
                node=allocation.node,
                devices=unknown[:DEVICES_SHOWN],
                count=len(unknown),
            )

    def _drop_unrecorded(self, pod: Pod) -> None:
        """A bound pod without a (valid) record holds nothing, whatever was thought before."""
        uid = pod.metadata.uid
        known = self._cache.get(uid)
        if known is not None and known.state is State.CONFIRMED:
            log.warning("allocation_record_vanished", pod=pod.key, node=known.allocation.node)
        self._cache.forget(uid)
        self._twins.leave(uid)

    def _report(self, pod: Pod, old: Pod | None, problem: str) -> None:
        if old is not None and old.annotations == pod.annotations and old.spec.node_name:
            return
        self._counters.malformed.labels("pod").inc()
        log.warning("pod_annotations_malformed", pod=pod.key, uid=pod.metadata.uid, error=problem)
        self._recorder.record(
            ObjectRef.to(PODS, pod), "AllocationUnreadable", problem, type="Warning"
        )


def _is_allocating(pod: Pod) -> bool:
    phase = pod.annotations.get(codec.BIND_PHASE_KEY)
    return phase == BindPhase.ALLOCATING and pod.status.phase in {"", "Pending"}


@dataclass(slots=True, kw_only=True)
class _Known:
    """What was last made of a node."""

    node: Node
    identity: tuple[object, ...] = ()
    devices: dict[VendorName, tuple[Device, ...]] = field(default_factory=dict)
    """The last inventory of each vendor that could be read."""
    pairs: PairScores = field(default_factory=dict)
    silent: set[VendorName] = field(default_factory=set)
    """Vendors whose agent does not answer."""


class NodeHandler:
    """Keeps which devices nodes have, and which of them can be used."""

    def __init__(
        self,
        cache: AllocationCache,
        *,
        vendors: VendorTable,
        recorder: EventRecorder,
        counters: ControllerCounters,
        selector: Selector = EVERYTHING,
    ) -> None:
        self._cache = cache
        self._vendors = vendors
        self._recorder = recorder
        self._counters = counters
        self._selector = selector
        self._nodes: dict[str, _Known] = {}

    def on_set(self, node: Node, _: Node | None) -> None:
        """Offer the node's devices as it has them now; none of a node that is not selected."""
        if not self._selector.matches(node.metadata.labels):
            self._leave_out(node)
            return
        known = self._nodes.setdefault(node.name, _Known(node=node))
        if known.node.metadata.uid != node.metadata.uid:
            self._nodes[node.name] = known = _Known(node=node)  # another machine of that name
        known.node = node
        identity = inventory.identity(node, self._vendors)
        if known.identity == identity:
            return
        known.identity = identity
        found = inventory.devices_of(node, self._vendors)
        unreadable = {problem.vendor: problem.error for problem in found.problems}
        known.devices = {
            **{v: d for v, d in known.devices.items() if v in unreadable},
            **found.devices,
        }
        known.pairs = found.pairs
        for error in (*unreadable.values(), *found.pair_problems):
            self._report(node, error)
        self._apply(known)

    def on_delete(self, node: Node) -> None:
        """The node is gone; pods that were bound to it count until they are gone as well."""
        self._nodes.pop(node.name, None)
        self._cache.remove_node(node.name)

    def offers(self, name: str) -> bool:
        """Whether the node is one of those that are selected."""
        return name in self._nodes

    def _leave_out(self, node: Node) -> None:
        if node.name in self._nodes:
            log.info("node_deselected", node=node.name)
            self.on_delete(node)

    def set_silent(self, name: str, vendors: Collection[VendorName]) -> None:
        """Which vendors' agents do not answer on the node: their devices cannot be used."""
        known = self._nodes.get(name)
        if known is None or known.silent == set(vendors):
            return
        log.warning("node_agents_changed", node=name, silent=sorted(vendors))
        known.silent = set(vendors)
        self._apply(known)

    def _apply(self, known: _Known) -> None:
        name = known.node.name
        self._tell_missing(known)
        if not known.devices:
            self._cache.remove_node(name)
            return
        without = known.silent | {
            vendor.name
            for vendor in self._vendors.values()
            if inventory.allocatable(known.node, vendor) == 0
        }
        self._cache.set_node(
            name,
            inventory.usable(known.devices, without=without),
            cordoned=inventory.cordoned(known.node),
            pairs=known.pairs,
        )
        log.debug(
            "node_devices_set",
            node=name,
            devices=sum(len(own) for own in known.devices.values()),
            without=sorted(without),
        )

    def _tell_missing(self, known: _Known) -> None:
        """Devices that were there and are gone, although pods hold them: they go on being held."""
        before = {device.uuid for device in self._cache.table.devices(known.node.name)}
        missing = before - {d.uuid for own in known.devices.values() for d in own}
        if not missing:
            return
        holders = [
            held.allocation.pod
            for held in self._cache.reservations(known.node.name)
            if not missing.isdisjoint(held.charges)
        ]
        log.warning(
            "node_devices_missing",
            node=known.node.name,
            devices=sorted(missing)[:DEVICES_SHOWN],
            count=len(missing),
            held_by=holders[:DEVICES_SHOWN],
        )

    def _report(self, node: Node, error: str) -> None:
        self._counters.malformed.labels("node").inc()
        log.warning("node_annotations_malformed", node=node.name, error=error)
        self._recorder.record(
            ObjectRef.to(NODES, node), "InventoryUnreadable", error, type="Warning"
        )
