"""The cache against a plain dict, under any order of calls.

Laws: what is used of a device is the sum of what is held on it, and never negative; what is used of
a quota is the sum of what is held in its namespace, for ever; a decision is refused exactly if its
node changed since, the pod is bound, or a quota would be broken; replaying a call changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from hami.core.allocation import Allocation, Charge, ContainerDevice
from hami.core.cache import AllocationCache, State
from hami.core.device import Device, DeviceUuid, Role
from hami.core.quota import Amount, read_quota
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import QuotaExceededError, StaleSnapshotError
from tests.support.builders import (
    OTHER,
    VENDORS,
    given,
    make_allocation,
    make_device,
    make_quota,
)

NODES = ("node-0", "node-1")
UUIDS = ("GPU-0", "GPU-1", "GPU-2")
NAMESPACES = {"uid-a": "team", "uid-b": "team", "uid-c": "others"}

nodes = st.sampled_from(NODES)
uids = st.sampled_from(["uid-a", "uid-b", "uid-c"])
inventories = st.sets(st.sampled_from(UUIDS)).map(
    lambda uuids: tuple(make_device(uuid, index=i) for i, uuid in enumerate(sorted(uuids)))
)
shares = st.builds(
    given,
    st.sampled_from([*UUIDS, "GPU-unknown"]),
    memory=st.sampled_from([0, 100, 3000]),
    cores=st.sampled_from([0, 10, 100]),
    vendor=st.sampled_from([NVIDIA.name, NVIDIA.name, OTHER.name]),
)
limits = st.none() | st.sampled_from([0, 100, 3100, 6000, 50_000])
Containers2 = tuple[tuple[ContainerDevice, ...], tuple[ContainerDevice, ...]]
containers: st.SearchStrategy[Containers2] = st.tuples(
    st.lists(shares, max_size=2).map(tuple), st.lists(shares, max_size=2).map(tuple)
)
seconds = st.integers(1, 20).map(float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What the model knows of one pod."""

    state: State
    node: str
    init: tuple[ContainerDevice, ...]
    app: tuple[ContainerDevice, ...]
    expires_at: float | None


def total(devices: tuple[ContainerDevice, ...], uuid: str) -> tuple[int, int, int]:
    mine = [device for device in devices if device.uuid == uuid]
    return len(mine), sum(d.memory for d in mine), sum(d.cores for d in mine)


