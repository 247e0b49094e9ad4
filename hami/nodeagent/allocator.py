"""Answers the kubelet: which devices it should prefer, and what a container gets with them.

The steps of an Allocate are: find the pod, prepare the region, consume the annotation, answer. Each
can be the last one before this process dies, and each can be repeated: a region that was prepared
for nothing is cleaned up later, an entry is consumed once at most, and whatever the kubelet gets no
answer for, it fails with a reason. Calls are answered one at a time, as the kubelet makes them.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Final

import anyio

from hami.config import Settings
from hami.core import codec_steering
from hami.core.codec_enforcement import ENFORCEMENT_KEY
from hami.core.device import Device, DeviceUuid
from hami.core.objects import Container, Pod
from hami.core.quantity import BYTES_PER_MIB
from hami.core.vendor import Vendor
from hami.crashpoints import crash_point
from hami.errors import AllocateError, CodecError, ConflictError, KubeError
from hami.kube.events import EventRecorder
from hami.kube.resources import PODS, ObjectRef
from hami.logs import get_logger
from hami.nodeagent import allocate, enforcement, pending
from hami.nodeagent.allocate import Grant, Limits, Shim
from hami.nodeagent.claims import Claim
from hami.nodeagent.consume import PodWriter
from hami.nodeagent.counters import AgentMetrics
from hami.nodeagent.enforcement import BACKENDS
from hami.nodeagent.finder import PodFinder
from hami.nodeagent.inventory import Inventory
from hami.nodeagent.pending import Candidate, Entry
from hami.nodeagent.regions import Regions

log = get_logger(__name__)

STEPS: Final = ("allocate.found", "allocate.prepared", "allocate.consumed")
"""After each of them the process may die; named for ``crashpoints``."""
ATTEMPTS: Final = 5
"""Decisions one call makes when others keep changing the pod."""


class Allocator:
    """Decides and prepares what containers of this node get."""

    def __init__(
        self,
        settings: Settings,
        *,
        vendor: Vendor,
        finder: PodFinder,
        writer: PodWriter,
        regions: Regions,
        inventory: Inventory,
        shim: Shim,
        events: EventRecorder,
        metrics: AgentMetrics,
    ) -> None:
        self._settings = settings
        self._agent = settings.node_agent
        self._vendor = vendor
        self._finder = finder
        self._writer = writer
        self._regions = regions
        self._inventory = inventory
        self._shim = shim
        self._events = events
        self._metrics = metrics
        self.turn = anyio.Lock()
        """Held while a pod's entry goes from waiting to consumed."""

    async def preferred(
        self, available: Collection[str], must_include: Collection[str], *, size: int
    ) -> tuple[str, ...]:
        """The ids that stand for the devices of the pod in line; empty if that cannot be told."""
        try:
            found = await self._finder.find(size)
        except AllocateError as error:
            log.info("preference_not_known", devices=size, error=str(error))
            return ()
        again = self._finder.reissued(found, lambda held: held.issubset(available))
        if again is not None and again.region is not None:
            ids = self._regions.claims[again.region].ids
            if set(must_include) <= set(ids):
                return ids
        for candidate in found:
            chosen = pending.align(
                candidate.entry.devices, available=available, must_include=must_include
            )
            if chosen is not None:
                return chosen
        log.warning("preference_not_available", pod=found[0].pod.key, devices=size)
        return ()

    async def allocate(self, ids: Sequence[str]) -> Grant:
        """What the container gets that the kubelet gives these device ids to.

        Raises:
            AllocateError: There is no such container, or it cannot be prepared.
        """
        started = time.monotonic()
        result = "failed"
        try:
            with anyio.fail_after(self._agent.allocate_timeout_seconds):
                async with self.turn:
                    answer = await self._allocate(ids)
            result = "granted"
        except TimeoutError as error:
            seconds = self._agent.allocate_timeout_seconds
            raise AllocateError(f"allocation was not done within {seconds:g} s") from error
        finally:
            self._metrics.allocations.labels(result).inc()
            self._metrics.allocate_seconds.observe(time.monotonic() - started)
        return answer

    async def consume(self, pod: Pod, entry: Entry) -> None:
        """Take one entry out of the pod's line; the caller has the turn.

        Raises:
            ConflictError: The pod changed.
        """
        backends = {
            claim.container: claim.backend
            for claim in self._regions.claims.values()
            if claim.uid == pod.metadata.uid
        }
        before = self._finder.consumed(pod)
        await self._writer.consume(pod, entry, before=before, backends=backends)
        self._finder.remember(pod, entry)

    async def give_back(self, pod: Pod, entry: Entry) -> None:
        """Put an entry back in line that was consumed for another pod; the caller has the turn.

        Raises:
            KubeError: That could not be written.
        """
        fresh = await self._writer.read(pod)
        if fresh is not None:
            await self._writer.give_back(fresh, entry)
        self._finder.forget(pod, entry)

    async def fail(self, pod: Pod, reason: str, message: str) -> None:
        """Tell the pod what happened; the kubelet tells it as well, from the answer it gets."""
        log.error("allocation_failed", pod=pod.key, uid=pod.metadata.uid, error=message)
        self._events.record(ObjectRef.to(PODS, pod), reason, message, type="Warning")
        try:
            await self._writer.fail(pod)
        except KubeError as error:
            log.warning("failure_not_recorded", pod=pod.key, error=str(error))

    async def end(self, pod: Pod, reason: str, message: str) -> None:
        """Fail a pod that could otherwise wait for ever; one that has run is left as it is."""
        await self.fail(pod, reason, message)
        if pod.status.phase not in ("", "Pending"):
            return
        try:
            await self._writer.end(pod, reason=reason, message=message)
        except KubeError as error:
            log.warning("pod_not_ended", pod=pod.key, error=str(error))

    def limits(self, pod: Pod, entry: Entry) -> Limits:
        """What the entry's container may use."""
        return allocate.limits(
            entry.devices,
            container=container_of(pod, entry),
            vendor=self._vendor,
            settings=self._settings,
            weight=_weight(pod),
            physical=self._physical_bytes(),
        )

    def _physical_bytes(self) -> dict[DeviceUuid, int]:
        """What the devices have: they are offered with the factor of oversubscription."""
        scaling = self._agent.memory_scaling
        return {
            device.uuid: round(device.memory / scaling) * BYTES_PER_MIB
            for device in self._inventory.devices
        }

    def claim(self, pod: Pod, entry: Entry, ids: Sequence[str], *, library: str) -> Claim:
        """Whose region it is, and what enforces its limits, for the record beside it."""
        offered = {device.uuid: device for device in self._inventory.devices}
        return Claim(
            ids=tuple(sorted(ids)),
            uid=pod.metadata.uid,
            namespace=pod.metadata.namespace,
            pod=pod.metadata.name,
            container=entry.container,
            index=entry.index,
            init=entry.init,
            devices=tuple(device.uuid for device in entry.devices),
            backend=enforcement.choose(
                entry.devices,
                container_of(pod, entry),
                self._agent,
                offered=offered,
                wanted=pod.annotations.get(ENFORCEMENT_KEY, "").strip(),
            ),
            whole=enforcement.is_whole(entry.devices, self._agent, offered=offered),
            library=library,
            created_ns=time.time_ns(),
        )

    async def _allocate(self, ids: Sequence[str]) -> Grant:
        self._finder.forget_absent()
        uuids = self._offered(ids)
        found = await self._finder.find(len(ids))
        candidate: Candidate | None = self._finder.reissued(
            found, lambda held: not held.isdisjoint(ids)
        ) or pending.choose(found, uuids)
        for attempt in range(1, ATTEMPTS + 1):
            if candidate is None:
                break
            crash_point("allocate.found")
            try:
                return await self._take(candidate, ids)
            except ConflictError as error:
                log.info("allocation_conflicted", pod=candidate.pod.key, attempt=attempt)
                candidate = await self._decide_again(candidate, ids, error)
            except (AllocateError, KubeError, CodecError) as error:
                message = f"container {candidate.entry.container}: {error}"
                await self.fail(candidate.pod, "AllocateFailed", message)
                raise AllocateError(f"pod {candidate.pod.key}: {error}") from error
        raise AllocateError(f"{len(ids)} devices: their pod kept changing, or is gone")

    async def _take(self, candidate: Candidate, ids: Sequence[str]) -> Grant:
        pod, entry = candidate.pod, candidate.entry
        self._check_devices(entry, ids)
        claim = self.claim(pod, entry, ids, library=str(self._shim.library))
        backend = BACKENDS[claim.backend]
        if backend.keeps_region:
            allocate.check_mounts(container_of(pod, entry))
        region = candidate.region
        if region is None:
            region = await self._regions.prepare(claim, self.limits(pod, entry))
        else:
            await self._regions.hand_over(region, claim, self.limits(pod, entry))
        crash_point("allocate.prepared")
        if candidate.region is None:
            await self.consume(pod, entry)
        crash_point("allocate.consumed")
        log.info(
            "container_allocated",
            pod=pod.key,
            uid=pod.metadata.uid,
            container=entry.container,
            devices=[device.uuid for device in entry.devices],
            backend=backend.name,
            repeated=candidate.region is not None,
        )
        return backend.grant(entry.devices, directory=region, shim=self._shim, settings=self._agent)

    def _offered(self, ids: Sequence[str]) -> list[DeviceUuid]:
        """The devices behind the ids.

        Raises:
            AllocateError: An id is none that this agent offers, or stands there twice.
        """
        here = {device.uuid: device for device in self._inventory.devices}
        uuids = []
        for device_id in ids:
            try:
                uuid = pending.physical(device_id)
            except CodecError as error:
                raise AllocateError(str(error)) from error
            if uuid not in here:
                raise AllocateError(f"expected a device of this node, met {device_id[:80]!r}")
            uuids.append(uuid)
        if not ids or len(set(ids)) != len(ids):
            raise AllocateError(f"expected each device id once, met {list(ids)[:20]}")
        return uuids

    def _check_devices(self, entry: Entry, ids: Sequence[str]) -> None:
        """Refuse what cannot be kept; a mere difference from the kubelet's choice is no reason.

        Raises:
            AllocateError: A device of the allocation is not here, or not healthy.
        """
        here: dict[DeviceUuid, Device] = {d.uuid: d for d in self._inventory.devices}
        if len({device.uuid for device in entry.devices}) != len(entry.devices):
            raise AllocateError("a device stands twice in the allocation")
        for device in entry.devices:
            if device.uuid not in here:
                raise AllocateError(f"device {device.uuid} is not on this node")
            if not here[device.uuid].healthy:
                raise AllocateError(f"device {device.uuid} is unhealthy")
        if sorted(pending.physical(i) for i in ids) != sorted(d.uuid for d in entry.devices):
            log.warning("kubelet_chose_other_ids", container=entry.container, ids=list(ids))

    async def _decide_again(
        self, candidate: Candidate, ids: Sequence[str], conflict: ConflictError
    ) -> Candidate | None:
        """The same pod as it is now, if it is still in line; else another one that is."""
        try:
            fresh = await self._writer.read(candidate.pod)
        except KubeError as error:
            raise AllocateError(f"pod {candidate.pod.key}: {error}") from conflict
        pods = [*self._finder.others(candidate.pod), *([fresh] if fresh is not None else [])]
        found = self._finder.among(pods, len(ids))
        return pending.choose(found, [pending.physical(i) for i in ids])


def container_of(pod: Pod, entry: Entry) -> Container:
    """The container that the entry is for."""
    return list(pod.containers())[entry.index][0]


def _weight(pod: Pod) -> int:
    """What its annotation says; a malformed one, which others report, is none."""
    try:
        return codec_steering.decode_core_weight(pod.annotations)
    except CodecError:
        return 0
