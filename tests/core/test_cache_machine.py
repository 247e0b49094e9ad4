"""The cache against a plain dict, under any order of calls.

Laws: what is used of a device is the sum of what is held on it, and never negative; a decision is
refused exactly if its node changed since, or the pod is bound; replaying a call changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from hami.core.allocation import Allocation, Charge, ContainerDevice
from hami.core.cache import AllocationCache, State
from hami.core.device import Device, DeviceUuid, Role
from hami.errors import StaleSnapshotError
from tests.support.builders import given, make_allocation, make_device

NODES = ("node-0", "node-1")
UUIDS = ("GPU-0", "GPU-1", "GPU-2")

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
)
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

    # -- pods -------------------------------------------------------------------------------

    def allocation(self, uid: str, node: str, both: Containers2) -> Allocation:
        return make_allocation(*both, uid=uid, node=node, roles=[Role.INIT, Role.APP])

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
        self.cache.hold(self.allocation(uid, node, both), expires_at=self.now + wait)
        if uid not in self.held or self.held[uid].state is State.HELD:
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
        self.cache.reserve(allocation, generation=generation, expires_at=self.now + wait)
        self.put(uid, node, both, State.RESERVED, self.now + wait)

    @rule(uid=uids, node=nodes, both=containers, init_done=st.booleans())
    def confirm(self, uid: str, node: str, both: Containers2, init_done: bool) -> None:
        allocation = self.allocation(uid, node, both)
        self.cache.confirm(allocation, init_done=init_done)
        kept: Containers2 = ((), both[1]) if init_done else both
        self.put(uid, node, kept, State.CONFIRMED, None)
        generation = self.cache.table.generation(node)
        self.cache.confirm(allocation, init_done=init_done)
        assert self.cache.table.generation(node) == generation

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
