"""Keeps pods apart that the kubelet cannot tell from each other.

The kubelet asks a node's agent for devices without saying for which pod; it says how many. So of
the pods in flight on a node (from bind until their devices are allocated), no two may ask for the
same number of the same vendor's devices. The second waits here, first come first served, until the
watch shows the first allocated, failed or gone; only a pod whose agent is dead is passed after a
deadline. All that is known is rebuilt from the watch after a restart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import anyio

from hami.core.allocation import Allocation
from hami.core.device import PodRequest, VendorName

Key = tuple[VendorName, int]
"""So many devices of one vendor for one container."""


def keys_of_request(request: PodRequest) -> frozenset[Key]:
    """What the kubelet will ask for the pod's containers."""
    return frozenset((r.vendor, r.count) for c in request.containers for r in c.requests)


def keys_of_allocation(allocation: Allocation) -> frozenset[Key]:
    """The same, from what was decided."""
    return frozenset(
        (vendor, sum(d.vendor == vendor for d in devices))
        for devices in allocation.containers
        for vendor in {d.vendor for d in devices}
    )


@dataclass(slots=True, kw_only=True)
class _Flight:
    """One pod on its way to its devices."""

    uid: str
    node: str
    keys: frozenset[Key]
    started_at: float | None = None
    """None while it waits for its turn."""


class Twins:
    """The pods in flight, by node, in the order in which they came."""

    def __init__(
        self, *, patience_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Nothing is in flight.

        Args:
            patience_seconds: After this long a pod no longer holds back its twins.
            clock: For that.
        """
        self.patience_seconds = patience_seconds
        self._clock = clock
        self._nodes: dict[str, dict[str, _Flight]] = {}
        self._flights: dict[str, _Flight] = {}
        self._left: dict[str, anyio.Event] = {}

    async def enter(self, uid: str, *, node: str, keys: frozenset[Key]) -> None:
        """Return when it is the pod's turn on the node; ``leave`` ends it, also while it waits.

        Cancelled, the pod has left. The caller sets a deadline.
        """
        self.leave(uid)
        flight = self._add(uid, node, keys)
        try:
            while self._flights.get(uid) is flight and (ahead := self._ahead(flight)):
                event = self._left.setdefault(node, anyio.Event())
                with anyio.move_on_after(self._patience_with(ahead)):
                    await event.wait()
        except BaseException:
            self.leave(uid)
            raise
        flight.started_at = self._clock()

    def saw_allocating(self, uid: str, *, node: str, keys: frozenset[Key]) -> None:
        """The watch shows the pod bound, its devices not yet handed out. Idempotent."""
        flight = self._flights.get(uid) or self._add(uid, node, keys)
        if flight.started_at is None:
            flight.started_at = self._clock()

    def leave(self, uid: str) -> None:
        """The pod is allocated, failed or gone: it holds nobody back any more. Idempotent."""
        flight = self._flights.pop(uid, None)
        if flight is None:
            return
        on_node = self._nodes[flight.node]
        del on_node[uid]
        if not on_node:
            del self._nodes[flight.node]
        event = self._left.pop(flight.node, None)
        if event is not None:
            event.set()

    def __len__(self) -> int:
        return len(self._flights)

    def _add(self, uid: str, node: str, keys: frozenset[Key]) -> _Flight:
        flight = _Flight(uid=uid, node=node, keys=keys)
        self._flights[uid] = flight
        self._nodes.setdefault(node, {})[uid] = flight
        return flight

    def _ahead(self, flight: _Flight) -> list[_Flight]:
        """The twins that came first, or were seen bound by somebody else, and still count."""
        ahead: list[_Flight] = []
        came_first = True
        for other in self._nodes[flight.node].values():
            if other is flight:
                came_first = False
            elif (
                (came_first or other.started_at is not None)
                and other.keys & flight.keys
                and self._left_of(other) > 0
            ):
                ahead.append(other)
        return ahead

    def _patience_with(self, ahead: Iterable[_Flight]) -> float:
        return min(self._left_of(flight) for flight in ahead)

    def _left_of(self, flight: _Flight) -> float:
        """Seconds for which the flight still counts."""
        if flight.started_at is None:
            return self.patience_seconds
        return flight.started_at + self.patience_seconds - self._clock()
