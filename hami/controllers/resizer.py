"""Live resize: decides what running pods ask for, and records what they get.

Level-based: a bound pod whose request (``hami.io/resize``) no decision answers is decided on. What
it grows by is kept in the cache first, as a bind's devices are; then record and decision are
written in one patch that tests what was decided on, so of two deciders one meets a conflict, and a
controller that dies leaves a pod resized or untouched. What was denied is tried again when its node
has changed, with growing pauses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

import anyio

from hami.controllers.leadership import Mandate
from hami.core import codec, record, resize
from hami.core.allocation import BindPhase
from hami.core.cache import AllocationCache
from hami.core.codec_resize import (
    RESIZE_KEY,
    RESIZE_STATUS_KEY,
    Decision,
    decode_decision,
    decode_resize,
    digest,
    encode_decision,
    number_of,
)
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
    UnfitError,
)
from hami.kube.client import KubeClient
from hami.kube.events import EventRecorder
from hami.kube.informer import Informer
from hami.kube.patching import annotation_path, expect, json_patch
from hami.kube.resources import PODS, ObjectRef
from hami.logs import get_logger

log = get_logger(__name__)

CRASH_POINTS: Final = ("resize.before-patch", "resize.after-patch")
LOOK_SECONDS: Final = 0.5
"""How often it is looked whether somebody who was denied may be tried again."""
RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 30.0
"""What was denied waits so long at least, twice as long each time, and so long at most."""
UNSEEN_SECONDS: Final = 60.0
"""Room is kept so long for a resize that the watch does not show."""


@dataclass(slots=True, kw_only=True)
class _Denied:
    """A request that could not be met, so far."""

    text: str
    generation: int
    """Of the node, when it was looked at."""
    pause: float
    not_before: float


class Resizer:
    """Decides on requests of bound pods."""

    def __init__(
        self,
        client: KubeClient,
        pods: Informer[Pod],
        cache: AllocationCache,
        *,
        vendors: VendorTable,
        recorder: EventRecorder,
        mandate: Callable[[], Mandate],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Decides nothing until ``run``.

        Args:
            client: Where decisions are written.
            pods: All pods.
            cache: What is held.
            vendors: Whose records there are.
            recorder: Tells pods that were denied.
            mandate: The present reign; raises unless this process leads.
            clock: Of pauses.
        """
        self._client, self._pods, self._cache = client, pods, cache
        self._vendors, self._recorder = vendors, recorder
        self._mandate, self._clock = mandate, clock
        self._queue: dict[str, Pod] = {}
        self._denied: dict[str, _Denied] = {}
        self._wake = anyio.Event()

    def on_set(self, pod: Pod, _: Pod | None) -> None:
        """Take note of a pod that asks."""
        uid = pod.metadata.uid
        text = pod.annotations.get(RESIZE_KEY)
        if text is None or not _may_be_resized(pod):
            self.on_delete(pod)
            return
        known = self._denied.get(uid)
        if known is not None and known.text != text:
            del self._denied[uid]
        answer = decode_decision(pod.annotations.get(RESIZE_STATUS_KEY, ""))
        if answer is not None and answer.request == digest(text) and answer.state == "accepted":
            self.on_delete(pod)
            return
        self._queue[uid] = pod
        self._wake.set()

    def on_delete(self, pod: Pod) -> None:
        """Nothing is asked any more."""
        self._queue.pop(pod.metadata.uid, None)
        self._denied.pop(pod.metadata.uid, None)

    async def run(self) -> NoReturn:
        """Decide for ever."""
        while True:
            with anyio.move_on_after(LOOK_SECONDS):
                await self._wake.wait()
            self._wake = anyio.Event()
            for pod in list(self._queue.values()):
                if self._is_due(pod):
                    await self._try(pod)
            self._give_up_the_overdue()

    def _is_due(self, pod: Pod) -> bool:
        known = self._denied.get(pod.metadata.uid)
        if known is None:
            return True
        now = self._clock()
        moved = known.generation != self._cache.table.generation(pod.spec.node_name or "")
        waited = now >= known.not_before + (0.0 if moved else MAX_RETRY_SECONDS)
        return now >= known.not_before and (moved or waited)

    async def _try(self, pod: Pod) -> None:
        try:
            await self._decide(pod, self._mandate())
        except NotLeaderError:
            return
        except (ConflictError, StaleSnapshotError) as error:
            log.info("resize_conflicted", pod=pod.key, error=str(error))
        except NotFoundError:
            self.on_delete(pod)
        except HamiError as error:
            log.warning("resize_failed", pod=pod.key, error=str(error))

    async def _decide(self, pod: Pod, mandate: Mandate) -> None:
        text = pod.annotations[RESIZE_KEY]
        before = record.allocation_of(pod, self._vendors)
        if before is None or before.node != pod.spec.node_name:
            return
        done = record.init_done(pod)
        generation = self._cache.table.generation(before.node)
        now = resize.held(before, pod)
        number = number_of(pod.annotations.get(RESIZE_STATUS_KEY, ""))
        try:
            after = resize.resized(before, pod, decode_resize(text))
            if after != before:
                self._cache.resize(
                    after,
                    number=number + 1,
                    expires_at=self._clock() + UNSEEN_SECONDS,
                    init_done=done,
                )
        except (UnfitError, CodecError) as error:
            await self._deny(
                pod, str(error), generation, mandate, resize.shrinking(now, before, pod)
            )
            return
        changes = resize.texts_of(pod, after, self._vendors)
        had = resize.shrinking(now, after, pod)
        answer = Decision(request=digest(text), state="accepted", number=number + 1, had=had)
        crash_point("resize.before-patch")
        try:
            await self._write(pod, {**changes, RESIZE_STATUS_KEY: encode_decision(answer)}, mandate)
        except (ConflictError, NotFoundError, NotLeaderError):
            self._cache.end_resize(now, init_done=done)  # surely not written
            raise
        crash_point("resize.after-patch")
        self.on_delete(pod)
        log.info("pod_resized", pod=pod.key, uid=pod.metadata.uid, request=text[:200])
        self._recorder.record(ObjectRef.to(PODS, pod), "Resized", f"devices resized: {text[:500]}")

    async def _deny(
        self,
        pod: Pod,
        reason: str,
        generation: int,
        mandate: Mandate,
        had: dict[str, tuple[int, ...]],
    ) -> None:
        """Say why not; what earlier requests are still taking stays on record."""
        uid, text = pod.metadata.uid, pod.annotations[RESIZE_KEY]
        known = self._denied.get(uid)
        pause = RETRY_SECONDS if known is None else min(known.pause * 2, MAX_RETRY_SECONDS)
        self._denied[uid] = _Denied(
            text=text, generation=generation, pause=pause, not_before=self._clock() + pause
        )
        answer = encode_decision(
            Decision(
                request=digest(text),
                state="denied",
                reason=reason,
                number=number_of(pod.annotations.get(RESIZE_STATUS_KEY, "")),
                had=had,
            )
        )
        if pod.annotations.get(RESIZE_STATUS_KEY) == answer:
            return
        await self._write(pod, {RESIZE_STATUS_KEY: answer}, mandate)
        log.info("resize_denied", pod=pod.key, uid=uid, reason=reason)
        self._recorder.record(ObjectRef.to(PODS, pod), "ResizeDenied", reason, type="Warning")

    async def _write(self, pod: Pod, changes: dict[str, str], mandate: Mandate) -> None:
        """All or nothing, if the pod still has the request and the records that were looked at."""
        keys = [
            RESIZE_KEY,
            codec.BIND_PHASE_KEY,
            *(v.allocated_key for v in self._vendors.values()),
        ]
        operations = [expect("/metadata/uid", pod.metadata.uid)]
        operations += [
            expect(annotation_path(key), pod.annotations[key])
            for key in keys
            if key in pod.annotations
        ]
        operations += [
            {"op": "add", "path": annotation_path(key), "value": value}
            for key, value in changes.items()
        ]
        ref = ObjectRef.to(PODS, pod)
        await json_patch(self._client, ref, operations, guard=mandate.require)

    def _give_up_the_overdue(self) -> None:
        """Whose answer was lost, and whom the watch shows as before: nothing was written."""
        by_uid = {pod.metadata.uid: pod for pod in self._queue.values()}
        for uid in self._cache.overdue_resizes(self._clock()):
            pod = by_uid.get(uid)
            before = record.allocation_of(pod, self._vendors) if pod is not None else None
            if pod is not None and before is not None:
                held = resize.held(before, pod)
                self._cache.end_resize(held, init_done=record.init_done(pod))


def _may_be_resized(pod: Pod) -> bool:
    """Whether its containers have their devices, and may have them for a while."""
    return (
        bool(pod.spec.node_name)
        and not pod.finished
        and pod.metadata.deletion_timestamp is None
        and pod.annotations.get(codec.BIND_PHASE_KEY) == BindPhase.SUCCESS
    )