class CacheMachine(RuleBasedStateMachine):
    """Every method of the cache, and a dict that says what it should hold."""

    decisions = Bundle("decisions")

    def __init__(self) -> None:
        super().__init__()
        self.cache = AllocationCache()
        self.inventory: dict[str, tuple[Device, ...]] = {}
        self.held: dict[str, Held] = {}
        self.quotas: dict[tuple[str, str], tuple[int | None, int | None]] = {}
        self.version: dict[str, int] = dict.fromkeys(NODES, 0)
        self.now = 0.0

    # -- nodes ------------------------------------------------------------------------------

    @rule(node=nodes, devices=inventories)
    def set_node(self, node: str, devices: tuple[Device, ...]) -> None:
        if self.inventory.get(node) != devices:
            self.version[node] += 1
        self.inventory[node] = devices
        self.cache.set_node(node, devices)
        generation = self.cache.table.generation(node)
        self.cache.set_node(node, reversed(devices))
        assert self.cache.table.generation(node) == generation

    @rule(node=nodes)
    def remove_node(self, node: str) -> None:
        if self.inventory.pop(node, None) is not None:
            self.version[node] += 1
        self.cache.remove_node(node)
        self.cache.remove_node(node)

    # -- quotas -----------------------------------------------------------------------------

    @rule(
        namespace=st.sampled_from(["team", "others"]),
        name=st.sampled_from(["x", "y"]),
        memory=limits,
        cores=limits,
    )
    def set_quota(self, namespace: str, name: str, memory: int | None, cores: int | None) -> None:
        self.quotas[namespace, name] = memory, cores
        obj = make_quota(name, namespace=namespace, memory=memory, cores=cores)
        self.cache.quotas.set_quota(read_quota(obj, VENDORS)[0])

    @rule(namespace=st.sampled_from(["team", "others"]), name=st.sampled_from(["x", "y"]))
    def remove_quota(self, namespace: str, name: str) -> None:
        self.quotas.pop((namespace, name), None)
        self.cache.quotas.remove_quota(namespace, name)

    def use(self, held: Held) -> dict[str, tuple[int, int]]:
        """Memory and cores of each vendor: the larger of the init and the app container's sum."""
        taken: dict[str, tuple[int, int]] = {}
        for vendor in {d.vendor for d in held.init + held.app}:
            sums = [
                (sum(d.memory for d in own), sum(d.cores for d in own))
                for both in (held.init, held.app)
                for own in [[d for d in both if d.vendor == vendor]]
            ]
            taken[str(vendor)] = max(m for m, _ in sums), max(c for _, c in sums)
        return taken

    def used(self, namespace: str, *, without: str = "") -> dict[str, tuple[int, int]]:
        """The sum over the namespace's pods, but for one."""
        total: dict[str, tuple[int, int]] = {}
        for uid, held in self.held.items():
            if NAMESPACES[uid] == namespace and uid != without:
                for vendor, (memory, cores) in self.use(held).items():
                    before = total.get(vendor, (0, 0))
                    total[vendor] = before[0] + memory, before[1] + cores
        return {vendor: both for vendor, both in total.items() if both != (0, 0)}

    def breaks_a_quota(self, uid: str, held: Held) -> bool:
        namespace = NAMESPACES[uid]
        needed = self.use(held).get(NVIDIA.name, (0, 0))
        others = self.used(namespace, without=uid).get(NVIDIA.name, (0, 0))
        return any(
            most is not None and needed[i] and needed[i] + others[i] > most
            for (where, _), quota in self.quotas.items()
            if where == namespace
            for i, most in enumerate(quota)
        )

    # -- pods -------------------------------------------------------------------------------

    def allocation(self, uid: str, node: str, both: Containers2) -> Allocation:
        roles = [Role.INIT, Role.APP]
        return make_allocation(*both, uid=uid, namespace=NAMESPACES[uid], node=node, roles=roles)

    def put(
        self, uid: str, node: str, both: Containers2, state: State, expires_at: float | None
    ) -> None:
        init, app = both
        new = Held(state=state, node=node, init=init, app=app, expires_at=expires_at)
        old = self.held.get(uid)
        if old is None or (old.node, self.cost(old)) != (node, self.cost(new)):
            self.version[node] += 1
            if old is not None:
                self.version[old.node] += 1
        self.held[uid] = new

    @staticmethod
    def cost(held: Held) -> dict[str, tuple[int, int, int]]:
        """The larger of what the init and the app container take, device by device."""
        taken = {}
        for uuid in {d.uuid for d in held.init + held.app}:
            pairs = zip(total(held.init, uuid), total(held.app, uuid), strict=True)
            slots, memory, cores = (max(pair) for pair in pairs)
            taken[uuid] = (slots, memory, cores)
        return dict(sorted(taken.items()))

    def end(self, uid: str) -> None:
        self.version[self.held.pop(uid).node] += 1

    @rule(uid=uids, node=nodes, both=containers, wait=seconds)
    def hold(self, uid: str, node: str, both: Containers2, wait: float) -> None:
        allocation = self.allocation(uid, node, both)
        new = Held(state=State.HELD, node=node, init=both[0], app=both[1], expires_at=None)
        free = uid not in self.held or self.held[uid].state is State.HELD
        if free and self.breaks_a_quota(uid, new):
            with pytest.raises(QuotaExceededError, match="quota"):
                self.cache.hold(allocation, expires_at=self.now + wait)
            return
        self.cache.hold(allocation, expires_at=self.now + wait)
        if free:
            self.put(uid, node, both, State.HELD, self.now + wait)

    @rule(target=decisions, uid=uids, node=nodes, both=containers)
    def decide(
        self, uid: str, node: str, both: Containers2
    ) -> tuple[str, str, Containers2, int, int]:
        return uid, node, both, self.cache.table.generation(node), self.version[node]

    @rule(decision=decisions, wait=seconds)
    def reserve(self, decision: tuple[str, str, Containers2, int, int], wait: float) -> None:
        uid, node, both, generation, version = decision
        allocation = self.allocation(uid, node, both)
        bound = uid in self.held and self.held[uid].state is State.CONFIRMED
        stale = node not in self.inventory or version != self.version[node]
        if bound or stale:
            with pytest.raises(StaleSnapshotError):
                self.cache.reserve(allocation, generation=generation, expires_at=self.now + wait)
            return
        new = Held(state=State.RESERVED, node=node, init=both[0], app=both[1], expires_at=None)
        if self.breaks_a_quota(uid, new):
            with pytest.raises(QuotaExceededError, match="quota"):
                self.cache.reserve(allocation, generation=generation, expires_at=self.now + wait)
            return
        self.cache.reserve(allocation, generation=generation, expires_at=self.now + wait)
        self.put(uid, node, both, State.RESERVED, self.now + wait)

    @rule(uid=uids, node=nodes, both=containers, init_done=st.booleans())
    def confirm(self, uid: str, node: str, both: Containers2, init_done: bool) -> None:
        allocation = self.allocation(uid, node, both)
        self.cache.confirm(allocation, init_done=init_done)
        kept: Containers2 = ((), both[1]) if init_done else both
        self.put(uid, node, kept, State.CONFIRMED, None)
        generations = self.cache.table.generation(node), self.cache.quotas.generation
        self.cache.confirm(allocation, init_done=init_done)
        assert (self.cache.table.generation(node), self.cache.quotas.generation) == generations

    @rule(uid=uids)
    def keep(self, uid: str) -> None:
        self.cache.keep(uid)
        if uid in self.held:
            self.held[uid] = replace(self.held[uid], expires_at=None)

    @rule(uid=uids)
    def release(self, uid: str) -> None:
        expected = uid in self.held and self.held[uid].state is not State.CONFIRMED
        assert self.cache.release(uid) is expected
        if expected:
            self.end(uid)
        assert not self.cache.release(uid)

    @rule(uid=uids)
    def forget(self, uid: str) -> None:
        self.cache.forget(uid)
        if uid in self.held:
            self.end(uid)
        self.cache.forget(uid)

    @rule(wait=seconds)
    def expire(self, wait: float) -> None:
        self.now += wait
        late = {u for u, h in self.held.items() if h.expires_at and h.expires_at <= self.now}
        ended = self.cache.expire(self.now)
        assert {reservation.allocation.uid for reservation in ended} == late
        for uid in late:
            self.end(uid)
        assert self.cache.expire(self.now) == ()

    @precondition(lambda self: self.held)
    @rule()
    def rebuild(self) -> None:
        """A cache filled from what is known anew holds the same: a restart forgets nothing."""
        fresh = AllocationCache()
        for reservation in self.cache.reservations():
            fresh.confirm(reservation.allocation)
        for node, devices in self.inventory.items():
            fresh.set_node(node, devices)
        for uid, held in self.held.items():
            kept = self.cache.get(uid)
            assert kept is not None
            if not held.init and kept.allocation.containers[0]:
                fresh.confirm(kept.allocation, init_done=True)
        for namespace in ("team", "others"):
            assert fresh.quotas.used(namespace) == self.cache.quotas.used(namespace)
        for node in self.inventory:
            assert fresh.table.used(node) == self.cache.table.used(node)

    # -- laws -------------------------------------------------------------------------------

    @invariant()
    def pods_are_those_of_the_model(self) -> None:
        assert len(self.cache) == len(self.held)
        for uid, held in self.held.items():
            reservation = self.cache.get(uid)
            assert reservation is not None
            assert reservation.state is held.state
            assert reservation.allocation.node == held.node
            assert reservation.expires_at == held.expires_at
        for node in NODES:
            on_node = {uid for uid, held in self.held.items() if held.node == node}
            assert {r.allocation.uid for r in self.cache.reservations(node)} == on_node

    @invariant()
    def used_is_the_sum_of_what_is_held(self) -> None:
        for node in NODES:
            sums = {DeviceUuid(d.uuid): Charge() for d in self.inventory.get(node, ())}
            for held in self.held.values():
                for uuid, (slots, memory, cores) in self.cost(held).items():
                    if held.node == node and uuid in sums:
                        sums[DeviceUuid(uuid)] += Charge(slots=slots, memory=memory, cores=cores)
            used = self.cache.table.used(node)
            assert used == sums
            assert all(min(c.slots, c.memory, c.cores) >= 0 for c in used.values())

    @invariant()
    def quota_usage_is_the_sum_of_what_is_held(self) -> None:
        for namespace in ("team", "others"):
            assert self.cache.quotas.used(namespace) == {
                vendor: Amount(memory=memory, cores=cores)
                for vendor, (memory, cores) in self.used(namespace).items()
            }
        live = {NAMESPACES[uid] for uid in self.held if self.used(NAMESPACES[uid])}
        limited = {where for (where, _), quota in self.quotas.items() if quota != (None, None)}
        assert self.cache.quotas.namespaces() == live | limited

    @invariant()
    def nodes_without_pods_are_not_remembered(self) -> None:
        assert set(self.cache._by_node) == {held.node for held in self.held.values()}
        assert set(self.cache._expiring) == {
            uid for uid, held in self.held.items() if held.expires_at is not None
        }

    @invariant()
    def nothing_is_charged_beyond_the_known_devices(self) -> None:
        columns = self.cache.table.columns
        charged = columns.used_slots + columns.used_memory + columns.used_cores
        assert not charged[~columns.present].any()


TestCache = CacheMachine.TestCase
TestCache.settings = settings(stateful_step_count=30)
