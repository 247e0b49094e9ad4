"""What became of a bind that failed, or that the watch knows nothing of: asked until it is known.

A request whose answer is lost may have been carried out, or be carried out yet. So the API server
is asked what the pod is now. A record that is still on an unbound pod is taken off, which also
makes a Binding that is on its way come too late. Only then are the devices given back, however long
the API server is away.

What other processes left, and earlier reigns of this one, is for ``leftovers`` and ``succession``.

A pod that was bound before the watch ever showed it is followed here as well, for the watch cannot
tell that something is gone which it never knew.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

import anyio

from hami.config import ControllerSettings
from hami.controllers.leadership import Mandate
from hami.controllers.podwriter import PodWriter
from hami.controllers.twins import Twins
from hami.core import record
from hami.core.cache import AllocationCache
from hami.core.objects import Pod
from hami.core.vendor import VendorTable
from hami.crashpoints import crash_point
from hami.errors import (
    CodecError,
    ConflictError,
    HamiError,
    NotFoundError,
    NotLeaderError,
    StaleSnapshotError,
)
from hami.kube.informer import Informer
from hami.kube.resources import ObjectRef
from hami.logs import get_logger

log = get_logger(__name__)

CRASH_POINTS: Final = ("undo.before-read", "undo.before-take-back", "undo.after-take-back")
UNDO_SECONDS: Final = 10.0
"""How long one try to leave a pod as it was may take, before the next pod's turn."""
ROUND_SECONDS: Final = 1.0
"""Between two rounds of asking what became of binds."""
RESERVATION_TIMES: Final = 3
"""A reservation outlives the bind's own deadline, for what was sent may still take effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    """A pod whose bind has an end that is not known, or that the watch has yet to show."""

    ref: ObjectRef
    """The pod, in this life of it."""
    node: str
    mandate: Mandate
    """The reign in which it was to be bound."""
    bound: bool
    """Whether it was bound, so that only the watch is waited for."""


class Outcomes:
    """The binds that are over for the scheduler and not yet for the cache."""

    def __init__(
        self,
        writer: PodWriter,
        pods: Informer[Pod],
        *,
        cache: AllocationCache,
        twins: Twins,
        vendors: VendorTable,
        settings: ControllerSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._writer = writer
        self._pods = pods
        self._cache = cache
        self._twins = twins
        self._vendors = vendors
        self._settings = settings
        self._clock = clock
        self._open: dict[str, _Open] = {}
        self._asking: set[str] = set()
        """Pods that somebody is settling just now; two would undo each other's work."""

    def __len__(self) -> int:
        return len(self._open)

    def _keep(self, known: _Open) -> None:
        self._open[known.ref.uid] = known
        self._cache.keep(known.ref.uid)

    def ends_at(self) -> float:
        """When a reservation made now ends, if nobody prolongs it."""
        return self._clock() + self._settings.bind_timeout_seconds * RESERVATION_TIMES

    async def run(self) -> NoReturn:
        """Ask again and again."""
        while True:
            await anyio.sleep(ROUND_SECONDS)
            await self.look()

    async def find_out(self, uid: str) -> str | None:
        """The node that an earlier bind of the pod, left open, has bound it to after all.

        Raises:
            HamiError: That cannot be known now.
        """
        known = self._open.get(uid)
        if known is None:
            return None
        if not known.bound:
            return known.node if await self._settle(known) else None
        return known.node

    async def look(self) -> None:
        """One round. After a failure the others wait for the next one."""
        for uid, known in tuple(self._open.items()):
            if self._open.get(uid) is not known or uid in self._asking:
                continue
            try:
                with anyio.fail_after(UNDO_SECONDS):
                    await self._follow(known)
            except (HamiError, TimeoutError) as error:
                log.info("bind_outcome_unknown", pod=str(known.ref), error=repr(error))
                if self._open.pop(uid, None) is not None:
                    self._open[uid] = known  # the others first, the next time
                return

    def is_unknown(self, uid: str) -> bool:
        """Whether the pod may be bound, or be bound yet, by a bind that failed."""
        known = self._open.get(uid)
        return known is not None and not known.bound

    def resign(self) -> None:
        """The reign is over: what became of its binds, the next one finds out."""
        for uid, known in self._open.items():
            if not known.bound:
                self._twins.leave(uid)
        self._open = {uid: known for uid, known in self._open.items() if known.bound}

    def saw_bound(self, ref: ObjectRef, *, node: str, mandate: Mandate) -> None:
        """The pod is bound. Where the watch does not know it yet, it is followed from here."""
        if not self._is_shown(ref):
            self._open[ref.uid] = _Open(ref=ref, node=node, mandate=mandate, bound=True)

    async def undo(self, ref: ObjectRef, *, node: str, mandate: Mandate, written: bool) -> bool:
        """Leave the pod as it was and give its devices back; True if it is bound after all.

        Where the API server does not answer, this goes on in the background.

        Args:
            ref: The pod, in this life of it.
            node: Where it was to be bound.
            mandate: The reign in which that was.
            written: Whether anything was sent to the API server.
        """
        if not written:
            self._give_back(ref.uid)
            return False
        known = _Open(ref=ref, node=node, mandate=mandate, bound=False)
        self._keep(known)
        with anyio.move_on_after(UNDO_SECONDS, shield=True):
            try:
                return await self._settle(known)
            except HamiError as error:
                log.warning("bind_outcome_unknown", pod=str(ref), error=str(error))
        return False

    def is_done(self, ref: ObjectRef, pod: Pod, *, node: str, mandate: Mandate) -> bool:
        """Whether the pod is bound to the node, as by a request whose answer was lost.

        Wherever it is bound, it is counted there from now on.
        """
        if not pod.spec.node_name:
            return False
        with contextlib.suppress(CodecError):  # spoilt since: the watch reports it
            allocation = record.allocation_of(pod, self._vendors)
            # What is not in the cache was forgotten because the watch saw the pod go.
            counts = allocation is not None and allocation.node == pod.spec.node_name
            if allocation is not None and counts and self._cache.get(ref.uid) is not None:
                self._cache.confirm(allocation, init_done=record.init_done(pod))
                self.saw_bound(ref, node=allocation.node, mandate=mandate)
        return pod.spec.node_name == node

    async def _follow(self, known: _Open) -> None:
        """Find out about one pod, and forget it here if there is no more to find out.

        Raises:
            HamiError: The API server gives no answer, or none that settles it.
        """
        if not known.bound:
            await self._settle(known)
            return
        if not self._is_shown(known.ref):
            try:
                await self._writer.read(known.ref)
            except NotFoundError:
                self._cache.forget(known.ref.uid)
                self._twins.leave(known.ref.uid)
            else:
                return
        self._open.pop(known.ref.uid, None)

    async def _settle(self, known: _Open) -> bool:
        """Take the record off the pod, or see it bound: True if to the node that was meant.

        Raises:
            HamiError: The API server gives no answer, or none that settles it.
        """
        uid = known.ref.uid
        if uid in self._asking:
            raise StaleSnapshotError(f"{known.ref}: an earlier bind of it is being undone")
        self._asking.add(uid)
        try:
            bound = await self._settle_alone(known)
        finally:
            self._asking.discard(uid)
        if self._open.get(uid) is known:
            del self._open[uid]
        return bound

    async def _settle_alone(self, known: _Open) -> bool:
        for _ in range(self._settings.max_attempts):
            try:
                crash_point("undo.before-read")
                pod = await self._writer.read(known.ref)
                if self.is_done(known.ref, pod, node=known.node, mandate=known.mandate):
                    return True
                if not pod.spec.node_name:
                    crash_point("undo.before-take-back")
                    await self._writer.take_back(known.ref, pod, known.mandate)
                    crash_point("undo.after-take-back")
            except ConflictError:
                continue
            except (NotFoundError, NotLeaderError):
                pass  # gone, or for the next leader to find out
            self._give_back(known.ref.uid)
            return False
        raise ConflictError(f"{known.ref}: changes all the time", status=409)

    def _give_back(self, uid: str) -> None:
        self._cache.release(uid)
        self._twins.leave(uid)

    def _is_shown(self, ref: ObjectRef) -> bool:
        """Whether the watch knows the pod, in this life of it."""
        pod = self._pods.get(ref.namespace, ref.name)
        return pod is not None and pod.metadata.uid == ref.uid
