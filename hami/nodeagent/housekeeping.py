"""By the clock: removes what pods left behind, and compares our record with the kubelet's.

A region goes when its pod is over, or gone from the API server, and the kubelet does not hold it
any more. A container that the kubelet says has its devices, while its entry still waits in the
annotation, has its entry consumed (this process died in between). What does not agree is logged and
counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import anyio
import anyio.to_thread

from hami.config import NodeAgentSettings
from hami.core.objects import Pod
from hami.errors import CodecError, HamiError, KubeError, UnavailableError
from hami.kube.informer import Informer
from hami.logs import get_logger
from hami.nodeagent import install, pending
from hami.nodeagent.allocate import Shim
from hami.nodeagent.allocator import Allocator
from hami.nodeagent.claims import Claim
from hami.nodeagent.counters import AgentMetrics
from hami.nodeagent.finder import PodFinder
from hami.nodeagent.podresources import Holdings, PodResources
from hami.nodeagent.regions import Regions

log = get_logger(__name__)


class Housekeeper:
    """Looks after regions and annotations that nobody is working on."""

    def __init__(
        self,
        settings: NodeAgentSettings,
        *,
        pods: Informer[Pod],
        regions: Regions,
        finder: PodFinder,
        allocator: Allocator,
        resources: PodResources,
        shim: Shim,
        metrics: AgentMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._pods = pods
        self._regions = regions
        self._finder = finder
        self._allocator = allocator
        self._resources = resources
        self._shim = shim
        self._metrics = metrics
        self._clock = clock
        self._gone_since: dict[Path, float] = {}

    async def run(self) -> NoReturn:
        """Sweep for ever."""
        while True:
            await anyio.sleep(self._settings.reconcile_seconds)
            await self.sweep()

    async def sweep(self) -> None:
        """Look at everything once; one object's trouble never stops the others."""
        try:
            holdings = await self._resources.holdings()
        except UnavailableError as error:
            log.warning("kubelet_not_asked", error=str(error))
            holdings = None
        await self._regions.trim()
        if emptied := await self._regions.reclaim():
            log.info("slots_reclaimed", slots=emptied)
        for path, claim in list(self._regions.claims.items()):
            try:
                await self._tidy(path, claim, holdings)
            except HamiError as error:
                log.warning("region_not_tidied", path=str(path), error=str(error))
        in_use = {claim.library for claim in self._regions.claims.values()}
        await anyio.to_thread.run_sync(lambda: install.prune(self._shim, in_use=in_use))

    async def _tidy(self, path: Path, claim: Claim, holdings: Holdings | None) -> None:
        pod = self._pods.get(claim.namespace, claim.pod)
        if pod is None or pod.metadata.uid != claim.uid or pod.finished:
            await self._remove_if_over(path, claim, holdings)
            return
        self._gone_since.pop(path, None)
        if holdings is not None:
            await self._compare(path, pod, claim, holdings)

    async def _remove_if_over(self, path: Path, claim: Claim, holdings: Holdings | None) -> None:
        """Remove the region, unless the kubelet has yet to end its container."""
        since = self._gone_since.setdefault(path, self._clock())
        if holdings is None:
            over = self._clock() - since >= self._settings.region_grace_seconds
        else:
            held = holdings.devices.get(claim.holder, frozenset())
            over = held != frozenset(claim.ids) or self._is_superseded(claim)
        if not over:
            return
        await self._regions.remove(path)
        del self._gone_since[path]
        self._metrics.regions_removed.inc()
        log.info("region_removed", pod=claim.pod_key, uid=claim.uid, path=str(path))

    def _is_superseded(self, claim: Claim) -> bool:
        """Whether the kubelet must mean a later pod of the same name, with the same devices."""
        return any(
            (other.holder, other.ids) == (claim.holder, claim.ids)
            and other.uid != claim.uid
            and other.created_ns > claim.created_ns
            for other in self._regions.claims.values()
        )

    async def _compare(self, path: Path, pod: Pod, claim: Claim, holdings: Holdings) -> None:
        """Consume the entry of a container that has its devices; look into one with others."""
        held = holdings.devices.get(claim.holder)
        if held is None:
            return
        if held != frozenset(claim.ids):
            await self._outdated(path, claim, held)
            return
        async with self._allocator.turn:
            try:
                for entry in self._finder.line(pod):
                    allocating = pending.allocating(pod, self._settings.node_name)
                    if entry.container == claim.container and allocating:
                        await self._allocator.consume(pod, entry)
                        log.info("allocation_completed", pod=pod.key, container=claim.container)
            except (KubeError, CodecError) as error:
                log.warning("allocation_not_completed", pod=pod.key, error=str(error))

    async def _outdated(self, path: Path, claim: Claim, held: frozenset[str]) -> None:
        """Remove the region if its container has a newer one for what it holds; else report it."""
        newer = any(
            (other.uid, other.container, frozenset(other.ids)) == (claim.uid, claim.container, held)
            for other in self._regions.claims.values()
        )
        if newer:
            await self._regions.remove(path)
            log.info("outdated_region_removed", pod=claim.pod_key, path=str(path))
            return
        self._metrics.identity_checks.labels("mismatched").inc()
        log.warning(
            "holdings_mismatched",
            pod=claim.pod_key,
            container=claim.container,
            ids=sorted(held),
        )
