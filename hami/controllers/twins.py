"""Keeps pods apart that the kubelet cannot tell from each other.

The kubelet asks a node's agent for devices without saying for which pod; it says how many. So of
the pods in flight on a node (from bind until their devices are allocated), no two may ask for the
same number of the same vendor's devices. The second waits here, first come first served, until the
watch shows the first allocated, failed or gone; only a pod whose agent is dead is passed after a
deadline. All that is known is rebuilt from the watch after a restart.

Vendors whose agents read the node's lock serve one pod at a time: their pods share one key. Vendors
whose agents do not look for pods at all have none.

How long the pods of a node take of late tells how long one more would wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import anyio

from hami.core.allocation import Allocation
from hami.core.device import PodRequest, VendorName
from hami.core.vendor import Lock, VendorTable

Key = tuple[VendorName, int]
"""So many devices of one vendor for one container."""
NODE_LOCK: Final[Key] = (VendorName(""), 0)
"""Of every pod with devices of a vendor whose agent reads the node's lock."""

_SMOOTHING: Final = 0.2


def keys_of_request(request: PodRequest, vendors: VendorTable) -> frozenset[Key]:
    """What the kubelet will ask for the pod's containers."""
    return _keys(((r.vendor, r.count) for c in request.containers for r in c.requests), vendors)


def keys_of_allocation(allocation: Allocation, vendors: VendorTable) -> frozenset[Key]:
    """The same, from what was decided."""
    counts = (
        (vendor, sum(d.vendor == vendor for d in devices))
        for devices in allocation.containers
        for vendor in {d.vendor for d in devices}
    )
    return _keys(counts, vendors)


def needs_lock(request: PodRequest, vendors: VendorTable) -> bool:
    """Whether any container, init containers too, gets devices by way of the node's lock."""
    return NODE_LOCK in keys_of_request(request, vendors)


def _keys(counts: Iterable[Key], vendors: VendorTable) -> frozenset[Key]:
    keys: set[Key] = set()
    for name, count in counts:
        if vendors[name].agent_consumes:
            keys.add((name, count))
        if vendors[name].lock is Lock.NODE:
            keys.add(NODE_LOCK)
    return frozenset(keys)


@dataclass(slots=True, kw_only=True)
class _Flight:
    """One pod on its way to its devices."""

    uid: str
    node: str
    keys: frozenset[Key]
    started_at: float | None = None
    """None while it waits for its turn."""
    news: anyio.Event | None = None
    """Set when it may be its turn; there while it waits."""


@dataclass(slots=True, kw_only=True)
class _Lane:
    """The pods in flight on one node, in the order in which they came; kept while there are any."""

    flights: dict[str, _Flight] = field(default_factory=dict)
    seconds: float = 0.0
    """From a pod's turn until it has its devices, of late; 0 while none has told."""


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
        self._nodes: dict[str, _Lane] = {}
        self._flights: dict[str, _Flight] = {}

    async def enter(self, uid: str, *, node: str, keys: frozenset[Key]) -> None:
        """Return when it is the pod's turn on the node; ``leave`` ends it, also while it waits.

        Cancelled, the pod has left. The caller sets a deadline.
        """
        self.leave(uid)
        flight = self._add(uid, node, keys)
        try:
            while self._flights.get(uid) is flight and (ahead := self._ahead(flight)):
                flight.news = anyio.Event()
                with anyio.move_on_after(self._patience_with(ahead)):
                    await flight.news.wait()
        except BaseException:
            self.leave(uid)
            raise
        flight.started_at, flight.news = self._clock(), None

    def saw_allocating(self, uid: str, *, node: str, keys: frozenset[Key]) -> None:
        """The watch shows the pod bound, its devices not yet handed out. Idempotent."""
        flight = self._flights.get(uid)
        if flight is not None and flight.node != node:  # somebody else has bound it elsewhere
            self.leave(uid)
            flight = None
        flight = flight or self._add(uid, node, keys)
        if flight.started_at is None:
            flight.started_at = self._clock()

    def leave(self, uid: str) -> None:
        """The pod is allocated, failed or gone: it holds nobody back any more. Idempotent."""
        flight = self._flights.pop(uid, None)
        if flight is None:
            return
        lane = self._nodes[flight.node]
        del lane.flights[uid]
        if not lane.flights:
            del self._nodes[flight.node]
        elif flight.started_at is not None:
            # Nobody waits longer for one.
            took = min(self._clock() - flight.started_at, self.patience_seconds)
            lane.seconds += _SMOOTHING * (took - lane.seconds) if lane.seconds else took
        if flight.news is not None:
            flight.news.set()
        self._wake(lane)

    def busy(self, keys: frozenset[Key], *, seconds: float) -> frozenset[str]:
        """The nodes on which one more such pod would wait longer."""
        return frozenset(
            node
            for node, lane in self._nodes.items()
            if len(lane.flights) * lane.seconds > seconds
            and self.expected_wait(node=node, keys=keys) > seconds
        )

    def expected_wait(self, *, node: str, keys: frozenset[Key]) -> float:
        """Seconds until it would be the turn of one more pod on the node, as things go there."""
        lane = self._nodes.get(node)
        if lane is None:
            return 0.0
        flights = lane.flights.values()
        ahead = sum(1 for flight in flights if flight.keys & keys and self._left_of(flight) > 0)
        return ahead * lane.seconds

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def waiting(self) -> int:
        """How many pods wait for their turn."""
        return sum(flight.started_at is None for flight in self._flights.values())

    def _add(self, uid: str, node: str, keys: frozenset[Key]) -> _Flight:
        flight = _Flight(uid=uid, node=node, keys=keys)
        self._flights[uid] = flight
        self._nodes.setdefault(node, _Lane()).flights[uid] = flight
        return flight

    def _wake(self, lane: _Lane) -> None:
        """Wake those whose turn it is now, and nobody else: a burst may be hundreds long."""
        counting = [flight for flight in lane.flights.values() if self._left_of(flight) > 0]
        taken = {key for flight in counting if flight.news is None for key in flight.keys}
        for flight in counting:
            if flight.news is not None and not flight.keys & taken:
                flight.news.set()
            taken |= flight.keys

    def _ahead(self, flight: _Flight) -> list[_Flight]:
        """The twins that came first, or were seen bound by somebody else, and still count."""
        ahead: list[_Flight] = []
        came_first = True
        for other in self._nodes[flight.node].flights.values():
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
