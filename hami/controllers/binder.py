"""Bind: choose the devices, keep them, write them on the pod, give the pod to the node.

The order makes every moment safe to die in. The node's lock is taken first, where a vendor's agent
needs it, and given back if the bind fails. Devices are reserved in memory, then recorded on the pod
(on condition that it is as it was read), then the Binding is made on condition that the record
still stands; so a bound pod always carries its record, and the record of an unbound pod means
nothing. Where an answer is lost, ``outcomes`` finds out what happened before anything is given
back. A bind belongs
to the reign in which it began (``leadership.py``): once that is over it writes nothing more, and
whoever leads next sees to the record.

A bind that could not be done within its deadline, for so many are under way, is refused before it
begins: it costs nothing then, and its scheduler comes again when there is room.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import anyio

from hami.config import ControllerSettings
from hami.controllers.counters import ControllerCounters
from hami.controllers.leadership import Leadership, Mandate
from hami.controllers.nodelocks import NodeLocks
from hami.controllers.outcomes import Outcomes
from hami.controllers.podwriter import WRITES_OF_A_BIND, PodWriter
from hami.controllers.twins import Twins, keys_of_request, needs_lock
from hami.controllers.wire import BindArgs
from hami.core.allocation import Allocation
from hami.core.cache import AllocationCache, Reservation, State
from hami.core.device import PodRequest
from hami.core.objects import Pod
from hami.core.placement import Placer
from hami.core.quota import NO_USE
from hami.core.request import Defaults, read_request, roles_of
from hami.core.vendor import VendorTable
from hami.core.verdict import Verdict
from hami.crashpoints import crash_point
from hami.errors import (
    BusyError,
    ConflictError,
    HamiError,
    NotFoundError,
    NotLeaderError,
    StaleSnapshotError,
    UnavailableError,
    UnfitError,
)
from hami.kube.events import EventRecorder
from hami.kube.informer import Informer
from hami.kube.resources import PODS, ObjectRef
from hami.logs import get_logger

log = get_logger(__name__)

CRASH_POINTS: Final = (
    "bind.before-turn",
    "bind.before-reserve",
    "bind.before-patch",
    "bind.before-binding",
    "bind.after-binding",
)
CONFLICT_POINTS: Final = ("bind.before-reading-again",)
"""Passed only where somebody else was faster."""
UNLOCK_SECONDS: Final = 10.0
"""How long a failed bind tries to give the node's lock back."""


@dataclass(slots=True, kw_only=True)
class _Task:
    """One bind: what was asked, of which pod, and whether anything was written on it."""

    args: BindArgs
    ref: ObjectRef
    """The pod, in this life of it."""
    request: PodRequest
    mandate: Mandate
    """The reign it belongs to."""
    written: bool = False


