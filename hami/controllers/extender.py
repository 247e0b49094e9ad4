"""The scheduler's questions: which nodes can take this pod, and how good is each.

Answers come from memory alone and nothing here awaits. Filter softly holds its first choice, so
that the next pod's filter is honest before this pod is bound. ``cooperative``: every feasible node
is returned and the cluster's own scoring has its say; ``exclusive``: the one best node. Why a node
does not fit is in the answer, and in the book of pending pods.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from hami.config import ControllerSettings
from hami.controllers.gangs import Gangs
from hami.controllers.nominations import Nominations
from hami.controllers.pending import PendingPods
from hami.controllers.twins import Twins, keys_of_request
from hami.core.allocation import Allocation
from hami.core.cache import AllocationCache, State
from hami.core.device import PodRequest
from hami.core.objects import Pod
from hami.core.placement import Placer, Ranking
from hami.core.quota import NO_USE
from hami.core.request import Defaults, read_request, roles_of
from hami.core.vendor import VendorTable
from hami.core.verdict import NodeReason, Verdict
from hami.crashpoints import crash_point
from hami.errors import StaleSnapshotError, UnfitError

CRASH_POINTS: Final = ("filter.before-hold", "filter.after-hold")
BUSY_SHARE: Final = 0.25
"""Of a bind's deadline, that may be spent on waiting for other pods while other nodes are free."""
RANKINGS_KEPT: Final = 32
"""Filters whose prioritize may still come; the scheduler asks both for one pod before the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feasible:
    """What filter answers."""

    nodes: Iterable[str]
    failed: Mapping[str, str] | None
    """The reason of each node that does not fit; None where nothing was asked of any."""


class Extender:
    """Answers filter and prioritize from the allocation cache."""

    def __init__(
        self,
        cache: AllocationCache,
        placer: Placer,
        *,
        vendors: VendorTable,
        defaults: Defaults,
        settings: ControllerSettings,
        pending: PendingPods,
        gangs: Gangs,
        twins: Twins,
        nominations: Nominations,
        is_binding: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is asked yet.

        Args:
            cache: What is held, and where filter holds its choices.
            placer: Over the same cache's table.
            vendors: This site's table.
            defaults: For pods that say nothing.
            settings: Mode and times.
            pending: Is told what was decided.
            gangs: Knows a pod's siblings.
            twins: Knows where pods wait for each other.
            nominations: Knows for whom a node is kept while others end there.
            is_binding: Whether a bind of the pod (by uid) is under way.
            clock: For holds.
        """
        self._cache = cache
        self._placer = placer
        self._vendors = vendors
        self._defaults = defaults
        self._settings = settings
        self._pending = pending
        self._gangs = gangs
        self._twins = twins
        self._nominations = nominations
        self._is_binding = is_binding
        self._clock = clock
        self._rankings: OrderedDict[str, Ranking] = OrderedDict()

    def filter(self, pod: Pod, nodes: tuple[str, ...]) -> Feasible:
        """Which of the nodes can take the pod; the best of them is held for it.

        Raises:
            CodecError: The request cannot be read.
            StaleSnapshotError: The pod is bound, or perhaps bound, by an earlier decision.
        """
        request = read_request(pod, self._vendors, self._defaults)
        if request.empty:
            return Feasible(nodes=nodes, failed=None)
        if not pod.metadata.uid:  # somebody asks what would be: nothing is held, nobody told
            ranking = rank(self._cache, self._placer, pod, request, nodes)
            return self._feasible(ranking)
        uid = pod.metadata.uid
        expires_at = self._take_back(pod)
        ranking = rank(self._cache, self._placer, pod, request, nodes)
        ranking = ranking.without(self._busy(request), NodeReason.BUSY.value)
        ranking = self._nominations.preferred(uid, ranking)
        if ranking.best is None:
            if not self._nominations.hold_again(uid):  # else what was decided about it stands
                self._pending.refused(pod, request, nodes, ranking.failed)
        else:
            crash_point("filter.before-hold")
            self._hold(pod, request, ranking.best, expires_at=expires_at)
            lacking = self._gangs.hold_for_siblings(pod, request, nodes, expires_at=expires_at)
            if lacking is not None:
                self._cache.release(uid)
                return self._refuse_gang(pod, request, nodes, ranking, lacking)
            self._nominations.fulfil(uid)
            self._pending.fitted(pod, request, nodes, ranking.best)
            self._remember(uid, replace(ranking, failed={}))
            crash_point("filter.after-hold")
        return self._feasible(ranking)

    def _busy(self, request: PodRequest) -> frozenset[str]:
        """Nodes on which the bind would use up much of its time waiting for other pods."""
        seconds = self._settings.bind_timeout_seconds * BUSY_SHARE
        return self._twins.busy(keys_of_request(request, self._vendors), seconds=seconds)

    def _refuse_gang(
        self,
        pod: Pod,
        request: PodRequest,
        nodes: tuple[str, ...],
        ranking: Ranking,
        lacking: str,
    ) -> Feasible:
        """The pod alone would fit, its gang does not: so it fits nowhere."""
        failed = {**ranking.failed, **dict.fromkeys(ranking.feasible, lacking)}
        self._pending.refused(pod, request, nodes, failed)
        return Feasible(nodes=(), failed=failed)

    def _feasible(self, ranking: Ranking) -> Feasible:
        best = ranking.best
        if best is None:
            return Feasible(nodes=(), failed=ranking.failed)
        chosen = (best,) if self._settings.mode == "exclusive" else ranking.feasible
        return Feasible(nodes=chosen, failed=ranking.failed)

    def prioritize(self, pod: Pod, nodes: tuple[str, ...]) -> dict[str, int]:
        """The nodes' scores, 0 to 10; the node that filter holds for the pod has the 10.

        Raises:
            CodecError: The request cannot be read.
        """
        ranking = self._rankings.get(pod.metadata.uid)
        if ranking is None:
            request = read_request(pod, self._vendors, self._defaults)
            if request.empty:
                return dict.fromkeys(nodes, 0)
            ranking = self._placer.rank(request, nodes)
        scores = ranking.priorities()
        if len(scores) == len(nodes) and ranking.feasible == nodes:
            return scores
        return {node: scores.get(node, 0) for node in nodes}

    def _take_back(self, pod: Pod) -> float:
        """Give back what an earlier filter holds for the pod; until when the next one may hold.

        A hold made again ends when the first would have: a pod that is asked about for ever and
        never bound must not keep its devices from everybody else.
        """
        uid = pod.metadata.uid
        if self._is_binding(uid):
            raise StaleSnapshotError(f"pod {pod.key}: a bind of it is under way")
        fresh = self._clock() + self._settings.hold_seconds
        current = self._cache.get(uid)
        if current is None:
            return fresh
        if current.state is not State.HELD:
            how = "already" if current.state is State.CONFIRMED else "perhaps already"
            raise StaleSnapshotError(
                f"pod {pod.key}: {how} bound to node {current.allocation.node}"
            )
        self._cache.release(uid)
        if current.expires_at is None or self._gangs.was_held_for(uid):
            return fresh
        if self._nominations.get(uid) is not None:
            return fresh
        return min(fresh, current.expires_at)

    def _hold(self, pod: Pod, request: PodRequest, node: str, *, expires_at: float) -> None:
        room = self._cache.quotas.room(pod.metadata.namespace)
        choice = self._placer.choose(request, node, room=room)
        if isinstance(choice, Verdict):
            raise UnfitError(f"node {node}: {choice}")
        meta = pod.metadata
        allocation = Allocation(
            uid=meta.uid,
            namespace=meta.namespace,
            name=meta.name,
            node=node,
            containers=choice.containers,
            roles=roles_of(pod),
        )
        self._cache.hold(allocation, expires_at=expires_at, request=request)

    def _remember(self, uid: str, ranking: Ranking) -> None:
        self._rankings[uid] = ranking
        self._rankings.move_to_end(uid)
        if len(self._rankings) > RANKINGS_KEPT:
            self._rankings.popitem(last=False)


def rank(
    cache: AllocationCache, placer: Placer, pod: Pod, request: PodRequest, nodes: tuple[str, ...]
) -> Ranking:
    """The placer's answer, with what the namespace lacks where that is the reason.

    What the pod itself holds does not count against its namespace.
    """
    namespace, own = pod.metadata.namespace, cache.get(pod.metadata.uid)
    room = cache.quotas.room(namespace, without=NO_USE if own is None else own.use)
    ranking = placer.rank(request, nodes, room=room)
    if NodeReason.QUOTA.value not in ranking.failed.values():
        return ranking
    lack = cache.lack(namespace, request)
    if lack is None:  # of shares each node takes another amount
        return ranking
    told = f"{NodeReason.QUOTA.value}: {lack}"
    failed = {
        node: told if reason == NodeReason.QUOTA.value else reason
        for node, reason in ranking.failed.items()
    }
    return replace(ranking, failed=failed)
