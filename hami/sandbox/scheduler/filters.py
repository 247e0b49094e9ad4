"""The scheduler's own opinion of a node: whether a pod fits there, and how well. Pure.

The checks and words are those of kube-scheduler's plugins NodeUnschedulable, NodeName,
TaintToleration, NodeAffinity (the node selector alone) and NodeResourcesFit; the score is that of
NodeResourcesFit's LeastAllocated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from hami.sandbox.scheduler.cache import NodeInfo
from hami.sandbox.scheduler.objects import Node, Pod, Taint, Toleration

MAX_SCORE: Final = 100
UNSCHEDULABLE_TAINT: Final = Taint(key="node.kubernetes.io/unschedulable", effect="NoSchedule")
KEEPS_AWAY: Final = frozenset({"NoSchedule", "NoExecute"})

Check = Callable[[Pod, Node], str]


def reasons_against(pod: Pod, info: NodeInfo, *, ignored: frozenset[str]) -> list[str]:
    """Why the pod does not fit on the node: the reasons of the first check that fails.

    Args:
        pod: Which.
        info: The node and what is taken of it.
        ignored: Resources that an extender decides about.
    """
    assert info.node is not None
    for check in _CHECKS:
        if reason := check(pod, info.node):
            return [reason]
    return _resources(pod, info, ignored=ignored)


def score(pod: Pod, info: NodeInfo) -> int:
    """0 to 100: how much of its cpu and memory the node would have left."""
    assert info.node is not None
    parts = [
        _left(info.node.allocatable.get(name, 0), info.used.get(name, 0) + pod.used.get(name, 0))
        for name in ("cpu", "memory")
    ]
    return sum(parts) // len(parts)


def tolerates(tolerations: list[Toleration], taint: Taint) -> bool:
    """Whether one of the tolerations is for the taint."""
    return any(_matches(toleration, taint) for toleration in tolerations)


def _unschedulable(pod: Pod, node: Node) -> str:
    if node.spec.unschedulable and not tolerates(pod.spec.tolerations or [], UNSCHEDULABLE_TAINT):
        return "node(s) were unschedulable"
    return ""


def _name(pod: Pod, node: Node) -> str:
    if pod.spec.node_name and pod.spec.node_name != node.name:
        return "node(s) didn't match the requested node name"
    return ""


def _taints(pod: Pod, node: Node) -> str:
    for taint in node.taints:
        if taint.effect in KEEPS_AWAY and not tolerates(pod.spec.tolerations or [], taint):
            return f"node(s) had untolerated taint {taint}"
    return ""


def _selector(pod: Pod, node: Node) -> str:
    for key, value in (pod.spec.node_selector or {}).items():
        if node.labels.get(key) != value:
            return "node(s) didn't match Pod's node affinity/selector"
    return ""


_CHECKS: Final[tuple[Check, ...]] = (_unschedulable, _name, _taints, _selector)


def _resources(pod: Pod, info: NodeInfo, *, ignored: frozenset[str]) -> list[str]:
    assert info.node is not None
    has = info.node.allocatable
    reasons = []
    if len(info.pods) + 1 > has.get("pods", 0):
        reasons.append("Too many pods")
    for name, amount in sorted(pod.requests.items()):
        if (
            amount
            and name not in ignored
            and amount > has.get(name, 0) - info.requested.get(name, 0)
        ):
            reasons.append(f"Insufficient {name}")
    return reasons


def _left(capacity: int, used: int) -> int:
    if capacity == 0 or used > capacity:
        return 0
    return (capacity - used) * MAX_SCORE // capacity


def _matches(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if not toleration.key:
        return toleration.operator == "Exists"
    if toleration.key != taint.key:
        return False
    return toleration.operator == "Exists" or toleration.value == taint.value


def needs_affinity(pod: Pod) -> bool:
    """Whether the pod asks for what these checks do not know."""
    affinity: Any = pod.spec.affinity
    return bool(affinity)
