"""The allocation cache: which devices exist and what is held of them. Truth in memory.

Rebuilt at any time from Nodes and Pods; nothing here is durable. Every node has a generation. A
decision is made against the table, and reserved with the generation it saw: if the node changed
meanwhile, the caller decides again (cheap: one node, no I/O).

What is held for a pod goes through these states::

    (nothing) --hold--> HELD --reserve--> RESERVED --confirm--> CONFIRMED --forget--> (nothing)
                          |                   |
                          +--expire/release---+--> (nothing)

HELD is a filter's soft choice, RESERVED a bind under way, CONFIRMED what the API server shows. An
older watch event does not undo HELD or RESERVED: only ``forget`` (the pod is gone or finished),
``release`` (the bind failed) and ``expire`` (nobody came back) do. None of the methods awaits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from hami.core import quota, resize
from hami.core.allocation import Allocation, Charge
from hami.core.device import Device, DeviceUuid, PodRequest, VendorName
from hami.core.quota import NO_USE, Lack, QuotaBook, QuotaUse
from hami.core.table import NO_PAIRS, DeviceTable, PairScores
from hami.errors import QuotaExceededError, StaleSnapshotError


class State(StrEnum):
    """How sure it is that the pod holds its devices."""

    HELD = "held"
    RESERVED = "reserved"
    CONFIRMED = "confirmed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What is held for one pod."""

    allocation: Allocation
    state: State
    charges: Mapping[DeviceUuid, Charge]
    use: QuotaUse
    """What it counts for in its namespace."""
    expires_at: float | None
    """On the caller's monotonic clock; None never expires."""
    generation: int
    """Of the node once this was kept there: while the node has it, nothing else has changed."""
    request: PodRequest | None
    """What it was decided for, where the decider said so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Resize:
    """What a bound pod is about to have."""

    allocation: Allocation
    expires_at: float
    number: int


class AllocationCache:
    """The one owner of the device table and of the quota book.

    Laws: for every device of a known node, used = the sum over all reservations of that node; for
    every namespace, usage = the sum over all its reservations.

    ``on_room`` is told each node where something was given back or set anew; it only takes note.
    """

    def __init__(self) -> None:
        self.table = DeviceTable()
        self.quotas = QuotaBook()
        self.on_room: Callable[[str], None] = lambda _node: None
        self._by_pod: dict[str, Reservation] = {}
        self._by_node: dict[str, dict[str, None]] = {}  # inner ones are replaced, never changed
        self._expiring: dict[str, float] = {}
        self._resizes: dict[str, _Resize] = {}

    def duplicate(self) -> AllocationCache:
        """A cache of its own with the same content, to try things out; another thread may."""
        twin = AllocationCache()
        twin.table, twin.quotas = self.table.duplicate(), self.quotas.duplicate()
        twin._by_pod = dict(self._by_pod)
        twin._by_node = dict(self._by_node)
        twin._expiring = dict(self._expiring)
        twin._resizes = dict(self._resizes)
        return twin

    def set_node(
        self,
        name: str,
        devices: Iterable[Device],
        *,
        cordoned: frozenset[str] = frozenset(),
        pairs: PairScores = NO_PAIRS,
    ) -> None:
        """Make the node's devices these; what is held on it stays held.

        The node's generation moves only if something changed.
        """
        if self.table.set_node(name, devices, cordoned=cordoned, pairs=pairs):
            self.on_room(name)
            for uid in self._by_node.get(name, ()):
                self.table.charge(name, self._by_pod[uid].charges, sign=1)

    def remove_node(self, name: str) -> None:
        """Forget the node's devices; pods that still run there stay known until they are gone."""
        self.table.remove_node(name)

    def hold(
        self, allocation: Allocation, *, expires_at: float, request: PodRequest | None = None
    ) -> None:
        """Softly keep a filter's choice, in place of an earlier one; a bind under way stands.

        Raises:
            QuotaExceededError: The namespace has no room for it; an earlier choice stands.
        """
        current = self._by_pod.get(allocation.uid)
        if current is None or current.state is State.HELD:
            self._require_room(allocation, current)
            self._put(allocation, State.HELD, expires_at=expires_at, request=request)

    def reserve(
        self,
        allocation: Allocation,
        *,
        generation: int,
        expires_at: float,
        request: PodRequest | None = None,
    ) -> None:
        """Keep a bind's decision, in place of the pod's own hold or earlier attempt.

        Args:
            allocation: The decision.
            generation: Of the node, as the decision saw it.
            expires_at: When to give up if neither confirmed nor released.
            request: What was decided for.

        Raises:
            StaleSnapshotError: The node has changed since, or the pod is bound already: decide
                again.
            QuotaExceededError: The namespace has no room for it.
        """
        current = self._by_pod.get(allocation.uid)
        if current is not None and current.state is State.CONFIRMED:
            raise StaleSnapshotError(
                f"pod {allocation.pod}: already bound to node {current.allocation.node}"
            )
        seen = self.table.generation(allocation.node)
        if seen == 0 or seen != generation:
            raise StaleSnapshotError(
                f"node {allocation.node}: decided at generation {generation}, now at {seen}"
            )
        self._require_room(allocation, current)
        self._put(allocation, State.RESERVED, expires_at=expires_at, request=request)

    def confirm(self, allocation: Allocation, *, init_done: bool = False, resizes: int = 0) -> None:
        """The API server shows the pod bound with these devices: count exactly that. Idempotent.

        That is the truth, whatever a quota says. While a resize is being written, what it needs is
        counted as well, until the watch shows it.

        Args:
            allocation: What the pod holds.
            init_done: Whether its init containers hold nothing any more.
            resizes: How many requests for other amounts the pod shows as accepted.
        """
        coming = self._resizes.get(allocation.uid)
        if coming is not None and coming.number <= resizes:
            del self._resizes[allocation.uid]
        elif coming is not None:
            allocation = resize.larger(allocation, coming.allocation)
        self._put(allocation, State.CONFIRMED, expires_at=None, init_done=init_done)

    def resize(
        self,
        allocation: Allocation,
        *,
        number: int,
        expires_at: float,
        init_done: bool = False,
    ) -> None:
        """Keep room for other amounts of a bound pod's devices, until the watch shows them.

        Args:
            allocation: What the pod is to have, of the same devices.
            number: Of the decision, by which ``confirm`` will know it.
            expires_at: When to give up if that never happens.
            init_done: Whether its init containers hold nothing any more.

        Raises:
            StaleSnapshotError: The pod is not bound, or another resize of it is under way.
            ResizeError: A device has no room for it.
            QuotaExceededError: The namespace has none.
        """
        uid = allocation.uid
        current = self._by_pod.get(uid)
        if current is None or current.state is not State.CONFIRMED or uid in self._resizes:
            raise StaleSnapshotError(f"pod {allocation.pod}: not bound, or being resized")
        wanted = resize.larger(current.allocation, allocation)
        charges = wanted.charges(init_done=init_done)
        resize.check_room(self.table, allocation.node, current.charges, charges)
        if wanted.containers != current.allocation.containers:  # something grows
            self._require_room(wanted, current)
        self._resizes[uid] = _Resize(allocation=allocation, expires_at=expires_at, number=number)
        self._put(wanted, State.CONFIRMED, expires_at=None, init_done=init_done)

    def end_resize(self, allocation: Allocation, *, init_done: bool = False) -> None:
        """A resize came to nothing: the pod still has this."""
        if self._resizes.pop(allocation.uid, None) is not None:
            self.confirm(allocation, init_done=init_done)

    def overdue_resizes(self, now: float) -> tuple[str, ...]:
        """Uids of pods whose resize the watch has not shown in time."""
        return tuple(uid for uid, it in self._resizes.items() if it.expires_at <= now)

    def keep(self, uid: str) -> None:
        """Let what is held or reserved for the pod not expire: the caller will end it."""
        current = self._by_pod.get(uid)
        if current is not None:
            self._by_pod[uid] = replace(current, expires_at=None)
            self._expiring.pop(uid, None)

    def release(self, uid: str) -> bool:
        """End a hold or a reservation; a confirmed one stands. Returns whether anything ended."""
        current = self._by_pod.get(uid)
        if current is None or current.state is State.CONFIRMED:
            return False
        self._drop(uid)
        return True

    def forget(self, uid: str) -> None:
        """The pod is gone or finished: nothing is held for it any more. Idempotent."""
        self._resizes.pop(uid, None)
        if uid in self._by_pod:
            self._drop(uid)

    def expire(self, now: float) -> tuple[Reservation, ...]:
        """End every hold and reservation whose time has come; returns them."""
        late = [uid for uid, expires_at in self._expiring.items() if expires_at <= now]
        return tuple(self._drop(uid) for uid in late)

    def lack(self, namespace: str, request: PodRequest) -> Lack | None:
        """What the namespace's quotas lack for a pod at the least, whichever devices it gets.

        Where it asks for shares of devices they are taken to be the smallest there are, so that
        nothing is lacking that might fit. ``hold`` and ``reserve`` are exact.
        """
        room = self.quotas.room(namespace)
        if room is None:
            return None
        sizes = {vendor: self._smallest(vendor) for vendor in quota.asks_shares(request)}
        return next(iter(room.lacks(quota.needs(request, device_memory=sizes))), None)

    def get(self, uid: str) -> Reservation | None:
        """What is held for the pod."""
        return self._by_pod.get(uid)

    def reservations(self, node: str | None = None) -> Iterator[Reservation]:
        """All reservations, or those of one node, in the order in which they came."""
        if node is None:
            yield from self._by_pod.values()
        else:
            for uid in self._by_node.get(node, ()):
                yield self._by_pod[uid]

    def __len__(self) -> int:
        return len(self._by_pod)

    def _smallest(self, vendor: VendorName) -> int:
        """MiB of the vendor's smallest device; 0 if there is none."""
        c = self.table.columns
        own = c.memory[c.present & (c.vendor == self.table.words.number(vendor))]
        return int(own.min()) if own.size else 0

    def _require_room(self, allocation: Allocation, current: Reservation | None) -> None:
        """Refuse what would break a ceiling, with what the pod counts for now taken back."""
        lack = self.quotas.lack(
            allocation.namespace,
            quota.use_of(allocation),
            without=NO_USE if current is None else current.use,
        )
        if lack is not None:
            raise QuotaExceededError(f"pod {allocation.pod}: {lack}")

    def _put(
        self,
        allocation: Allocation,
        state: State,
        *,
        expires_at: float | None,
        init_done: bool = False,
        request: PodRequest | None = None,
    ) -> None:
        current = self._by_pod.get(allocation.uid)
        charges = allocation.charges(init_done=init_done)
        use = quota.use_of(allocation, init_done=init_done)
        node = allocation.node
        moved = current is None or current.charges != charges or current.allocation.node != node
        namespace = allocation.namespace
        counted = (
            moved
            or current is None
            or (current.use, current.allocation.namespace) != (use, namespace)
        )
        if current is not None and moved:
            self._drop(allocation.uid)
        elif current is not None and counted:
            self.quotas.charge(current.allocation.namespace, current.use, sign=-1)
        if moved:
            self._by_node[node] = {**self._by_node.get(node, {}), allocation.uid: None}
            self.table.charge(node, charges, sign=1)
        self._by_pod[allocation.uid] = Reservation(
            allocation=allocation,
            state=state,
            charges=charges,
            use=use,
            expires_at=expires_at,
            generation=(
                current.generation
                if current is not None and not moved
                else self.table.generation(node)
            ),
            request=request,
        )
        if counted:
            self.quotas.charge(namespace, use, sign=1)
        self._expiring.pop(allocation.uid, None)
        if expires_at is not None:
            self._expiring[allocation.uid] = expires_at

    def _drop(self, uid: str) -> Reservation:
        reservation = self._by_pod.pop(uid)
        self._expiring.pop(uid, None)
        node = reservation.allocation.node
        others = {other: None for other in self._by_node[node] if other != uid}
        if others:
            self._by_node[node] = others
        else:
            del self._by_node[node]
        self.table.charge(node, reservation.charges, sign=-1)
        self.quotas.charge(reservation.allocation.namespace, reservation.use, sign=-1)
        self.on_room(node)
        return reservation
