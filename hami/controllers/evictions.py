"""Has the victims of one preemption go, through the Eviction API, and tells everybody concerned.

All or nothing, as far as that can be told before: of several victims each is tried as a dry run
first. Who the victims are is for ``preemptor``; what is held meanwhile, for ``nominations``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from hami.controllers.counters import ControllerCounters
from hami.controllers.nominations import Nomination, Nominations
from hami.controllers.occupants import Occupants
from hami.controllers.pending import PREEMPTION, PendingPods
from hami.core.victims import Victim
from hami.errors import ConflictError, HamiError, NotFoundError, ThrottledError
from hami.kube import patching
from hami.kube.client import Guard, KubeClient
from hami.kube.events import EventRecorder
from hami.kube.resources import PODS, ObjectRef
from hami.logs import get_logger

log = get_logger(__name__)

NAMED: Final = 3
"""Victims in words for people; more are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A plan that is being carried out."""

    preemptor: ObjectRef
    nomination: Nomination
    victims: tuple[Victim, ...]
    """Nobody, where it is enough to wait."""
    guard: Guard
    """Asked before each write."""


class Result(NamedTuple):
    """How it ended."""

    word: str
    error: str = ""
    """Empty where it was done."""


class Evictions:
    """Carries out plans."""

    def __init__(
        self,
        client: KubeClient,
        pending: PendingPods,
        *,
        occupants: Occupants,
        nominations: Nominations,
        recorder: EventRecorder,
        counters: ControllerCounters,
    ) -> None:
        """Nothing is written yet.

        Args:
            client: Where pods are evicted.
            pending: Is told what is done for the preemptor.
            occupants: The victims, as they are now.
            nominations: Is told of victims that are gone.
            recorder: Tells preemptors and victims.
            counters: Of the evicted.
        """
        self._client = client
        self._pending = pending
        self._occupants = occupants
        self._nominations = nominations
        self._recorder = recorder
        self._counters = counters

    async def carry_out(self, job: Job) -> Result:
        """Evict the victims and nominate the node; whatever fails is in the result."""
        node = job.nomination.node
        try:
            if job.victims:
                await self._evict_all(job)
            else:
                self._note(job, f"waits for pods that end on node {node}, which is held for it")
        except ThrottledError as error:
            names = _named(job.victims)
            return Result("budget", f"node {node} could be had for {names}, but: {error}")
        except HamiError as error:
            return Result("failed", f"preemption on node {node}: {error}")
        await self.say_node(job.preemptor, node, job.guard)
        return Result("evicted" if job.victims else "awaited")

    async def say_node(self, ref: ObjectRef, node: str | None, guard: Guard) -> None:
        """For people and for the scheduler; nothing here depends on it."""
        try:
            await patching.nominate(self._client, ref, node=node, guard=guard)
        except HamiError as error:
            log.info("pod_not_nominated", pod=str(ref), error=str(error))

    async def _evict_all(self, job: Job) -> None:
        """Evict the victims; none, where it can be told before that one may not be.

        Raises:
            ThrottledError: A budget forbids it.
            HamiError: It could not be done, or is not for this process any more.
        """
        number, node = len(job.victims), job.nomination.node
        if number > 1:
            self._require_budgets(job.victims)
            for victim in job.victims:
                await self._evict(job, victim, dry_run=True)
        self._note(job, f"evicts {_named(job.victims)} on node {node}, which is held for it")
        words = f"Evicts {number} pod{'s' * (number > 1)} of lower priority on node {node}"
        self._recorder.record(job.preemptor, "Preempting", words)
        for victim in job.victims:
            await self._evict(job, victim)

    def _require_budgets(self, victims: Sequence[Victim]) -> None:
        """A dry run tells of each victim alone; of several of one budget, what it allows does.

        Raises:
            ThrottledError: A budget allows fewer than it covers.
        """
        budgets = self._occupants.budgets()
        counts = Counter(n for v in victims for n in self._occupants.victim(v.uid).budgets)
        for number, count in counts.items():
            allowed = budgets[number].allowed
            if 1 < count > allowed:
                raise ThrottledError(
                    f"a disruption budget allows {allowed} evictions, and covers {count} of them"
                )

    async def _evict(self, job: Job, victim: Victim, *, dry_run: bool = False) -> None:
        pod = self._occupants.pod(victim.uid)
        if pod is None:
            self._nominations.gone(victim.uid)
            return
        ref = ObjectRef.to(PODS, pod)
        try:
            await patching.evict(
                self._client, ref, uid=victim.uid, dry_run=dry_run, guard=job.guard
            )
        except (NotFoundError, ConflictError):
            return  # it is gone, which the watch will show
        if not dry_run:
            self._counters.victims.inc()
            by, node = job.preemptor, job.nomination.node
            log.info("pod_evicted", pod=pod.key, node=node, preemptor=str(by))
            self._recorder.record(ref, "Preempted", f"Preempted by pod {by.uid} on node {node}")

    def _note(self, job: Job, text: str) -> None:
        self._pending.note(job.preemptor.uid, PREEMPTION, text)


def _named(victims: Sequence[Victim]) -> str:
    names = ", ".join(victim.pod for victim in victims[:NAMED])
    more = len(victims) - NAMED
    return f"{names} and {more} more" if more > 0 else names
