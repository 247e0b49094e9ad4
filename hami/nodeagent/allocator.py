"""Answers the kubelet: which devices it should prefer, and what a container gets with them.

The steps of an Allocate are: find the pod, prepare the region, consume the annotation, answer. Each
can be the last one before this process dies, and each can be repeated: a region that was prepared
for nothing is cleaned up later, an entry is consumed once at most, and whatever the kubelet gets no
answer for, it fails with a reason. Calls are answered one at a time, as the kubelet makes them.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import anyio

from hami.config import Settings
from hami.core.device import Device, DeviceUuid
from hami.core.objects import Container, Pod
from hami.core.vendor import Vendor
from hami.crashpoints import crash_point
from hami.errors import AllocateError, CodecError, ConflictError, HamiError, KubeError
from hami.kube.events import EventRecorder
from hami.kube.informer import Informer
from hami.kube.resources import PODS, ObjectRef
from hami.logs import get_logger
from hami.nodeagent import allocate, pending
from hami.nodeagent.allocate import Grant, Limits, Shim
from hami.nodeagent.claims import Claim
from hami.nodeagent.consume import PodWriter
from hami.nodeagent.counters import AgentMetrics
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
        pods: Informer[Pod],
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
        self._pods = pods
        self._writer = writer
        self._regions = regions
        self._inventory = inventory
        self._shim = shim
        self._events = events
        self._metrics = metrics
        self._consumed: dict[str, set[int]] = {}
        self.turn = anyio.Lock()
        """Held while a pod's entry goes from waiting to consumed."""

    async def preferred(
        self, available: Collection[str], must_include: Collection[str], *, size: int
    ) -> tuple[str, ...]:
        """The ids that stand for the devices of the pod in line; empty if that cannot be told."""
        try:
            found = await self._wait_for_candidates(size)
        except AllocateError as error:
            log.info("preference_not_known", devices=size, error=str(error))
            return ()
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

    def line(self, pod: Pod) -> tuple[Entry, ...]:
        """The pod's entries that nobody has consumed, also where the watch has yet to show it.

        Raises:
            CodecError: The annotation cannot be read.
        """
        consumed = self._consumed.get(pod.metadata.uid, set())
        return pending.waiting(pod, self._vendor, consumed=consumed)

    async def consume(self, pod: Pod, entry: Entry) -> None:
        """Take one entry out of the pod's line; the caller has the turn.

        Raises:
            ConflictError: The pod changed.
        """
        before = self._consumed.setdefault(pod.metadata.uid, set())
        await self._writer.consume(pod, entry, before=frozenset(before))
        before.add(entry.position)

    async def give_back(self, pod: Pod, entry: Entry) -> None:
        """Put an entry back in line that was consumed for another pod; the caller has the turn.

        Raises:
            KubeError: That could not be written.
        """
        fresh = await self._writer.read(pod)
        if fresh is not None:
            await self._writer.give_back(fresh, entry)
        self._consumed.get(pod.metadata.uid, set()).discard(entry.position)

    async def _allocate(self, ids: Sequence[str]) -> Grant:
        self._forget_finished()
        uuids = self._known_devices(ids)
        candidate = pending.choose(await self._wait_for_candidates(len(ids)), uuids)
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
                await self._fail(candidate, error)
                raise AllocateError(f"pod {candidate.pod.key}: {error}") from error
        raise AllocateError(f"{len(ids)} devices: their pod kept changing, or is gone")

    async def _take(self, candidate: Candidate, ids: Sequence[str]) -> Grant:
        pod, entry = candidate.pod, candidate.entry
        self._check_devices(entry, ids)
        region = await self._prepare(candidate, ids)
        crash_point("allocate.prepared")
        await self.consume(pod, entry)
        crash_point("allocate.consumed")
        log.info(
            "container_allocated",
            pod=pod.key,
            uid=pod.metadata.uid,
            container=entry.container,
            devices=[device.uuid for device in entry.devices],
        )
        return allocate.grant(
            entry.devices,
            container=container_of(pod, entry),
            region=region,
            shim=self._shim,
            settings=self._agent,
        )

    async def _prepare(self, candidate: Candidate, ids: Sequence[str]) -> Path:
        pod, entry = candidate.pod, candidate.entry
        claim = claim_for(pod, entry, ids, library=str(self._shim.library))
        return await self._regions.prepare(claim, self.limits(pod, entry))

    def limits(self, pod: Pod, entry: Entry) -> Limits:
        """What the entry's container may use."""
        return allocate.limits(
            entry.devices,
            container=container_of(pod, entry),
            vendor=self._vendor,
            settings=self._settings,
        )

    def _known_devices(self, ids: Sequence[str]) -> list[DeviceUuid]:
        """The devices behind the ids.

        Raises:
            AllocateError: An id is none that this agent offers.
        """
        offered = {device.uuid for device in self._inventory.devices}
        try:
            uuids = [pending.physical(device_id) for device_id in ids]
        except CodecError as error:
            raise AllocateError(str(error)) from error
        for device_id, uuid in zip(ids, uuids, strict=True):
            if uuid not in offered:
                raise AllocateError(f"expected a device of this node, met {device_id[:80]!r}")
        if not ids or len(set(ids)) != len(ids):
            raise AllocateError(f"expected each device id once, met {list(ids)[:20]}")
        return uuids

    def _check_devices(self, entry: Entry, ids: Sequence[str]) -> None:
        """Refuse what cannot be kept; a mere difference from the kubelet's choice is no reason.

        Raises:
            AllocateError: A device of the allocation is not here, or not healthy.
        """
        here: dict[DeviceUuid, Device] = {d.uuid: d for d in self._inventory.devices}
        for device in entry.devices:
            if device.uuid not in here:
                raise AllocateError(f"device {device.uuid} is not on this node")
            if not here[device.uuid].healthy:
                raise AllocateError(f"device {device.uuid} is unhealthy")
        if sorted(pending.physical(i) for i in ids) != sorted(d.uuid for d in entry.devices):
            log.warning("kubelet_chose_other_ids", container=entry.container, ids=list(ids))

    async def _wait_for_candidates(self, count: int) -> tuple[Candidate, ...]:
        """The pods that the kubelet may mean, as soon as the watch shows one.

        Raises:
            AllocateError: None appeared in time.
        """
        seconds = self._agent.pending_pod_seconds
        try:
            return await self._pods.wait_for(
                lambda: self._candidates(count), timeout_seconds=seconds
            )
        except TimeoutError as error:
            node = self._agent.node_name
            here = [pod.key for pod in self._pods.list() if pending.allocating(pod, node)]
            raise AllocateError(
                f"no pod bound to node {node} waits for {count} devices "
                f"(looked for {seconds:g} s; being allocated: {', '.join(sorted(here)) or 'none'})"
            ) from error

    def _candidates(self, count: int) -> tuple[Candidate, ...]:
        return pending.candidates(
            self._pods.list(),
            self._vendor,
            node=self._agent.node_name,
            count=count,
            consumed=self._consumed,
            on_malformed=self._report_malformed,
        )

    def _report_malformed(self, pod: Pod, error: CodecError) -> None:
        self._metrics.malformed_pods.inc()
        log.warning("allocation_unreadable", pod=pod.key, error=str(error))

    async def _decide_again(
        self, candidate: Candidate, ids: Sequence[str], conflict: ConflictError
    ) -> Candidate | None:
        """The same pod as it is now, if it is still in line; else another one that is."""
        try:
            fresh = await self._writer.read(candidate.pod)
        except KubeError as error:
            raise AllocateError(f"pod {candidate.pod.key}: {error}") from conflict
        others = [p for p in self._pods.list() if p.metadata.uid != candidate.pod.metadata.uid]
        found = pending.candidates(
            [fresh, *others] if fresh is not None else others,
            self._vendor,
            node=self._agent.node_name,
            count=len(ids),
            consumed=self._consumed,
            on_malformed=self._report_malformed,
        )
        return pending.choose(found, [pending.physical(i) for i in ids])

    async def _fail(self, candidate: Candidate, error: HamiError) -> None:
        """Tell the pod what happened; the kubelet tells it as well, from the answer it gets."""
        pod = candidate.pod
        log.error("allocation_failed", pod=pod.key, uid=pod.metadata.uid, error=str(error))
        self._events.record(
            ObjectRef.to(PODS, pod),
            "AllocateFailed",
            f"container {candidate.entry.container}: {error}",
            type="Warning",
        )
        try:
            await self._writer.fail(pod)
        except KubeError as met:
            log.warning("failure_not_recorded", pod=pod.key, error=str(met))

    def _forget_finished(self) -> None:
        """Drop what was remembered of pods that are gone."""
        here = {pod.metadata.uid for pod in self._pods.list()}
        for uid in [uid for uid in self._consumed if uid not in here]:
            del self._consumed[uid]


def container_of(pod: Pod, entry: Entry) -> Container:
    """The container that the entry is for."""
    return list(pod.containers())[entry.index][0]


def claim_for(pod: Pod, entry: Entry, ids: Sequence[str], *, library: str) -> Claim:
    """Whose region it is, for the record beside it."""
    return Claim(
        ids=tuple(sorted(ids)),
        uid=pod.metadata.uid,
        namespace=pod.metadata.namespace,
        pod=pod.metadata.name,
        container=entry.container,
        index=entry.index,
        init=entry.init,
        devices=tuple(device.uuid for device in entry.devices),
        library=library,
        created_ns=time.time_ns(),
    )
