"""Whether a node takes a pod that was bound to it, apart from its devices. Pure.

The kubelet repeats the scheduler's basic checks, since a pod may have been bound by anybody. As
there, an extended resource that the node has never heard of is no reason to refuse: it may be one
of the cluster's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from hami.core.quantity import parse_quantity
from hami.sandbox.kubelet.objects import Pod

Amounts = dict[str, Fraction]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a pod is not admitted, in the kubelet's words."""

    reason: str
    message: str


def requests(pod: Pod) -> Amounts:
    """What the pod needs at once: its containers together, or its greediest init container.

    Sidecars run beside whatever comes after them.

    Raises:
        QuantityError: A request is no quantity.
    """
    beside: Amounts = {}
    peak: Amounts = {}
    for init in pod.spec.init_containers or ():
        if init.is_sidecar:
            beside = _sum(beside, _amounts(init.requests))
            peak = _most(peak, beside)
        else:
            peak = _most(peak, _sum(beside, _amounts(init.requests)))
    running = beside
    for container in pod.spec.containers or ():
        running = _sum(running, _amounts(container.requests))
    return _most(peak, running)


def check(
    pod: Pod,
    *,
    others: Sequence[Amounts],
    allocatable: Mapping[str, int],
    max_pods: int,
    labels: Mapping[str, str],
) -> Refusal | None:
    """Why the node cannot take the pod; None if it can.

    Args:
        pod: Which.
        others: What the pods need that it has already.
        allocatable: What it has, in whole units; cpu in thousandths.
        max_pods: How many pods it takes.
        labels: The node's.
    """
    for key, value in (pod.spec.node_selector or {}).items():
        if labels.get(key) != value:
            return Refusal(
                reason="NodeAffinity",
                message="Predicate NodeAffinity failed: node(s) didn't match Pod's node "
                "affinity/selector",
            )
    if len(others) + 1 > max_pods:
        return _insufficient("pods", 1, len(others), max_pods)
    used: Amounts = {}
    for other in others:
        used = _sum(used, other)
    for resource, amount in requests(pod).items():
        scale = 1000 if resource == "cpu" else 1
        if resource not in allocatable or not amount:
            continue
        wanted, taken = int(amount * scale), int(used.get(resource, Fraction(0)) * scale)
        if wanted > allocatable[resource] - taken:
            return _insufficient(resource, wanted, taken, allocatable[resource])
    return None


def _insufficient(resource: str, wanted: int, used: int, capacity: int) -> Refusal:
    return Refusal(
        reason=f"OutOf{resource}",
        message=f"Node didn't have enough resource: {resource}, requested: {wanted}, "
        f"used: {used}, capacity: {capacity}",
    )


def _amounts(quantities: Mapping[str, str | int | float]) -> Amounts:
    return {resource: parse_quantity(value) for resource, value in quantities.items()}


def _sum(left: Amounts, right: Amounts) -> Amounts:
    total = dict(left)
    for resource, amount in right.items():
        total[resource] = total.get(resource, Fraction(0)) + amount
    return total


def _most(left: Amounts, right: Amounts) -> Amounts:
    return {
        resource: max(left.get(resource, Fraction(0)), right.get(resource, Fraction(0)))
        for resource in left | right
    }
