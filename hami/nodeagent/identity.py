"""Checks that the container about to start is the one its devices were prepared for.

Allocate has to guess the pod; before a container starts, the kubelet can be asked who holds its
device ids. A wrong guess between twins that share the same devices is put right: the region becomes
the true container's. Any other wrong guess fails the pod rather than let it run with what another
was given. Where the kubelet does not tell, a setting decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import anyio

from hami.config import NodeAgentSettings
from hami.core.objects import Pod
from hami.core.vendor import Vendor
from hami.errors import AllocateError, CodecError, KubeError, UnavailableError
from hami.kube.events import EventRecorder
from hami.kube.informer import Informer
from hami.kube.resources import PODS, ObjectRef
from hami.logs import get_logger
from hami.nodeagent import pending
from hami.nodeagent.allocator import Allocator
from hami.nodeagent.claims import Claim, Holder
from hami.nodeagent.counters import AgentMetrics
from hami.nodeagent.finder import PodFinder
from hami.nodeagent.pending import Entry
from hami.nodeagent.podresources import Holdings, PodResources
from hami.nodeagent.regions import Regions

log = get_logger(__name__)

Found = Sequence[tuple[Path, Claim]]
NOBODY: Final = Holdings(devices=MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What one comparison showed: all is well, unless there is a doubt or another holder."""

    doubt: str = ""
    """Why it cannot be told."""
    holder: Holder | None = None
    """Who has the devices instead of whom they were prepared for."""
    found: Found = ()
    holdings: Holdings = NOBODY


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
        settings: NodeAgentSettings,
    ) -> None:
        self._vendor = vendor
        self._pods = pods
        self._regions = regions
        self._finder = finder
        self._allocator = allocator
        self._resources = resources
        self._events = events
        self._metrics = metrics
        self._settings = settings

    async def check(self, ids: Sequence[str]) -> None:
        """Make sure that the container which holds these device ids may start.

        Raises:
            AllocateError: It would run with what belongs to another, or that cannot be ruled out
                and the settings demand it.
        """
        seconds = self._settings.allocate_timeout_seconds
        try:
            with anyio.fail_after(seconds):
                look = await self._look(ids)
                if look.holder is not None:
                    look = await self._look_again(ids)
        except TimeoutError as error:
            raise AllocateError(f"identity was not checked within {seconds:g} s") from error
        if look.doubt:
            self._unconfirmed(ids, look.doubt)

    async def _look_again(self, ids: Sequence[str]) -> _Look:
        """While nothing else changes whose is what; and put right what is wrong then.

        Raises:
            AllocateError: It cannot be put right.
        """
        async with self._allocator.turn:
            look = await self._look(ids)
            if look.holder is not None:
                await self._correct(look, look.holder, ids)
            return look

    async def _look(self, ids: Sequence[str]) -> _Look:
        """Compare what was prepared for these ids with who holds them."""
        found = self._regions.holding(ids)
        if not found:
            return _Look(doubt="no container of this node was prepared for these devices")
        try:
            holdings = await self._resources.holdings()
        except UnavailableError as error:
            return _Look(doubt=str(error))
        holders = holdings.holders(ids)
        if not holders:
            if all(claim.init for _, claim in found):
                return _Look()  # the kubelet never tells of those
            return _Look(doubt="the kubelet names no container with these devices")
        if not {claim.holder for _, claim in found}.isdisjoint(holders):
            self._count("confirmed")
            return _Look()
        return _Look(found=found, holder=holders[0], holdings=holdings)

    async def _correct(self, look: _Look, holder: Holder, ids: Sequence[str]) -> None:
        """Give the region to its true owner.

        Raises:
            AllocateError: They do not share the same devices.
        """
        path, claim = look.found[0]
        log.warning(
            "identity_mismatched",
            assumed=claim.pod_key,
            assumed_container=claim.container,
            pod=f"{holder.namespace}/{holder.pod}",
            container=holder.container,
        )
        twin = self._twin(holder, claim, ids) if len(look.found) == 1 else None
        if twin is None:
            await self._return_to_line(claim, look.holdings)
            raise await self._refusal(holder, claim)
        pod, entry, true_claim = twin
        await self._regions.hand_over(path, true_claim, self._allocator.limits(pod, entry))
        if any(waiting == entry for waiting in self._line(pod)):
            await self._consume(pod, entry)
            await self._return_to_line(claim, look.holdings)
        self._count("repaired")
        self._events.record(
            ObjectRef.to(PODS, pod),
            "DevicesExchanged",
            f"container {entry.container} was given what had been prepared for "
            f"{claim.pod_key}, container {claim.container}; its own limits are in "
            "force",
        )

    def _twin(
        self, holder: Holder, claim: Claim, ids: Sequence[str]
    ) -> tuple[Pod, Entry, Claim] | None:
        """The holder's own entry, if it is for the very devices of the claim; and its own claim.

        What is mounted was decided for the other: both must need the same.
        """
        pod = self._pods.get(holder.namespace, holder.pod)
        if pod is None:
            return None
        for entry in self._recorded(pod):
            if entry.container == holder.container and _same_devices(entry, claim):
                own = self._allocator.claim(pod, entry, ids, library=claim.library)
                return (pod, entry, own) if own.backend == claim.backend else None
        return None

    async def _refusal(self, holder: Holder, claim: Claim) -> AllocateError:
        """The error that keeps the container from starting, once its pod knows of it."""
        message = (
            f"container {holder.container} holds devices that were prepared for "
            f"{claim.pod_key}, container {claim.container}"
        )
        self._count("refused")
        pod = self._pods.get(holder.namespace, holder.pod)
        if pod is not None:
            await self._allocator.end(pod, "DevicesMismatched", message)
        return AllocateError(f"pod {holder.namespace}/{holder.pod}: {message}")

    async def _consume(self, pod: Pod, entry: Entry) -> None:
        try:
            await self._allocator.consume(pod, entry)
        except (KubeError, CodecError) as error:
            raise AllocateError(f"pod {pod.key}: consuming its allocation: {error}") from error

    async def _return_to_line(self, claim: Claim, holdings: Holdings) -> None:
        """Let the pod that was wrongly assumed be found again, if its own turn is yet to come."""
        pod = self._pods.get(claim.namespace, claim.pod)
        if pod is None or pod.metadata.uid != claim.uid or pod.finished:
            return
        if claim.holder in holdings.devices:
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
        if self._settings.require_identity:
            raise AllocateError(f"the owner of {', '.join(ids)} is not certain: {why}")

    def _count(self, result: str) -> None:
        self._metrics.identity_checks.labels(result).inc()


def _same_devices(entry: Entry, claim: Claim) -> bool:
    return sorted(device.uuid for device in entry.devices) == sorted(claim.devices)
