"""Who is bound where, and how hard it would be to have them go: what a preemption chooses from.

Follows bound pods and disruption budgets, and makes ``Victim`` values of the pods that hold devices
as confirmed in the cache. A pod that is ending anyway is no victim: it counts as gone. Whom to
choose is for ``hami.core.preemption``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hami.controllers.counters import ControllerCounters
from hami.core import selectors
from hami.core.cache import AllocationCache, Reservation, State
from hami.core.objects import Pod, PodDisruptionBudget
from hami.core.selectors import Selector
from hami.core.victims import Budget, Victim
from hami.errors import CodecError
from hami.logs import get_logger

log = get_logger(__name__)

DEFAULT_GRACE_SECONDS: Final = 30
"""The API server's own for pods that do not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Covering:
    """One disruption budget."""

    selector: Selector
    allowed: int


class Occupants:
    """Bound pods and the budgets that cover them.

    Attributes:
        numbering: Moves when budgets change their positions, by which victims name them.
    """

    def __init__(self, cache: AllocationCache, *, counters: ControllerCounters) -> None:
        """Nobody is bound.

        Args:
            cache: What pods hold; told of each pod before this is.
            counters: Of what cannot be read.
        """
        self._cache = cache
        self._counters = counters
        self._pods: dict[str, Pod] = {}
        self._with_devices: dict[str, int] = {}
        self._priorities: Counter[int] = Counter()
        self._ending: dict[str, None] = {}
        self._victims: dict[str, Victim] = {}
        self._budgets: dict[tuple[str, str], _Covering] = {}
        self.numbering = 0
        self._numbered: dict[str, list[tuple[int, Selector]]] = {}
        """For each namespace its budgets, by position among all."""

    # -- what is there -----------------------------------------------------------------------

    def on_pod_set(self, pod: Pod, _: Pod | None) -> None:
        """The watch shows the pod."""
        uid = pod.metadata.uid
        self.on_pod_delete(pod)
        if pod.finished or not pod.spec.node_name:
            return
        self._pods[uid] = pod
        if self._confirmed(uid) is not None:
            priority = self._with_devices[uid] = pod.spec.priority or 0
            self._priorities[priority] += 1
            if pod.metadata.deletion_timestamp is not None:
                self._ending[uid] = None

    def on_pod_delete(self, pod: Pod) -> None:
        """The pod is gone."""
        uid = pod.metadata.uid
        self._pods.pop(uid, None)
        self._victims.pop(uid, None)
        self._ending.pop(uid, None)
        priority = self._with_devices.pop(uid, None)
        if priority is not None:
            self._priorities[priority] -= 1
            if not self._priorities[priority]:
                del self._priorities[priority]

    def on_budget_set(self, budget: PodDisruptionBudget, _: PodDisruptionBudget | None) -> None:
        """The budget is there, or has changed."""
        key = budget.metadata.namespace, budget.metadata.name
        selector = budget.spec.selector
        if selector is None:
            self._drop_budget(key)
            return
        try:
            chosen = selectors.of_object(selector)
        except CodecError as error:  # the API server still says no to evictions that it forbids
            self._counters.malformed.labels("budget").inc()
            log.warning("budget_unreadable", budget="/".join(key), error=str(error))
            self._drop_budget(key)
            return
        known = self._budgets.get(key)
        allowed = budget.status.disruptions_allowed
        self._budgets[key] = _Covering(selector=chosen, allowed=allowed)
        if known is None or known.selector != chosen:
            self._number_budgets()

    def on_budget_delete(self, budget: PodDisruptionBudget) -> None:
        """The budget is gone."""
        self._drop_budget((budget.metadata.namespace, budget.metadata.name))

    def _drop_budget(self, key: tuple[str, str]) -> None:
        if self._budgets.pop(key, None) is not None:
            self._number_budgets()

    def _number_budgets(self) -> None:
        """Positions have moved, so what was made of pods counts no more."""
        self.numbering += 1
        self._victims.clear()
        self._numbered.clear()
        for number, ((namespace, _), budget) in enumerate(self._budgets.items()):
            self._numbered.setdefault(namespace, []).append((number, budget.selector))

    # -- what is asked -----------------------------------------------------------------------

    def any_below(self, priority: int) -> bool:
        """Whether any pod with devices is less important."""
        return any(other < priority for other in self._priorities)

    def budgets(self) -> tuple[Budget, ...]:
        """All budgets, in the order of their positions."""
        return tuple(Budget(allowed=max(b.allowed, 0)) for b in self._budgets.values())

    def victims(self, nodes: Iterable[str], *, below: int) -> dict[str, list[Victim]]:
        """Of each of the nodes that has any, the less important pods that could be made to go."""
        found: dict[str, list[Victim]] = {}
        for node in nodes:
            own = [
                self._victim_of(reservation)
                for reservation in self._cache.reservations(node)
                if self._with_devices.get(reservation.allocation.uid, below) < below
                and reservation.state is State.CONFIRMED
                and reservation.allocation.uid not in self._ending
            ]
            if own:
                found[node] = own
        return found

    def ending(self) -> dict[str, list[Reservation]]:
        """On each node the pods that end already, whatever their priority."""
        found: dict[str, list[Reservation]] = {}
        for uid in self._ending:
            reservation = self._confirmed(uid)
            if reservation is not None:
                found.setdefault(reservation.allocation.node, []).append(reservation)
        return found

    def victim(self, uid: str) -> Victim:
        """The pod as a victim, whether it holds devices or not, and even if it is not known."""
        reservation = self._confirmed(uid)
        if reservation is not None and uid in self._pods:
            return self._victim_of(reservation)
        pod = self._pods.get(uid)
        if pod is None:
            return Victim(uid=uid, pod="", priority=0, started=0.0, charges={})
        return Victim(
            uid=uid,
            pod=pod.key,
            priority=pod.spec.priority or 0,
            started=started(pod),
            charges={},
            budgets=self._covering(pod),
        )

    def is_victim(self, uid: str) -> bool:
        """Whether the pod still holds devices, and does not end yet."""
        return self._confirmed(uid) is not None and uid in self._pods and uid not in self._ending

    def pod(self, uid: str) -> Pod | None:
        """The bound pod."""
        return self._pods.get(uid)

    def _confirmed(self, uid: str) -> Reservation | None:
        reservation = self._cache.get(uid)
        confirmed = reservation is not None and reservation.state is State.CONFIRMED
        return reservation if confirmed else None

    def _victim_of(self, reservation: Reservation) -> Victim:
        """Made once for each state of the pod: a preemption asks for thousands."""
        uid = reservation.allocation.uid
        known = self._victims.get(uid)
        if known is None or known.charges is not reservation.charges:
            pod = self._pods[uid]
            known = self._victims[uid] = Victim(
                uid=uid,
                pod=pod.key,
                priority=pod.spec.priority or 0,
                started=started(pod),
                charges=reservation.charges,
                budgets=self._covering(pod),
            )
        return known

    def _covering(self, pod: Pod) -> tuple[int, ...]:
        """The budgets that count the pod's eviction: none counts that of a pod that never ran."""
        if pod.status.phase == "Pending":
            return ()
        return tuple(
            number
            for number, selector in self._numbered.get(pod.metadata.namespace, ())
            if selector.matches(pod.metadata.labels)
        )


def started(pod: Pod) -> float:
    """When the pod began to run, in Unix time; when it was made, where it has not."""
    for text in (pod.status.start_time, pod.metadata.creation_timestamp):
        try:
            if text:
                return datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError):
            continue
    return 0.0


def grace_seconds(pod: Pod) -> float:
    """How long the pod may take to end."""
    own = pod.spec.termination_grace_period_seconds
    return float(DEFAULT_GRACE_SECONDS if own is None else max(own, 0))
