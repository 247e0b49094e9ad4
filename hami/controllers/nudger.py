"""Calls waiting pods when room comes back: kube-scheduler cannot be woken by an extender.

A pod that was told it fits nowhere stays among the unschedulable ones until kube-scheduler sees
something that it understands, or for five minutes. Devices that a hold or a quota gives back, or
that are healthy again, are nothing that it understands. So when room comes back, waiting pods are
looked at in order of priority and age; each that fits now is held a place, so that exactly as many
are called as fit, and its annotation ``hami.io/nudge`` is changed: the scheduler tries it again.

Cost grows with what changed: only nodes that became freer are looked at, for groups of equal pods,
and a group ends at the first pod that does not fit. Every ``REVIEW_SECONDS`` all nodes are looked
at, should anything have been missed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup, TaskStatus

from hami.config import ControllerSettings
from hami.controllers.counters import ControllerCounters
from hami.controllers.gangs import Gangs
from hami.controllers.pending import Entry, PendingPods
from hami.controllers.waiting import GroupKey, GroupWalk
from hami.core import codec
from hami.core.allocation import Allocation
from hami.core.cache import AllocationCache, Reservation
from hami.core.device import PodRequest
from hami.core.gang import GangName, gang_of
from hami.core.objects import Pod
from hami.core.placement import Choice, Placer
from hami.core.quota import Room
from hami.errors import ConflictError, HamiError, NotFoundError
from hami.kube import patching
from hami.kube.client import KubeClient
from hami.kube.informer import Informer
from hami.kube.throttle import TokenBucket
from hami.logs import get_logger

log = get_logger(__name__)

COALESCE_SECONDS: Final = 0.1
"""What comes back within it is looked at together."""
REVIEW_SECONDS: Final = 30.0
FEW_GROUPS: Final = 128
"""For so many, half of what it has room for, the placer's kept answers are used."""
FEW_NODES: Final = 32
"""For more groups, so many nodes are asked one by one, which keeps nothing."""
IN_FLIGHT: Final = 8
"""Patches under way at once."""
SKIPPED_AT_MOST: Final = 256
"""Pods of one group that are passed over in one look: called in vain of late, or other nodes'."""
EXPIRY_SECONDS: Final = 1.0
"""A hold may last so much longer; the next in line gets its place before it is called again."""
MAX_PAUSE_SECONDS: Final = 600.0
FAILURE_PAUSE_SECONDS: Final = 5.0
"""After a call that the API server did not take, nobody is called for so long."""
REST: Final = 1.0
"""After a piece of work others get the event loop for so many times as long."""
SHORT_SECONDS: Final = 0.0002


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look knows while it goes through a group."""

    walk: GroupWalk
    lacking: set[GangName]
    """Gangs that were found not to fit."""
    tasks: TaskGroup


class Nudger:
    """Watches for room, and calls the pods that fit into it."""

    def __init__(
        self,
        client: KubeClient,
        cache: AllocationCache,
        placer: Placer,
        pending: PendingPods,
        gangs: Gangs,
        pods: Informer[Pod],
        *,
        settings: ControllerSettings,
        counters: ControllerCounters,
        require_leadership: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Nothing is watched until ``run``.

        Args:
            client: Where pods are patched.
            cache: Where places are held.
            placer: Over the same cache's table.
            pending: Who waits.
            gangs: Pods that are of use only together are called together.
            pods: As the watch shows them.
            settings: The rate of calls, and how long a hold lasts.
            counters: Of calls.
            require_leadership: Raises unless this process may act.
            clock: For holds and pauses.
            wall_clock: For the annotation's value.
        """
        self._client = client
        self._cache = cache
        self._placer = placer
        self._pending = pending
        self._gangs = gangs
        self._pods = pods
        self._settings = settings
        self._counters = counters
        self._require_leadership = require_leadership
        self._clock = clock
        self._wall_clock = wall_clock
        self._freer: dict[str, None] = {}
        self._roomier: dict[str, None] = {}
        self._placed: dict[str, None] = {}
        self._trying = False
        self._review = False
        self._wake = anyio.Event()
        self._slots = anyio.Semaphore(IN_FLIGHT)
        self._rate = 0.0
        self._bucket = TokenBucket(rate=1.0, burst=1)
        self._not_before = float("-inf")

    def room_on(self, node: str) -> None:
        """The node became freer, or offers something new. Costs nothing where nobody waits."""
        if len(self._pending.line) and not self._trying:
            self._freer[node] = None
            self._wake.set()

    def room_in(self, namespace: str) -> None:
        """The namespace's quota became roomier."""
        if len(self._pending.line) and not self._trying:
            self._roomier[namespace] = None
            self._wake.set()

    def place_for(self, uid: str) -> None:
        """Somebody else holds a place for the pod, which may have been told that there is none."""
        if uid in self._pending.line:
            self._placed[uid] = None
            self._wake.set()

    def review(self) -> None:
        """Look at all nodes soon, for everybody."""
        self._review = True
        self._wake.set()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> NoReturn:
        """Call for ever."""
        task_status.started()
        async with anyio.create_task_group() as tasks:
            while True:
                with anyio.move_on_after(REVIEW_SECONDS) as patience:
                    await self._wake.wait()
                    await anyio.sleep(COALESCE_SECONDS)
                review, self._review = patience.cancelled_caught or self._review, False
                await self._look(tasks, review=review)
        raise AssertionError("unreachable: looks until cancelled")

    async def _look(self, tasks: TaskGroup, *, review: bool) -> None:
        """Call those that fit on nodes that became freer; in a review, or a namespace, on any."""
        freer, roomier = tuple(self._freer), frozenset(self._roomier)
        placed = tuple(self._placed)
        for noted in (self._freer, self._roomier, self._placed):
            noted.clear()
        self._wake = anyio.Event()
        if not self._may_call():
            return
        for uid in placed:
            await self._call_placed(uid, tasks)
        lacking: set[GangName] = set()
        everywhere = tuple(self._cache.table.rows) if review or roomier else ()
        for key, turn, walk in self._pending.line.walk():
            nodes = everywhere if review or key.namespace in roomier else freer
            entry = self._pending.get(turn.uid)
            if entry is not None and self._may_be_called(entry, walk):
                await self._consider(entry, key, nodes, _Look(walk, lacking, tasks))

    def _may_call(self) -> bool:
        """Whether calls make sense at all; where not, a later review finds what was missed."""
        if not len(self._pending.line) or self._clock() < self._not_before:
            return False
        try:
            self._require_leadership()
        except HamiError:
            return False
        return True

    def _may_be_called(self, entry: Entry, walk: GroupWalk) -> bool:
        """Not while it holds something, nor too soon after it was called in vain."""
        pause = 0.0
        if entry.calls:
            hold_seconds = self._settings.hold_seconds + EXPIRY_SECONDS
            pause = min(hold_seconds * 2.0 ** min(entry.calls, 16), MAX_PAUSE_SECONDS)
        pod = self._pods.get(entry.ref.namespace, entry.ref.name)
        if pod is None or pod.metadata.uid != entry.ref.uid:
            return False  # gone, or not seen yet
        free = self._cache.get(entry.ref.uid) is None
        if free and (not entry.calls or self._clock() >= entry.called_at + pause):
            return True
        _pass_over(walk)
        return False

    async def _call_placed(self, uid: str, tasks: TaskGroup) -> None:
        """Call a pod that a place is held for already."""
        await self._slots.acquire()
        await self._take_token()
        entry, held = self._pending.get(uid), self._cache.get(uid)
        if entry is None or held is None or uid not in self._pending.line:
            self._slots.release()
            return
        entry.calls, entry.called_at = entry.calls + 1, self._clock()
        self._start(entry, held.allocation.node, None, tasks)

    async def _consider(
        self, entry: Entry, key: GroupKey, nodes: Sequence[str], look: _Look
    ) -> None:
        """Call the pod if it fits on one of the nodes, once it is its turn."""
        began = self._clock()
        found = self._find(entry, key, nodes, look.walk)
        await _breathe(self._clock() - began)
        if found is None:
            return
        await self._slots.acquire()
        await self._take_token()
        found = self._find_again(entry, key, nodes, look)
        if found is None or not self._hold(entry, key.request, found, look):
            self._slots.release()
            return
        self._start(entry, found.node, self._cache.get(entry.ref.uid), look.tasks)

    def _find_again(
        self, entry: Entry, key: GroupKey, nodes: Sequence[str], look: _Look
    ) -> Choice | None:
        """Where it would go now that others had their turn; nothing comes between this and hold."""
        uid = entry.ref.uid
        waits = self._pending.get(uid) is entry and uid in self._pending.line
        if not waits or self._cache.get(uid) is not None:
            return None
        return self._find(entry, key, nodes, look.walk)

    def _start(self, entry: Entry, node: str, own: Reservation | None, tasks: TaskGroup) -> None:
        tasks.start_soon(self._call, entry, node, own, name=f"nudge {entry.ref}")

    async def _take_token(self) -> None:
        """Wait for the next call that the rate allows."""
        rate = self._settings.nudges_per_second
        if rate != self._rate:
            self._rate, self._bucket = rate, TokenBucket(rate=rate, burst=max(1, int(rate)))
        await anyio.sleep(self._bucket.wait(self._clock()))
        self._bucket.try_take(self._clock())

    def _find(
        self, entry: Entry, key: GroupKey, nodes: Sequence[str], walk: GroupWalk
    ) -> Choice | None:
        """Where the pod would go now; where no pod of its group would, the group is over."""
        room = self._cache.quotas.room(key.namespace)
        fitting = self._fitting(key.request, nodes, room)
        if not fitting:
            walk.over = True
            return None
        asked = entry.decision.asked
        mine = fitting if asked is None else asked.among(self._cache.table, fitting)
        if not mine:
            _pass_over(walk)
            return None
        best = mine[0] if len(mine) == 1 else self._placer.rank(key.request, mine, room=room).best
        choice = None if best is None else self._placer.choose(key.request, best, room=room)
        return choice if isinstance(choice, Choice) else None

    def _fitting(
        self, request: PodRequest, nodes: Sequence[str], room: Room | None
    ) -> tuple[str, ...]:
        choose = self._placer.choose
        if self._pending.line.groups <= FEW_GROUPS or len(nodes) > FEW_NODES:
            return self._placer.rank(request, tuple(nodes), room=room).feasible
        return tuple(n for n in nodes if isinstance(choose(request, n, room=room), Choice))

    def _hold(self, entry: Entry, request: PodRequest, choice: Choice, look: _Look) -> bool:
        """Hold the place, and those of its gang; False, and nothing held, where that cannot be."""
        pod = self._pods.get(entry.ref.namespace, entry.ref.name)
        if pod is None or pod.metadata.uid != entry.ref.uid:
            return False
        gang = gang_of(pod)
        if gang in look.lacking:
            _pass_over(look.walk)
            return False
        expires_at = self._clock() + self._settings.hold_seconds
        allocation = Allocation(
            uid=entry.ref.uid,
            namespace=entry.ref.namespace,
            name=entry.ref.name,
            node=choice.node,
            containers=choice.containers,
            roles=request.roles,
        )
        self._cache.hold(allocation, expires_at=expires_at)
        if gang is not None and not self._hold_gang(pod, entry, request, expires_at=expires_at):
            look.lacking.add(gang)
            _pass_over(look.walk)
            return False
        entry.calls, entry.called_at = entry.calls + 1, self._clock()
        return True

    def _hold_gang(self, pod: Pod, entry: Entry, request: PodRequest, *, expires_at: float) -> bool:
        """Hold places for the siblings, who are then called as well; else the pod's is given back.

        What is given back by that was free before, and calls nobody.
        """
        table, asked = self._cache.table, entry.decision.asked
        nodes = tuple(table.rows) if asked is None else asked.names(table)
        self._trying = True
        try:
            lack = self._gangs.hold_for_siblings(pod, request, nodes, expires_at=expires_at)
            if lack is not None:
                self._cache.release(entry.ref.uid)
        finally:
            self._trying = False
        return lack is None

    async def _call(self, entry: Entry, node: str, own: Reservation | None) -> None:
        """Change the pod, so that the scheduler tries it again; else give its place back.

        ``own`` is what is held here for the call; None where somebody else holds the place.
        """
        value = str(int(self._wall_clock() * 1000))
        try:
            self._require_leadership()
            await patching.patch_metadata(
                self._client, entry.ref, annotations={codec.NUDGE_KEY: value}
            )
        except (NotFoundError, ConflictError):
            self._pending.forget(entry.ref.uid)
            self._end(entry, own, "gone")
        except HamiError as error:
            self._not_before = self._clock() + FAILURE_PAUSE_SECONDS
            log.warning("pod_not_nudged", pod=str(entry.ref), error=str(error))
            self._end(entry, own, "failed")
        else:
            self._pending.was_called(entry.ref.uid)
            self._counters.nudges.labels("sent").inc()
            log.info("pod_nudged", pod=str(entry.ref), node=node, times=entry.calls)
        finally:
            self._slots.release()

    def _end(self, entry: Entry, own: Reservation | None, result: str) -> None:
        """Give back just what was held here: the call may have been heard though nobody said so.

        Then a filter holds something by now, or a bind is under way with it.
        """
        if own is not None and self._cache.get(entry.ref.uid) is own:
            self._cache.release(entry.ref.uid)
        self._counters.nudges.labels(result).inc()


def _pass_over(walk: GroupWalk) -> None:
    walk.passed_over += 1
    walk.over = walk.over or walk.passed_over >= SKIPPED_AT_MOST


async def _breathe(worked_seconds: float) -> None:
    """Let others work, after a piece of work that took long for longer."""
    if worked_seconds < SHORT_SECONDS:
        await anyio.lowlevel.checkpoint()
    else:
        await anyio.sleep(worked_seconds * REST)
