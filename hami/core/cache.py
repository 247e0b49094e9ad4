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

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from hami.core.allocation import Allocation, Charge
from hami.core.device import Device, DeviceUuid
from hami.core.table import DeviceTable
from hami.errors import StaleSnapshotError


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
    expires_at: float | None
    """On the caller's monotonic clock; None never expires."""


class AllocationCache:
    """The one owner of the device table.

    Law: for every device of a known node, used = the sum over all reservations of that node.
    """

    def __init__(self) -> None:
        self.table = DeviceTable()
        self._by_pod: dict[str, Reservation] = {}
        self._by_node: dict[str, dict[str, None]] = {}
        self._expiring: dict[str, float] = {}

    def set_node(
        self, name: str, devices: Iterable[Device], *, cordoned: frozenset[str] = frozenset()
    ) -> None:
        """Make the node's devices these; what is held on it stays held.

        The node's generation moves only if something changed.
        """
        if self.table.set_node(name, devices, cordoned=cordoned):
            for uid in self._by_node.get(name, ()):
                self.table.charge(name, self._by_pod[uid].charges, sign=1)

    def remove_node(self, name: str) -> None:
        """Forget the node's devices; pods that still run there stay known until they are gone."""
        self.table.remove_node(name)

    def hold(self, allocation: Allocation, *, expires_at: float) -> None:
        """Softly keep a filter's choice, in place of an earlier one; a bind under way stands."""
        current = self._by_pod.get(allocation.uid)
        if current is None or current.state is State.HELD:
            self._put(allocation, State.HELD, expires_at=expires_at)

    def reserve(self, allocation: Allocation, *, generation: int, expires_at: float) -> None:
        """Keep a bind's decision, in place of the pod's own hold or earlier attempt.

        Args:
            allocation: The decision.
            generation: Of the node, as the decision saw it.
            expires_at: When to give up if neither confirmed nor released.

        Raises:
            StaleSnapshotError: The node has changed since, or the pod is bound already: decide
                again.
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
        self._put(allocation, State.RESERVED, expires_at=expires_at)

    def confirm(self, allocation: Allocation, *, init_done: bool = False) -> None:
        """The API server shows the pod bound with these devices: count exactly that. Idempotent."""
        self._put(allocation, State.CONFIRMED, expires_at=None, init_done=init_done)

    def release(self, uid: str) -> bool:
        """End a hold or a reservation; a confirmed one stands. Returns whether anything ended."""
        current = self._by_pod.get(uid)
        if current is None or current.state is State.CONFIRMED:
            return False
        self._drop(uid)
        return True

    def forget(self, uid: str) -> None:
        """The pod is gone or finished: nothing is held for it any more. Idempotent."""
        if uid in self._by_pod:
            self._drop(uid)

    def expire(self, now: float) -> tuple[Reservation, ...]:
        """End every hold and reservation whose time has come; returns them."""
        late = [uid for uid, expires_at in self._expiring.items() if expires_at <= now]
        return tuple(self._drop(uid) for uid in late)

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

    def _put(
        self,
        allocation: Allocation,
        state: State,
        *,
        expires_at: float | None,
        init_done: bool = False,
    ) -> None:
        current = self._by_pod.get(allocation.uid)
        charges = allocation.charges(init_done=init_done)
        node = allocation.node
        moved = current is None or current.charges != charges or current.allocation.node != node
        if current is not None and moved:
            self._drop(allocation.uid)
        self._by_pod[allocation.uid] = Reservation(
            allocation=allocation, state=state, charges=charges, expires_at=expires_at
        )
        self._expiring.pop(allocation.uid, None)
        if expires_at is not None:
            self._expiring[allocation.uid] = expires_at
        if moved:
            self._by_node.setdefault(node, {})[allocation.uid] = None
            self.table.charge(node, charges, sign=1)

    def _drop(self, uid: str) -> Reservation:
        reservation = self._by_pod.pop(uid)
        self._expiring.pop(uid, None)
        node = reservation.allocation.node
        on_node = self._by_node[node]
        del on_node[uid]
        if not on_node:
            del self._by_node[node]
        self.table.charge(node, reservation.charges, sign=-1)
        return reservation
