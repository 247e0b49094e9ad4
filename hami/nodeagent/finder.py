"""Finds the pod that the kubelet is asking devices for, in what the watch shows.

Owns what this process has consumed and the watch may not show yet. The rules of the choice are in
``pending`` and ``repeat``; here is the waiting, the asking, and what is said when nobody is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hami.config import NodeAgentSettings
from hami.core.objects import Pod
from hami.core.vendor import Vendor
from hami.errors import AllocateError, CodecError, UnavailableError
from hami.kube.informer import Informer
from hami.logs import get_logger
from hami.nodeagent import pending
from hami.nodeagent.counters import AgentMetrics
from hami.nodeagent.pending import Candidate, Entry
from hami.nodeagent.podresources import PodResources
from hami.nodeagent.regions import Regions
from hami.nodeagent.repeat import find_reissued, find_unanswered

log = get_logger(__name__)


class PodFinder:
    """Knows which containers of this node wait for devices of one vendor."""

    def __init__(
        self,
        settings: NodeAgentSettings,
        *,
        vendor: Vendor,
        pods: Informer[Pod],
        regions: Regions,
        resources: PodResources,
        metrics: AgentMetrics,
    ) -> None:
        self._settings = settings
        self._vendor = vendor
        self._pods = pods
        self._regions = regions
        self._resources = resources
        self._metrics = metrics
        self._consumed: dict[str, set[int]] = {}
        self._unreadable: dict[str, str] = {}
        """By pod uid, the version that was complained about."""

    async def find(self, count: int) -> tuple[Candidate, ...]:
        """Every container that the kubelet may mean by so many devices, first bound first.

        If none is in line now: one whose answer got lost, else the first that the watch shows.

        Raises:
            AllocateError: None appeared in time.
        """
        if found := self.among(self._pods.list(), count):
            return found
        if (lost := await self._find_unanswered(count)) is not None:
            return (lost,)
        seconds = self._settings.pending_pod_seconds
        try:
            return await self._pods.wait_for(
                lambda: self.among(self._pods.list(), count), timeout_seconds=seconds
            )
        except TimeoutError as error:
            node = self._settings.node_name
            here = [pod.key for pod in self._pods.list() if pending.allocating(pod, node)]
            raise AllocateError(
                f"no pod bound to node {node} waits for {count} devices "
                f"(looked for {seconds:g} s; being allocated: {', '.join(sorted(here)) or 'none'})"
            ) from error

    def among(self, pods: Iterable[Pod], count: int) -> tuple[Candidate, ...]:
        """Those of these pods that are in line for so many devices, first bound first."""
        return pending.candidates(
            pods,
            self._vendor,
            node=self._settings.node_name,
            count=count,
            consumed=self._consumed,
            on_malformed=self._report_malformed,
        )

    def reissued(
        self, found: Iterable[Candidate], is_free: Callable[[frozenset[str]], bool]
    ) -> Candidate | None:
        """A container of one of these pods that the kubelet asks for once more; see ``repeat``."""
        claims = self._regions.claims
        again = (
            find_reissued(candidate, claims, vendor=self._vendor, is_free=is_free)
            for candidate in found
        )
        return next((candidate for candidate in again if candidate is not None), None)

    def others(self, pod: Pod) -> tuple[Pod, ...]:
        """Every pod of this node but that one."""
        return tuple(p for p in self._pods.list() if p.metadata.uid != pod.metadata.uid)

    def line(self, pod: Pod) -> tuple[Entry, ...]:
        """The pod's entries that nobody has consumed, also where the watch has yet to show it.

        Raises:
            CodecError: The annotation cannot be read.
        """
        return pending.waiting(pod, self._vendor, consumed=self.consumed(pod))

    def consumed(self, pod: Pod) -> frozenset[int]:
        """Positions of the pod's annotation that this process has consumed."""
        return frozenset(self._consumed.get(pod.metadata.uid, ()))

    def remember(self, pod: Pod, entry: Entry) -> None:
        """The entry was consumed."""
        self._consumed.setdefault(pod.metadata.uid, set()).add(entry.position)

    def forget(self, pod: Pod, entry: Entry) -> None:
        """The entry is back in line."""
        self._consumed.get(pod.metadata.uid, set()).discard(entry.position)

    def forget_absent(self) -> None:
        """Drop what was remembered of pods that are gone."""
        here = {pod.metadata.uid for pod in self._pods.list()}
        for uid in self._consumed.keys() - here:
            del self._consumed[uid]
        for uid in self._unreadable.keys() - here:
            del self._unreadable[uid]

    async def _find_unanswered(self, count: int) -> Candidate | None:
        if not self._regions.claims:
            return None
        try:
            holdings = await self._resources.holdings()
        except UnavailableError as error:
            log.info("kubelet_not_asked", error=str(error))
            return None
        return find_unanswered(
            self._pods.list(),
            self._regions.claims,
            vendor=self._vendor,
            node=self._settings.node_name,
            count=count,
            holdings=holdings,
        )

    def _report_malformed(self, pod: Pod, error: CodecError) -> None:
        meta = pod.metadata
        if self._unreadable.get(meta.uid) == meta.resource_version:
            return
        self._unreadable[meta.uid] = meta.resource_version
        self._metrics.malformed_pods.inc()
        log.warning("allocation_unreadable", pod=pod.key, error=str(error))
