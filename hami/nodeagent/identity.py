"""Checks that the container about to start is the one its devices were prepared for.

Allocate has to guess the pod; before a container starts, the kubelet can be asked who holds its
device ids. A wrong guess between twins that share the same devices is put right: the region becomes
the true container's. Any other wrong guess fails the container rather than let it run with another
pod's devices. Where the kubelet does not tell, a setting decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hami.core.objects import Pod
from hami.core.vendor import Vendor
from hami.errors import AllocateError, CodecError, KubeError, UnavailableError
from hami.kube.events import EventRecorder
from hami.kube.informer import Informer
from hami.kube.resources import PODS, ObjectRef
from hami.logs import get_logger
from hami.nodeagent import pending
from hami.nodeagent.allocator import Allocator, claim_for
from hami.nodeagent.claims import Claim
from hami.nodeagent.counters import AgentMetrics
from hami.nodeagent.finder import PodFinder
from hami.nodeagent.pending import Entry
from hami.nodeagent.podresources import Holder, Holdings, PodResources
from hami.nodeagent.regions import Regions

log = get_logger(__name__)

Found = Sequence[tuple[Path, Claim]]


class IdentityCheck:
    """Compares claims with what the kubelet says."""

    def __init__(
        self,
        *,
        vendor: Vendor,
        pods: Informer[Pod],
        regions: Regions,
        finder: PodFinder,
        allocator: Allocator,
        resources: PodResources,
        events: EventRecorder,
        metrics: AgentMetrics,
        required: bool,
    ) -> None:
        self._vendor = vendor
        self._pods = pods
        self._regions = regions
        self._finder = finder
        self._allocator = allocator
        self._resources = resources
        self._events = events
        self._metrics = metrics
        self._required = required

    async def check(self, ids: Sequence[str]) -> None:
        """Make sure that the container which holds these device ids may start.

        Raises:
            AllocateError: It would run with what belongs to another, or that cannot be ruled out
                and the settings demand it.
        """
        found = self._regions.holding(ids)
        if not found:
            self._unconfirmed(ids, "no container of this node was prepared for these devices")
            return
        try:
            holdings = await self._resources.holdings()
        except UnavailableError as error:
            self._unconfirmed(ids, str(error))
            return
        holder = _holder(holdings, ids, found)
        if holder is None:
            if not all(claim.init for _, claim in found):
                self._unconfirmed(ids, "the kubelet names no container with these devices")
            return
        if (holder.namespace, holder.pod) == found[0][1].owner:
            self._count("confirmed")
            return
        await self._correct(found, holder, holdings, ids)

    async def _correct(
        self, found: Found, holder: Holder, holdings: Holdings, ids: Sequence[str]
    ) -> None:
        """Give the region to its true owner.

        Raises:
            AllocateError: They do not share the same devices.
        """
        path, claim = found[0]
        log.warning(
            "identity_mismatched",
            assumed=f"{claim.namespace}/{claim.pod}",
            pod=f"{holder.namespace}/{holder.pod}",
            container=holder.container,
        )
        async with self._allocator.turn:
            twin = self._twin(holder, claim) if len(found) == 1 else None
            if twin is None:
                await self._return_to_line(claim, holdings)
                raise await self._refusal(holder, claim)
            pod, entry = twin
            true_claim = claim_for(pod, entry, ids, library=claim.library)
            await self._regions.hand_over(path, true_claim, self._allocator.limits(pod, entry))
            if any(waiting == entry for waiting in self._line(pod)):
                await self._consume(pod, entry)
                await self._return_to_line(claim, holdings)
        self._count("repaired")
        self._events.record(
            ObjectRef.to(PODS, pod),
            "DevicesExchanged",
            f"container {entry.container} was given what had been prepared for "
            f"{claim.namespace}/{claim.pod}; its own limits are in force",
        )

    def _twin(self, holder: Holder, claim: Claim) -> tuple[Pod, Entry] | None:
        """The holder's own entry, if it is for the very devices of the claim."""
        pod = self._pods.get(holder.namespace, holder.pod)
        if pod is None:
            return None
        for entry in self._recorded(pod):
            if entry.container == holder.container and _same_devices(entry, claim):
                return pod, entry
        return None

    async def _refusal(self, holder: Holder, claim: Claim) -> AllocateError:
        """The error that keeps the container from starting, once its pod knows of it."""
        message = (
            f"container {holder.container} holds devices that were prepared for "
            f"{claim.namespace}/{claim.pod}, container {claim.container}"
        )
        self._count("refused")
        pod = self._pods.get(holder.namespace, holder.pod)
        if pod is not None:
            await self._allocator.fail(pod, "DevicesMismatched", message)
        return AllocateError(f"pod {holder.namespace}/{holder.pod}: {message}")

    async def _consume(self, pod: Pod, entry: Entry) -> None:
        try:
            await self._allocator.consume(pod, entry)
        except (KubeError, CodecError) as error:
            raise AllocateError(f"pod {pod.key}: consuming its allocation: {error}") from error

    async def _return_to_line(self, claim: Claim, holdings: Holdings) -> None:
        """Let the pod that was wrongly assumed be found again, if its own turn is yet to come."""
        pod = self._pods.get(claim.namespace, claim.pod)
        own = Holder(claim.namespace, claim.pod, claim.container)
        if pod is None or pod.metadata.uid != claim.uid or pod.finished or own in holdings.devices:
            return
        waiting = self._line(pod)
        for entry in self._recorded(pod):
            if entry.container != claim.container or entry in waiting:
                continue
            try:
                await self._allocator.give_back(pod, entry)
            except (KubeError, CodecError) as error:
                log.warning("allocation_not_given_back", pod=pod.key, error=str(error))

    def _recorded(self, pod: Pod) -> tuple[Entry, ...]:
        try:
            return pending.recorded(pod, self._vendor)
        except CodecError as error:
            log.warning("allocation_unreadable", pod=pod.key, error=str(error))
            return ()

    def _line(self, pod: Pod) -> tuple[Entry, ...]:
        try:
            return self._finder.line(pod)
        except CodecError as error:
            log.warning("allocation_unreadable", pod=pod.key, error=str(error))
            return ()

    def _unconfirmed(self, ids: Sequence[str], why: str) -> None:
        self._count("unconfirmed")
        log.warning("identity_unconfirmed", ids=list(ids), error=why)
        if self._required:
            raise AllocateError(f"the owner of {', '.join(ids)} is not certain: {why}")

    def _count(self, result: str) -> None:
        self._metrics.identity_checks.labels(result).inc()


def _holder(holdings: Holdings, ids: Sequence[str], found: Found) -> Holder | None:
    """Who holds the ids: the pod they were prepared for, if it is among the holders."""
    holders = holdings.holders(ids)
    owner = found[0][1].owner
    mine = [holder for holder in holders if (holder.namespace, holder.pod) == owner]
    return next(iter(mine or holders), None)


def _same_devices(entry: Entry, claim: Claim) -> bool:
    return sorted(device.uuid for device in entry.devices) == sorted(claim.devices)
