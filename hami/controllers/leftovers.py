"""Records on pods that are not bound: left over from a bind that did not come to its end.

They count for nothing, but one may still have its Binding on the way. Taking the record off moves
the pod's version, and the Binding, made on condition of it, meets a conflict. At the beginning of a
reign that *fences* the reigns before it: every record of theirs goes, before anything is decided.
Later, records that nobody here is binding are *tidied* away, after a grace and a few at a time:
of a former leader whose patch came late, of pods that turned out to be unschedulable, or copied by
somebody from another pod.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final, NoReturn

import anyio
import msgspec

from hami.config import ControllerSettings
from hami.controllers.counters import ControllerCounters
from hami.controllers.leadership import Leadership, Mandate
from hami.controllers.podwriter import PodWriter
from hami.core import codec, record
from hami.core.objects import Pod
from hami.core.vendor import VendorTable
from hami.errors import ConflictError, HamiError, NotFoundError
from hami.kube.backoff import retrying
from hami.kube.client import KubeClient
from hami.kube.informer import Informer
from hami.kube.resources import PODS, ObjectRef
from hami.logs import get_logger

log = get_logger(__name__)

ROUND_SECONDS: Final = 1.0
AT_A_TIME: Final = 16
"""Records taken off at once when a reign begins, and in one round later."""
_POD = msgspec.json.Decoder(Pod)


class Leftovers:
    """Knows the unbound pods with records, and takes those off."""

    def __init__(
        self,
        client: KubeClient,
        pods: Informer[Pod],
        *,
        writer: PodWriter,
        vendors: VendorTable,
        settings: ControllerSettings,
        counters: ControllerCounters,
        is_binding: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is known yet.

        Args:
            client: Where to list.
            pods: All pods.
            writer: Takes records off.
            vendors: This site's table.
            settings: The scheduler whose pods are ours, and the grace.
            counters: Counts them.
            is_binding: Whether a bind of the pod (by uid) is under way here.
            clock: For the grace.
        """
        self._client = client
        self._pods = pods
        self._writer = writer
        self._settings = settings
        self._counters = counters
        self._is_binding = is_binding
        self._clock = clock
        self._vendors = vendors
        self._since: dict[ObjectRef, float] = {}

    def on_set(self, pod: Pod, _: Pod | None) -> None:
        """Remember since when an unbound pod has a record."""
        ref = ObjectRef.to(PODS, pod)
        if self._is_leftover(pod):
            self._since.setdefault(ref, self._clock())
        else:
            self._since.pop(ref, None)

    def on_delete(self, pod: Pod) -> None:
        """Forget it."""
        self._since.pop(ObjectRef.to(PODS, pod), None)

    async def fence(self, mandate: Mandate) -> str:
        """Take every other reign's record off the pods that are not bound.

        Afterwards no Binding of an earlier reign succeeds any more.

        Returns:
            A version of the pods that shows every Binding of an earlier reign that did succeed.

        Raises:
            HamiError: It is not known that all are off: begin again.
        """
        versions: list[str] = []
        foreign: list[Pod] = []
        query = {"fieldSelector": "spec.nodeName="}
        async for page in self._client.list_pages(PODS.path(), query=query):
            versions.append(page.metadata.resource_version)
            decoded = [_decode(raw) for raw in page.items or ()]
            foreign += [
                pod for pod in decoded if pod is not None and self._is_foreign(pod, mandate)
            ]
        errors: list[HamiError] = []
        room = anyio.Semaphore(AT_A_TIME)

        async def fence_one(pod: Pod) -> None:
            async with room:
                try:
                    versions.append(await self._fence_one(pod, mandate))
                except HamiError as error:
                    errors.append(error)

        async with anyio.create_task_group() as group:
            for pod in foreign:
                group.start_soon(fence_one, pod)
        if errors:
            raise errors[0]
        log.info("earlier_reigns_fenced", mark=mandate.mark, records=len(foreign))
        return max(versions, key=_number)

    async def _fence_one(self, pod: Pod, mandate: Mandate) -> str:
        """Take one record off; the version at which it was off, or at which the pod was bound."""
        ref = ObjectRef.to(PODS, pod)
        while self._is_foreign(pod, mandate):
            take_back = partial(self._writer.take_back, ref, pod, mandate)
            try:
                pod = await retrying(take_back, f"fencing of {ref}")
            except NotFoundError:
                break
            except ConflictError:  # bound in the last moment, or changed otherwise
                try:
                    pod = await self._writer.read(ref)
                except NotFoundError:
                    break
            else:
                self._counters.orphans.labels("fenced").inc()
        return pod.metadata.resource_version

    async def run(self, leadership: Leadership) -> NoReturn:
        """Tidy while this process leads."""
        while True:
            await anyio.sleep(ROUND_SECONDS)
            if leadership.is_leader:
                await self.tidy(leadership)

    async def tidy(self, leadership: Leadership) -> None:
        """Take off what has been left long enough; what fails waits for the next round."""
        now, taken = self._clock(), 0
        for ref, since in tuple(self._since.items()):
            if now - since < self._settings.orphan_seconds or self._is_binding(ref.uid):
                continue
            pod = self._pods.get(ref.namespace, ref.name)
            if pod is None or pod.metadata.uid != ref.uid or not self._is_leftover(pod):
                self._since.pop(ref, None)
                continue
            self._since[ref] = now  # again after another grace, if this does not succeed
            try:
                await self._writer.take_back(ref, pod, leadership.mandate())
            except (ConflictError, NotFoundError):
                continue
            except HamiError as error:
                log.info("record_not_tidied", pod=pod.key, error=str(error))
                return
            self._counters.orphans.labels("tidied").inc()
            log.info("record_tidied", pod=pod.key, uid=ref.uid)
            taken += 1
            if taken >= AT_A_TIME:
                return

    def _is_leftover(self, pod: Pod) -> bool:
        """Whether the pod has a record of ours and is not bound."""
        if pod.spec.node_name or pod.finished or pod.metadata.deletion_timestamp is not None:
            return False
        if codec.SCHEDULED_BY_KEY in pod.annotations:
            return True
        if self._settings.scheduler_name not in {"", pod.spec.scheduler_name}:
            return False
        return any(key in pod.annotations for key in record.cleared_annotations(self._vendors))

    def _is_foreign(self, pod: Pod, mandate: Mandate) -> bool:
        """Whether the pod has a record of another reign and is not bound."""
        mark = pod.annotations.get(codec.SCHEDULED_BY_KEY)
        return mark != mandate.mark and self._is_leftover(pod)


def _decode(raw: msgspec.Raw) -> Pod | None:
    try:
        return _POD.decode(raw)
    except msgspec.MsgspecError as error:
        # Whoever could not read it has not put a record on it; the watch reports it as well.
        log.warning("malformed_object_met", resource="pods", error=str(error))
        return None


def _number(version: str) -> int:
    return int(version) if version.isdecimal() else -1
