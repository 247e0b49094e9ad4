"""Has pods of lower priority make room for one that fits nowhere.

kube-scheduler never finds victims for devices (docs/preemption.md), so the leader looks for them
itself: pods that filter refused, one after the other in order of priority and age. The search works
on a copy of the table in a thread; what it finds is looked at again here, held for the pod
(``nominations``), and only then somebody is evicted (``evictions``).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio.abc import TaskGroup, TaskStatus

from hami.config import ControllerSettings
from hami.controllers.counters import ControllerCounters
from hami.controllers.evictions import Evictions, Job
from hami.controllers.leadership import Mandate
from hami.controllers.nominations import Nomination, Nominations
from hami.controllers.occupants import Occupants, grace_seconds
from hami.controllers.pending import PREEMPTION, Asked, Entry, Outcome, PendingPods
from hami.controllers.waiting import Turn
from hami.core import preemption
from hami.core.allocation import Allocation
from hami.core.cache import AllocationCache, Reservation
from hami.core.device import PodRequest
from hami.core.gang import gang_of
from hami.core.objects import Pod
from hami.core.placement import Choice, Placer
from hami.core.preemption import Plan
from hami.core.victims import Victim
from hami.errors import NotLeaderError, QuotaExceededError, StaleSnapshotError
from hami.kube.client import Guard, KubeClient
from hami.kube.events import EventRecorder
from hami.kube.informer import Informer
from hami.kube.resources import PODS, ObjectRef
from hami.logs import get_logger

log = get_logger(__name__)

CAPACITY: Final = 1024
"""Pods that wait to be looked at; what is left out, a review finds."""
DEBOUNCE_SECONDS: Final = 0.2
"""What fits nowhere now may fit in a moment; and the most important of a burst goes first."""
PAUSE_SECONDS: Final = 0.2
"""Between two searches."""
REVIEW_SECONDS: Final = 30.0
"""So often all that wait are looked at: a budget may allow more, less important pods have come."""
VAIN_SECONDS: Final = 10.0
"""For so long a search that found nothing is not made again for a pod that asks the same."""
VAIN_KEPT: Final = 256
RETRY_SECONDS: Final = 10.0
MAX_RETRY_SECONDS: Final = 600.0
"""A pod for which others have gone waits so long before more do, twice as long each time."""
MARGIN_SECONDS: Final = 15.0
"""A node is held so much longer than its victims' grace."""
LONGEST_HOLD_SECONDS: Final = 600.0
IN_FLIGHT: Final = 4
"""Plans that are carried out at once."""
NODES_AT_ONCE: Final = 128
"""Of so many nodes the victims are looked up before others get their turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """A pod for which others may have to go."""

    entry: Entry
    pod: Pod
    request: PodRequest
    priority: int
    asked: Asked
    nodes: tuple[str, ...]

    @property
    def uid(self) -> str:
        return self.pod.metadata.uid

    @property
    def signature(self) -> tuple[PodRequest, int, Asked]:
        """What the search depends on, apart from the cluster."""
        return self.request, self.priority, self.asked


class Preemptor:
    """Looks for victims, and has them evicted."""

    def __init__(
        self,
        client: KubeClient,
        pods: Informer[Pod],
        cache: AllocationCache,
        placer: Placer,
        pending: PendingPods,
        *,
        occupants: Occupants,
        nominations: Nominations,
        settings: ControllerSettings,
        recorder: EventRecorder,
        counters: ControllerCounters,
        mandate: Callable[[], Mandate],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is looked at until ``run``.

        Args:
            client: Where pods are evicted.
            pods: All pods.
            cache: What is held.
            placer: Over the same cache's table.
            pending: Who waits, and is told what is done about it.
            occupants: Who might go.
            nominations: Where devices are held meanwhile.
            settings: Whether to do it at all.
            recorder: Tells preemptors and victims.
            counters: Of what came of it.
            mandate: The present reign; raises unless this process leads.
            clock: Of the holds.
        """
        self._evictions = Evictions(
            client,
            pending,
            occupants=occupants,
            nominations=nominations,
            recorder=recorder,
            counters=counters,
        )
        self._pods = pods
        self._cache = cache
        self._placer = placer
        self._pending = pending
        self._occupants = occupants
        self._nominations = nominations
        self._settings = settings
        self._counters = counters
        self._mandate = mandate
        self._clock = clock
        self._queue: dict[str, tuple[float, Turn]] = {}
        """When each pod may be looked at, and its turn among those that may."""
        self._tries: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """How often others have gone for a pod, and before when no more do."""
        self._vain: OrderedDict[tuple[PodRequest, int, Asked], float] = OrderedDict()
        self._wake = anyio.Event()
        self._slots = anyio.Semaphore(IN_FLIGHT)

    # -- whose turn it is --------------------------------------------------------------------

    def consider(self, uid: str) -> None:
        """Filter refused the pod. Costs nothing where nothing less important is bound."""
        entry = self._pending.get(uid)
        if entry is None or not self._settings.preemption or uid in self._queue:
            return
        if not self._occupants.any_below(-entry.turn.priority):
            return
        _, not_before = self._tries.get(uid, (0, 0.0))
        self._queue[uid] = max(self._clock() + DEBOUNCE_SECONDS, not_before), entry.turn
        if len(self._queue) > CAPACITY:
            del self._queue[max(self._queue, key=lambda other: self._queue[other][1])]
        self._wake.set()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> NoReturn:
        """Preempt for ever."""
        task_status.started()
        next_review = self._clock() + REVIEW_SECONDS
        async with anyio.create_task_group() as tasks:
            while True:
                dues = [due for due, _ in self._queue.values()]
                end = min([next_review, self._nominations.next_end(), *dues])
                with anyio.move_on_after(max(0.0, end - self._clock())):
                    await self._wake.wait()
                self._wake = anyio.Event()
                self._end_the_expired(tasks)
                if self._clock() >= next_review:
                    next_review = self._clock() + REVIEW_SECONDS
                    self._review()
                uid = self._next()
                if uid is not None and await self._look_at(uid, tasks):
                    await anyio.sleep(PAUSE_SECONDS)
        raise AssertionError("unreachable: looks until cancelled")

    def _next(self) -> str | None:
        """The most important pod that may be looked at."""
        now = self._clock()
        due = [(turn, uid) for uid, (at, turn) in self._queue.items() if at <= now]
        if not due:
            return None
        _, uid = min(due)
        del self._queue[uid]
        return uid

    def _review(self) -> None:
        for entry in self._pending.entries()[:CAPACITY]:
            if entry.decision.outcome is Outcome.UNFIT:
                self.consider(entry.ref.uid)

    def _end_the_expired(self, tasks: TaskGroup) -> None:
        """Pods that did not come for what was held; they may have another try, later."""
        for nomination in self._nominations.expired():
            uid, allocation = nomination.allocation.uid, nomination.allocation
            log.info("nomination_expired", pod=allocation.pod, node=allocation.node)
            self._counters.preemptions.labels("expired").inc()
            self._pending.note(uid, PREEMPTION, "")
            self.consider(uid)
            try:
                guard = self._mandate().require
            except NotLeaderError:
                continue
            ref = ObjectRef(
                resource=PODS, name=allocation.name, namespace=allocation.namespace, uid=uid
            )
            tasks.start_soon(self._evictions.say_node, ref, None, guard, name=f"nomination {ref}")

    # -- who has to go -----------------------------------------------------------------------

    async def _look_at(self, uid: str, tasks: TaskGroup) -> bool:
        """Find victims for the pod, and have them go; whether there was a search."""
        case = self._case(uid)
        if case is None or self._vain.get(case.signature, 0.0) > self._clock():
            return False
        await self._slots.acquire()
        started = False
        try:
            guard = self._mandate().require
            plan = await self._search(case)
            case = self._case(uid)  # is it still so?
            if case is not None:
                job = self._settle(case, plan, guard)
                if job is not None:
                    name = f"preemption for {case.pod.key}"
                    tasks.start_soon(self._carry_out, case, job, name=name)
                    started = True
        except NotLeaderError:
            return False
        except StaleSnapshotError as error:
            log.info("preemption_stale", uid=uid, error=str(error))
            self._counters.preemptions.labels("stale").inc()
            self.consider(uid)
        finally:
            if not started:
                self._slots.release()
        return True

    def _case(self, uid: str) -> _Case | None:
        """The pod, if others may be made to go for it."""
        entry = self._pending.get(uid)
        if entry is None or entry.request is None or not self._settings.preemption:
            return None
        asked, request = entry.decision.asked, entry.request
        if entry.decision.outcome is not Outcome.UNFIT or asked is None:
            return None
        pod = self._pods.get(entry.ref.namespace, entry.ref.name)
        if pod is None or pod.metadata.uid != uid or not _may_preempt(pod):
            return None
        priority = pod.spec.priority or 0
        if self._cache.get(uid) is not None or not self._occupants.any_below(priority):
            return None
        if self._cache.lack(entry.ref.namespace, request) is not None:
            return None  # the quota is in the way, and nobody's end changes that
        nodes = asked.alone(self._cache.table)
        return _Case(
            entry=entry, pod=pod, request=request, priority=priority, asked=asked, nodes=nodes
        )

    async def _search(self, case: _Case) -> Plan | None:
        """The plan for the cluster as it is now, but for the pods that end already.

        What changes in between may spoil it; so it is asked again before anything is done.

        Raises:
            StaleSnapshotError: So much has changed that nothing can be said.
        """
        numbering = self._occupants.numbering
        await anyio.lowlevel.checkpoint()
        ending = self._occupants.ending()
        ending = {node: ending[node] for node in case.nodes if node in ending}
        twin = self._cache.table.duplicate()
        for node, reservations in ending.items():
            for reservation in reservations:
                twin.charge(node, reservation.charges, sign=-1)
        victims: dict[str, list[Victim]] = {}
        for first in range(0, len(case.nodes), NODES_AT_ONCE):
            part = case.nodes[first : first + NODES_AT_ONCE]
            victims |= self._occupants.victims(part, below=case.priority)
            await anyio.lowlevel.checkpoint()
        budgets = self._occupants.budgets()
        if numbering != self._occupants.numbering:
            raise StaleSnapshotError("disruption budgets came or went during the search")
        return await anyio.to_thread.run_sync(
            partial(
                preemption.find, twin, case.request, case.priority, victims, budgets, tuple(ending)
            )
        )

    def _settle(self, case: _Case, plan: Plan | None, guard: Guard) -> Job | None:
        """Hold what the plan frees, if it still does; what is left to do then."""
        room = self._cache.quotas.room(case.pod.metadata.namespace)
        if self._placer.rank(case.request, case.nodes, room=room).best is not None:
            return None  # it fits by now, and is called by whoever saw the room
        if plan is None:
            self._remember_vain(case)
            return None
        going = tuple(v for v in plan.victims if self._occupants.is_victim(v.uid))
        ending = self._occupants.ending().get(plan.node, [])
        without = [v.charges for v in going] + [r.charges for r in ending]
        choice = self._placer.choose(case.request, plan.node, room=room, without=without)
        if not without or not isinstance(choice, Choice):
            self._count(case, "stale", node=plan.node)
            self.consider(case.uid)
            return None
        nomination = self._nomination(case, choice, going, ending)
        try:
            self._nominations.add(nomination)
        except QuotaExceededError as error:
            self._fail(case, None, "failed", str(error))
            return None
        self._note_try(case.uid)
        return Job(preemptor=case.entry.ref, nomination=nomination, victims=going, guard=guard)

    def _nomination(
        self,
        case: _Case,
        choice: Choice,
        going: Sequence[Victim],
        ending: Sequence[Reservation],
    ) -> Nomination:
        uids = {v.uid for v in going} | {r.allocation.uid for r in ending}
        leaving = (self._occupants.pod(uid) for uid in uids)
        grace = max((grace_seconds(pod) for pod in leaving if pod is not None), default=0.0)
        lasts = min(grace + MARGIN_SECONDS, LONGEST_HOLD_SECONDS)
        meta = case.pod.metadata
        allocation = Allocation(
            uid=meta.uid,
            namespace=meta.namespace,
            name=meta.name,
            node=choice.node,
            containers=choice.containers,
            roles=case.request.roles,
        )
        return Nomination(allocation=allocation, victims=uids, expires_at=self._clock() + lasts)

    async def _carry_out(self, case: _Case, job: Job) -> None:
        try:
            result, error = await self._evictions.carry_out(job)
        finally:
            self._slots.release()
        if error:
            self._fail(case, job.nomination, result, error)
        else:
            self._count(case, result, node=job.nomination.node)

    # -- what came of it ---------------------------------------------------------------------

    def _fail(self, case: _Case, nomination: Nomination | None, result: str, text: str) -> None:
        """Nothing is held any more; there will be another try."""
        if nomination is not None and self._nominations.get(case.uid) is nomination:
            self._nominations.withdraw(case.uid)
        self._pending.note(case.uid, PREEMPTION, text)
        self._count(case, result, error=text)
        self._note_try(case.uid)
        self.consider(case.uid)

    def _count(self, case: _Case, result: str, **details: str) -> None:
        self._counters.preemptions.labels(result).inc()
        log.info("preemption", pod=case.pod.key, result=result, **details)

    def _remember_vain(self, case: _Case) -> None:
        self._count(case, "none")
        text = "no pods of lower priority could make room"
        self._pending.note(case.uid, PREEMPTION, text)
        self._vain[case.signature] = self._clock() + VAIN_SECONDS
        self._vain.move_to_end(case.signature)
        if len(self._vain) > VAIN_KEPT:
            self._vain.popitem(last=False)

    def _note_try(self, uid: str) -> None:
        number, _ = self._tries.pop(uid, (0, 0.0))
        pause = min(RETRY_SECONDS * 2.0 ** min(number, 16), MAX_RETRY_SECONDS)
        self._tries[uid] = number + 1, self._clock() + pause
        if len(self._tries) > CAPACITY:
            self._tries.popitem(last=False)


def _may_preempt(pod: Pod) -> bool:
    """Of a gang one pod alone is of no use, and whether the others fit then, nobody knows."""
    waits = not pod.spec.node_name and pod.metadata.deletion_timestamp is None
    return waits and pod.spec.preemption_policy != "Never" and gang_of(pod) is None
