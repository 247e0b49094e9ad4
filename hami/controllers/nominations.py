"""Nodes that are kept for pods while others end there for them.

A nomination holds a pod's devices as if its victims were gone already; so for that time more may be
charged on a device than it has, which every rule takes for full. The pod is asked about meanwhile,
and does not fit yet: filter gives the hold back to look, and takes it again here. Once the last
victim is gone the pod is called. Who is nominated and why is for ``preemptor``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from hami.core.allocation import Allocation
from hami.core.cache import AllocationCache, State
from hami.core.objects import Pod
from hami.core.placement import Ranking
from hami.errors import QuotaExceededError
from hami.logs import get_logger

log = get_logger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class Nomination:
    """One pod's node, and what is held there for it."""

    allocation: Allocation
    victims: set[str]
    """Uids of those that have yet to go."""
    expires_at: float
    """On the clock of the holds."""

    @property
    def node(self) -> str:
        """Where the pod is meant to run."""
        return self.allocation.node


class Nominations:
    """The nominations of this process, by the pod's uid."""

    def __init__(
        self,
        cache: AllocationCache,
        *,
        on_ready: Callable[[str], None],
        last_seconds: Callable[[], float],
        on_lost: Callable[[str], None] = lambda _uid: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nobody is nominated.

        Args:
            cache: Where devices are held.
            on_ready: Told the pod whose victims are gone; it only takes note.
            last_seconds: How long a pod may take to come once they are.
            on_lost: Told each pod that nothing is held for any more though it has found no place.
            clock: Of the holds.
        """
        self._cache = cache
        self._on_ready = on_ready
        self._last_seconds = last_seconds
        self._on_lost = on_lost
        self._clock = clock
        self._by_pod: dict[str, Nomination] = {}
        self._awaiting: dict[str, set[str]] = {}
        """For each victim the pods that it goes for."""

    def __len__(self) -> int:
        return len(self._by_pod)

    def get(self, uid: str) -> Nomination | None:
        """The pod's nomination, while it lasts."""
        nomination = self._by_pod.get(uid)
        alive = nomination is not None and nomination.expires_at > self._clock()
        return nomination if alive else None

    def add(self, nomination: Nomination) -> None:
        """Hold the devices from now on.

        Raises:
            QuotaExceededError: The namespace has no room for them.
        """
        uid = nomination.allocation.uid
        self._cache.hold(nomination.allocation, expires_at=nomination.expires_at)
        self._forget(uid)
        self._by_pod[uid] = nomination
        for victim in nomination.victims:
            self._awaiting.setdefault(victim, set()).add(uid)

    def hold_again(self, uid: str) -> bool:
        """The pod does not fit yet: hold for it again; whether there is anything to hold."""
        nomination = self.get(uid)
        if nomination is None:
            return False
        try:
            self._cache.hold(nomination.allocation, expires_at=nomination.expires_at)
        except QuotaExceededError as error:
            log.info("nomination_lost", pod=nomination.allocation.pod, error=str(error))
            self._forget(uid)
            self._on_lost(uid)
            return False
        return True

    def preferred(self, uid: str, ranking: Ranking) -> Ranking:
        """The ranking with the nominated node as the best, where the pod fits it."""
        nomination = self.get(uid)
        if nomination is None or nomination.node not in ranking.feasible:
            return ranking
        return replace(ranking, best=nomination.node)

    def fulfil(self, uid: str) -> None:
        """The pod has found a place: what is held for it is from now on as for everybody."""
        self._forget(uid)

    def withdraw(self, uid: str) -> None:
        """Nothing is held for the pod any more. Idempotent."""
        if self._forget(uid):
            held = self._cache.get(uid)
            if held is not None and held.state is State.HELD:
                self._cache.release(uid)

    def expired(self) -> tuple[Nomination, ...]:
        """End those whose pods did not come; returns them."""
        now = self._clock()
        late = tuple(n for n in self._by_pod.values() if n.expires_at <= now)
        for nomination in late:
            self.withdraw(nomination.allocation.uid)
        return late

    def next_end(self) -> float:
        """When the first of them ends, on the clock; infinity where there is none."""
        return min((n.expires_at for n in self._by_pod.values()), default=float("inf"))

    def clear(self) -> None:
        """Forget all; what is held is given back by whoever ends the reign."""
        lost = tuple(self._by_pod)
        self._by_pod.clear()
        self._awaiting.clear()
        for uid in lost:
            self._on_lost(uid)

    def on_set(self, pod: Pod, _: Pod | None) -> None:
        """A victim may have ended, or a nominated pod need nothing any more."""
        if pod.finished:
            self.on_delete(pod)
        elif pod.spec.node_name:
            self._forget(pod.metadata.uid)
        elif pod.metadata.deletion_timestamp is not None:
            self.withdraw(pod.metadata.uid)

    def on_delete(self, pod: Pod) -> None:
        """The pod is gone, or holds nothing any more."""
        uid = pod.metadata.uid
        self.withdraw(uid)
        self.gone(uid)

    def gone(self, victim: str) -> None:
        """The victim holds nothing any more. Idempotent."""
        for uid in self._awaiting.pop(victim, ()):
            nomination = self._by_pod[uid]
            nomination.victims.discard(victim)
            # One whose time is over holds nothing any more: others may have what it held.
            if not nomination.victims and self.get(uid) is not None:
                self._make_ready(uid, nomination)

    def _make_ready(self, uid: str, nomination: Nomination) -> None:
        """All are gone: the pod is called, and has so long to come."""
        nomination.expires_at = self._clock() + self._last_seconds()
        if self.hold_again(uid):
            self._on_ready(uid)

    def _forget(self, uid: str) -> bool:
        nomination = self._by_pod.pop(uid, None)
        if nomination is None:
            return False
        for victim in nomination.victims:
            waiting = self._awaiting.get(victim)
            if waiting is not None:
                waiting.discard(uid)
                if not waiting:
                    del self._awaiting[victim]
        return True
