"""One scheduling cycle: from a pod to a node, or to the reasons why there is none.

As in kube-scheduler: own filters over a sample of the nodes, the extenders' filters one after the
other over what is left, then scores, own and extenders'. Knows neither queues nor binding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import anyio

from hami.errors import SandboxError
from hami.logs import get_logger
from hami.sandbox.scheduler import filters
from hami.sandbox.scheduler.cache import Cache, NodeInfo
from hami.sandbox.scheduler.config import Profile, SchedulerConfig
from hami.sandbox.scheduler.extender import Extender, ExtenderError
from hami.sandbox.scheduler.objects import Node, Pod

log = get_logger(__name__)

MIN_NODES: Final = 100
"""Fewer nodes are all looked at."""
MIN_PERCENTAGE: Final = 5
EXTENDER_SCALE: Final = filters.MAX_SCORE // 10
"""Extenders score from 0 to 10."""


class UnschedulableError(SandboxError):
    """No node can take the pod; the message counts the reasons."""

    def __init__(self, message: str, *, extender_refused: bool = False) -> None:
        super().__init__(message)
        self.extender_refused = extender_refused


class Cycle:
    """Chooses nodes for pods, one pod at a time."""

    def __init__(self, config: SchedulerConfig, cache: Cache, extenders: list[Extender]) -> None:
        self._config = config
        self._cache = cache
        self._extenders = extenders
        self._ignored = config.ignored_resources
        self._start = 0

    async def choose(self, pod: Pod, profile: Profile) -> str:
        """The node for the pod.

        Raises:
            UnschedulableError: None can take it now.
            ExtenderError: An extender that matters failed.
        """
        infos = self._cache.nodes()
        if not infos:
            raise UnschedulableError("no nodes available to schedule pods")
        feasible, reasons = self._fitting(pod, infos, wanted=self._sample(profile, len(infos)))
        left = await self._pass_extenders(pod, feasible, reasons)
        if not left:
            raise UnschedulableError(
                explain(len(infos), reasons.values()), extender_refused=bool(feasible)
            )
        if len(left) == 1:
            return left[0]
        return await self._best(pod, [info for info in feasible if _name(info) in left])

    def _sample(self, profile: Profile, count: int) -> int:
        """How many fitting nodes are enough."""
        if count < MIN_NODES:
            return count
        percentage = profile.percentage_of_nodes_to_score
        if percentage is None:
            percentage = self._config.percentage_of_nodes_to_score or 0
        if percentage == 0:
            percentage = max(50 - count // 125, MIN_PERCENTAGE)
        return max(count * percentage // 100, MIN_NODES)

    def _fitting(
        self, pod: Pod, infos: Sequence[NodeInfo], *, wanted: int
    ) -> tuple[list[NodeInfo], dict[str, list[str]]]:
        """Nodes that pass the own filters, from where the last cycle stopped; reasons by node."""
        feasible: list[NodeInfo] = []
        reasons: dict[str, list[str]] = {}
        for offset in range(len(infos)):
            info = infos[(self._start + offset) % len(infos)]
            against = filters.reasons_against(pod, info, ignored=self._ignored)
            if against:
                reasons[_name(info)] = against
                continue
            feasible.append(info)
            if len(feasible) == wanted:
                break
        self._start = (self._start + len(feasible) + len(reasons)) % len(infos)
        return feasible, reasons

    async def _pass_extenders(
        self, pod: Pod, feasible: list[NodeInfo], reasons: dict[str, list[str]]
    ) -> list[str]:
        nodes = {_name(info): _node(info) for info in feasible}
        left = list(nodes)
        for extender in self._extenders:
            if not left:
                break
            if not extender.is_interested(pod):
                continue
            try:
                answer = await extender.filter(pod, [nodes[name] for name in left])
            except ExtenderError as error:
                if not extender.config.ignorable:
                    raise
                log.info("extender_skipped", pod=pod.key, extender=extender.name, error=str(error))
                continue
            reasons |= {name: [message] for name, message in answer.failed.items()}
            left = list(dict.fromkeys(answer.nodes))
        return left

    async def _best(self, pod: Pod, infos: Sequence[NodeInfo]) -> str:
        """The node with the highest score; of equals, the first by name."""
        scores = {_name(info): filters.score(pod, info) for info in infos}
        nodes = [_node(info) for info in infos]

        async def ask(extender: Extender) -> None:
            try:
                answer = await extender.prioritize(pod, nodes)
            except ExtenderError as error:
                # as for kube-scheduler: the others decide without it
                log.info(
                    "extender_gave_no_scores",
                    pod=pod.key, extender=extender.name, error=str(error),
                )  # fmt: skip
                return
            for name, score in answer.items():
                if name in scores:
                    scores[name] += score * extender.config.weight * EXTENDER_SCALE

        async with anyio.create_task_group() as tasks:
            for extender in self._extenders:
                if extender.is_interested(pod):
                    tasks.start_soon(ask, extender)
        return min(scores, key=lambda name: (-scores[name], name))


def explain(count: int, reasons: Iterable[list[str]]) -> str:
    """What kube-scheduler says, such as ``0/2 nodes are available: 2 Insufficient cpu.``."""
    histogram = Counter(reason for each in reasons for reason in each)
    counted = ", ".join(sorted(f"{number} {reason}" for reason, number in histogram.items()))
    head = f"0/{count} nodes are available:"
    return f"{head} {counted}." if counted else head


def _node(info: NodeInfo) -> Node:
    assert info.node is not None
    return info.node


def _name(info: NodeInfo) -> str:
    return _node(info).name
