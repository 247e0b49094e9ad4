"""The scheduler's questions: which nodes can take this pod, and how good is each.

Answers come from memory alone and nothing here awaits. Filter softly holds its first choice, so
that the next pod's filter is honest before this pod is bound. ``cooperative``: every feasible node
is returned and the cluster's own scoring has its say; ``exclusive``: the one best node. Why a node
does not fit is in the answer, and once for each pod in an Event.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from hami.config import ControllerSettings
from hami.core.allocation import Allocation
from hami.core.cache import AllocationCache, State
from hami.core.device import PodRequest
from hami.core.objects import Pod
from hami.core.placement import Placer, Ranking
from hami.core.request import Defaults, read_request, roles_of
from hami.core.vendor import VendorTable
from hami.core.verdict import NodeReason, Verdict
from hami.errors import StaleSnapshotError, UnfitError
from hami.kube.events import EventRecorder
from hami.kube.resources import PODS, ObjectRef
from hami.logs import get_logger

log = get_logger(__name__)

RANKINGS_KEPT: Final = 32
"""Filters whose prioritize may still come; the scheduler asks both for one pod before the next."""
REASONS_SHOWN: Final = 8
NODES_SHOWN: Final = 5


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
        recorder: EventRecorder,
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
            recorder: Tells people why a pod fits nowhere.
            is_binding: Whether a bind of the pod (by uid) is under way.
            clock: For holds.
        """
        self._cache = cache
        self._placer = placer
        self._vendors = vendors
        self._defaults = defaults
        self._settings = settings
        self._recorder = recorder
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
            ranking = self._rank(pod, request, nodes)
            return self._feasible(ranking)
        expires_at = self._take_back(pod)
        ranking = self._rank(pod, request, nodes)
        if ranking.best is None:
            self._explain(pod, ranking.failed)
        else:
            self._hold(pod, request, ranking.best, expires_at=expires_at)
            self._remember(pod.metadata.uid, replace(ranking, failed={}))
        return self._feasible(ranking)

    def _rank(self, pod: Pod, request: PodRequest, nodes: tuple[str, ...]) -> Ranking:
        """The placer's answer, with what the namespace lacks where that is the reason."""
        namespace = pod.metadata.namespace
        room = self._cache.quotas.room(namespace)
        ranking = self._placer.rank(request, nodes, room=room)
        if NodeReason.QUOTA.value not in ranking.failed.values():
            return ranking
        lack = self._cache.lack(namespace, request)
        if lack is None:  # of shares each node takes another amount
            return ranking
        told = f"{NodeReason.QUOTA.value}: {lack}"
        failed = {
            node: told if reason == NodeReason.QUOTA.value else reason
            for node, reason in ranking.failed.items()
        }
        return replace(ranking, failed=failed)

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
        return fresh if current.expires_at is None else min(fresh, current.expires_at)

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
        self._cache.hold(allocation, expires_at=expires_at)

    def _remember(self, uid: str, ranking: Ranking) -> None:
        self._rankings[uid] = ranking
        self._rankings.move_to_end(uid)
        if len(self._rankings) > RANKINGS_KEPT:
            self._rankings.popitem(last=False)

    def _explain(self, pod: Pod, failed: Mapping[str, str]) -> None:
        message = summarise(failed)
        log.info("pod_unfit", pod=pod.key, nodes=len(failed), reasons=message)
        self._recorder.record(ObjectRef.to(PODS, pod), "FilteringFailed", message, type="Warning")


def summarise(failed: Mapping[str, str]) -> str:
    """Why no node fits, in one bounded line: equal reasons together, the most frequent first."""
    nodes_by_reason: dict[str, list[str]] = {}
    for node, reason in failed.items():
        nodes_by_reason.setdefault(reason, []).append(node)
    ordered = sorted(nodes_by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
    parts = [f"{reason} on {_names(nodes)}" for reason, nodes in ordered[:REASONS_SHOWN]]
    if len(ordered) > REASONS_SHOWN:
        parts.append(f"{len(ordered) - REASONS_SHOWN} other reasons")
    return f"no available node, {len(failed)} do not fit: {'; '.join(parts)}"


def _names(nodes: list[str]) -> str:
    shown = ", ".join(sorted(nodes)[:NODES_SHOWN])
    if len(nodes) <= NODES_SHOWN:
        return shown
    return f"{len(nodes)} nodes ({shown}, …)"