class Binder:
    """Carries out binds, several at a time, at most one for each pod."""

    def __init__(
        self,
        writer: PodWriter,
        pods: Informer[Pod],
        *,
        cache: AllocationCache,
        placer: Placer,
        twins: Twins,
        locks: NodeLocks,
        outcomes: Outcomes,
        vendors: VendorTable,
        defaults: Defaults,
        settings: ControllerSettings,
        recorder: EventRecorder,
        counters: ControllerCounters,
        leadership: Leadership,
        on_failure: Callable[[str, str, str], None] = lambda _uid, _node, _error: None,
    ) -> None:
        self._writer = writer
        self._pods = pods
        self._cache = cache
        self._placer = placer
        self._twins = twins
        self._locks = locks
        self._outcomes = outcomes
        self._vendors = vendors
        self._defaults = defaults
        self._settings = settings
        self._recorder = recorder
        self._counters = counters
        self._leadership = leadership
        self._on_failure = on_failure
        self._under_way: set[str] = set()
        self._waiting = 0
        """Those of them that wait for their twins."""

    @property
    def under_way(self) -> int:
        """How many binds are under way."""
        return len(self._under_way)

    def is_binding(self, uid: str) -> bool:
        """Whether a bind of the pod is under way."""
        return uid in self._under_way

    async def bind(self, args: BindArgs) -> None:
        """Bind the pod to the node with devices of its own; harmless where that is done already.

        Raises:
            HamiError: It is not bound; the message is for the scheduler, which tries again.
        """
        if args.uid in self._under_way:
            raise StaleSnapshotError(f"pod {args.pod}: a bind of it is under way")
        self._under_way.add(args.uid)
        try:
            result = await self._bind(args)
        except HamiError as error:
            self._counters.binds.labels(_result_of(error)).inc()
            raise
        finally:
            self._under_way.discard(args.uid)
            self._locks.leave(args.uid)
        self._counters.binds.labels(result).inc()

    async def _bind(self, args: BindArgs) -> str:
        mandate = self._leadership.mandate()
        ref = ObjectRef(resource=PODS, name=args.name, namespace=args.namespace, uid=args.uid)
        if await self._outcomes.find_out(args.uid) == args.node:
            return "repeated"
        pod = await self._find(ref)
        if pod.spec.node_name == args.node:
            return "repeated"
        request = read_request(pod, self._vendors, self._defaults)
        self._refuse_if_busy(args, request)
        task = _Task(args=args, ref=ref, request=request, mandate=mandate)
        try:
            await self._carry_out(task, pod)
        except HamiError as error:
            if not await self._undo(task):
                log.warning("bind_failed", pod=args.pod, node=args.node, error=str(error))
                self._recorder.record(task.ref, "BindingFailed", str(error), type="Warning")
                self._on_failure(args.uid, args.node, str(error))
                raise
        self._locks.hand_over(args.uid)
        log.info("pod_bound", pod=args.pod, uid=args.uid, node=args.node)
        self._recorder.record(
            task.ref, "BindingSucceed", f"Successfully binding node [{args.node}] to {args.pod}"
        )
        return "bound"

    def _refuse_if_busy(self, args: BindArgs, request: PodRequest) -> None:
        """Refuse what the deadline would only end.

        Raises:
            BusyError: More waits already than can be done in time.
        """
        keys = keys_of_request(request, self._vendors)
        others = len(self._under_way) - 1
        writes = others + self._waiting + WRITES_OF_A_BIND  # who has its turn has one write queued
        for_twins = self._twins.expected_wait(node=args.node, keys=keys)
        expected = max(for_twins, self._writer.expected_wait(writes))
        seconds = self._settings.bind_timeout_seconds
        if expected > seconds:
            raise BusyError(
                f"bind of {args.pod} to {args.node}: {others} others are under way, "
                f"{self._waiting} of them wait for their turn on a node; this one would take "
                f"{expected:.1f} s of at most {seconds:g} s: come again"
            )

    async def _carry_out(self, task: _Task, pod: Pod) -> None:
        """Wait for the pod's turn, then decide and write, all within the deadline."""
        seconds, waits_for = self._settings.bind_timeout_seconds, "its twins on the node"
        try:
            with anyio.fail_after(seconds):
                if not task.request.empty:
                    _refuse_settled(pod)
                    crash_point("bind.before-turn")
                    self._keep(task, pod)  # what cannot be had is told at once
                    await self._take_turn(task)
                    if needs_lock(task.request, self._vendors):
                        waits_for = "the lock of the node"
                        await self._locks.take(task.ref, task.args.node)
                    pod = await self._find(task.ref)
                waits_for = "the API server"
                await self._decide(task, pod)
        except TimeoutError as error:
            raise UnavailableError(
                f"bind of {task.args.pod} to {task.args.node}: waited for {waits_for}, "
                f"not done within {seconds:g} s"
            ) from error

    async def _take_turn(self, task: _Task) -> None:
        """Wait for pods on the node that the kubelet could not tell from this one."""
        self._waiting += 1
        try:
            with self._counters.twin_seconds.time():
                await self._twins.enter(
                    task.args.uid,
                    node=task.args.node,
                    keys=keys_of_request(task.request, self._vendors),
                )
        finally:
            self._waiting -= 1

    async def _decide(self, task: _Task, pod: Pod) -> None:
        """Choose, record and bind; again where somebody else was faster."""
        for attempt in range(1, self._settings.max_attempts + 1):
            _refuse_settled(pod)
            try:
                await self._attempt(task, pod)
            except (ConflictError, StaleSnapshotError) as error:
                self._counters.conflicts.inc()
                log.info(
                    "bind_conflicted",
                    pod=task.args.pod,
                    node=task.args.node,
                    attempt=attempt,
                    error=str(error),
                )
                crash_point("bind.before-reading-again")
                pod = await self._writer.read(task.ref)
                if self._outcomes.is_done(task.ref, pod, node=task.args.node, mandate=task.mandate):
                    return
            else:
                return
        raise ConflictError(
            f"pod {task.args.pod}: changed during each of "
            f"{self._settings.max_attempts} attempts to bind it",
            status=409,
        )

    async def _attempt(self, task: _Task, pod: Pod) -> None:
        if task.request.empty:
            await self._writer.bind(task.ref, pod, task.mandate, node=task.args.node)
            return
        crash_point("bind.before-reserve")
        allocation = self._reserve(task, pod)
        crash_point("bind.before-patch")
        task.written = True
        recorded = await self._writer.record(task.ref, pod, allocation, task.mandate)
        crash_point("bind.before-binding")
        await self._writer.bind(task.ref, recorded, task.mandate, node=task.args.node)
        crash_point("bind.after-binding")
        if self._cache.get(task.args.uid) is not None:  # else the watch saw the pod go already
            self._cache.confirm(allocation)
            self._outcomes.saw_bound(task.ref, node=task.args.node, mandate=task.mandate)

    def _keep(self, task: _Task, pod: Pod) -> None:
        """Reserve until the pod's turn: what filter holds for it there, or a choice of now."""
        args = task.args
        held, generation = self._cache.get(args.uid), self._cache.table.generation(args.node)
        if (
            generation == 0
            or held is None
            or held.state is not State.HELD
            or held.allocation.node != args.node
        ):
            self._reserve(task, pod)
            return
        task.mandate.require()
        self._cache.reserve(
            held.allocation,
            generation=generation,
            expires_at=self._outcomes.ends_at(),
            request=held.request,
        )

    def _reserve(self, task: _Task, pod: Pod) -> Allocation:
        """Decide on the devices and keep them; in one go, so nothing can come between.

        What is kept for this request already stands if its node has not changed since.
        """
        args = task.args
        task.mandate.require()
        kept, generation = self._cache.get(args.uid), self._cache.table.generation(args.node)
        if kept is not None and kept.allocation.node != args.node:
            self._cache.release(args.uid)
            kept = None
        if generation and kept and (kept.request, kept.generation) == (task.request, generation):
            allocation = kept.allocation
        else:
            allocation, generation = self._choose(task, pod, kept)
        self._cache.reserve(
            allocation,
            generation=generation,
            expires_at=self._outcomes.ends_at(),
            request=task.request,
        )
        return allocation

    def _choose(self, task: _Task, pod: Pod, kept: Reservation | None) -> tuple[Allocation, int]:
        """A decision of now, as if nothing were kept for the pod, and the generation it saw."""
        args = task.args
        room = self._cache.quotas.room(args.namespace, without=kept.use if kept else NO_USE)
        without = [kept.charges] if kept else []
        choice = self._placer.choose(task.request, args.node, room=room, without=without)
        if isinstance(choice, Verdict):
            self._cache.release(args.uid)
            raise UnfitError(f"node {args.node} no longer fits pod {args.pod}: {choice}")
        allocation = Allocation(
            uid=args.uid,
            namespace=args.namespace,
            name=args.name,
            node=args.node,
            containers=choice.containers,
            roles=roles_of(pod),
        )
        return allocation, choice.generation

    async def _undo(self, task: _Task) -> bool:
        """Leave the pod and the node's lock as they were; True if it is bound after all."""
        if await self._outcomes.undo(
            task.ref, node=task.args.node, mandate=task.mandate, written=task.written
        ):
            return True
        if not self._outcomes.is_unknown(task.args.uid):  # else the agent may need the lock yet
            with anyio.move_on_after(UNLOCK_SECONDS, shield=True):
                await self._locks.release(task.args.uid)
        return False

    async def _find(self, ref: ObjectRef) -> Pod:
        """The pod as the watch shows it; asked for where the watch does not know this life."""
        pod = self._pods.get(ref.namespace, ref.name)
        if pod is not None and pod.metadata.uid == ref.uid:
            return pod
        return await self._writer.read(ref)


def _refuse_settled(pod: Pod) -> None:
    """Refuse a pod that is bound already, or that is ending."""
    if pod.spec.node_name:
        raise StaleSnapshotError(f"pod {pod.key}: already bound to node {pod.spec.node_name}")
    if pod.metadata.deletion_timestamp is not None or pod.finished:
        raise NotFoundError(f"pod {pod.key}: is being deleted or has ended", status=404)


def _result_of(error: HamiError) -> str:
    match error:
        case UnfitError():
            return "unfit"
        case BusyError():
            return "busy"
        case NotFoundError():
            return "gone"
        case ConflictError() | StaleSnapshotError():
            return "conflicted"
        case NotLeaderError():
            return "deposed"
        case _:
            return "failed"
