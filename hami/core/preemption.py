"""Which node a pod should get by evicting others, and which others.

A choice is better if it breaks fewer disruption budgets, then if its most important victim is less
important, then if it has fewer victims, then if less device memory is freed, then by node name and
victims' uids. Only pods of lower priority are victims, and only devices are looked at: whether the
pod may run on a node at all is for the caller to know.

That the best choice may be found among thousands of nodes, the search goes in three steps.

1. The lowest priority is found up to which some node fits without all its lesser pods that no
   exhausted budget protects. Nothing better than that level is possible, so only nodes and pods of
   that level are looked at. Should budgets spoil that level, all are looked at.
2. On every such node pods are added back while the request still fits, the most important first, as
   kube-scheduler does. On a node with more than ``EXACT`` victims, that is done with the victims of
   each device, and of the devices least hard to free together.
3. On the ``NODES_EXACT`` nodes that then look best every set of victims that would be better is
   tried, best first.

So the answer is the best there is where no more than ``NODES_EXACT`` nodes come into question with
at most ``EXACT`` victims each; beyond that it is good, and the same every time. Every answer has
been asked as a whole: with these victims gone the request fits. (It is taken for granted that a pod
that fits also fits where more is free.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from hami.core.device import PodRequest
from hami.core.placement import Placer
from hami.core.relief import Relief
from hami.core.reprieve import solve
from hami.core.table import Bools, DeviceTable
from hami.core.victims import Answer, Budget, Candidates, Victim, violations

PODS_EXAMINED: Final = 6144
"""Of the nodes that fit without all lesser pods, so many with so many such pods are looked at."""
NODES_COMPLETED: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Who would have to leave a node."""

    node: str
    victims: tuple[Victim, ...]
    """The least important first."""
    violations: int
    """How many evictions the budgets do not allow."""


def choose(
    table: DeviceTable,
    request: PodRequest,
    priority: int,
    nodes: Mapping[str, Sequence[Victim]],
    budgets: Sequence[Budget] = (),
) -> Plan | None:
    """The best node and victims for a pod that fits nowhere; None where evicting does not help.

    Where it does fit after all, the plan may have no victims.

    Args:
        table: The devices; asked before anything else may change it.
        request: What the pod asks.
        priority: Its own; pods of the same or a higher one stay.
        nodes: The nodes that may be considered, each with its pods.
        budgets: All that any pod names.
    """
    candidates = Candidates(table, request, priority, nodes, budgets)
    answer = _best(candidates)
    if answer is None:
        return None
    victims = [candidates.victims[i] for i in answer.victims]
    return _plan(candidates.names[answer.key.node], victims, budgets)


def find(
    table: DeviceTable,
    request: PodRequest,
    priority: int,
    victims: Mapping[str, Sequence[Victim]],
    budgets: Sequence[Budget],
    ending: tuple[str, ...],
) -> Plan | None:
    """Who has to go; nobody where it is enough to wait on one of the nodes where pods end.

    Args:
        table: As if those were gone; nobody else's.
        request: What the pod asks.
        priority: Its own.
        victims: The less important pods of each node.
        budgets: All that they name.
        ending: Nodes where pods end.
    """
    node = Placer(table).rank(request, ending).best if ending else None
    if node is not None:
        return Plan(node=node, victims=(), violations=0)
    return choose(table, request, priority, victims, budgets)


def complete(
    table: DeviceTable,
    request: PodRequest,
    priority: int,
    given: Mapping[str, Sequence[Victim]],
    nodes: Mapping[str, Sequence[Victim]],
    budgets: Sequence[Budget] = (),
) -> dict[str, Plan]:
    """For each node on which somebody else chose victims already, who has to leave in all.

    Where the pod fits with those, they are the answer; where it does not, the best further ones
    come on top; a node where that does not help is left out. So are nodes after the first
    ``NODES_COMPLETED`` that need more.

    Args:
        table: The devices; asked before anything else may change it.
        request: What the pod asks.
        priority: Its own; of the further victims none has the same or a higher one.
        given: The victims chosen for each node, whatever their priority.
        nodes: All pods of each node; those chosen already may be among them.
        budgets: All that any pod names.
    """
    names = [name for name in given if name in table.rows]
    relief = Relief(table, request, names)
    cases = np.repeat(np.arange(len(names)), [len(given[name]) for name in names])
    relief.load(cases, [v.charges for name in names for v in given[name]])
    fits = relief.fits(np.arange(len(names)), cases, np.arange(len(cases)))
    plans: dict[str, Plan] = {}
    for name, fitting in zip(names, fits.tolist(), strict=True):
        if fitting:
            plans[name] = _plan(name, given[name], budgets)
    for name in sorted(set(names) - set(plans))[:NODES_COMPLETED]:
        chosen = {v.uid for v in given[name]}
        others = [v for v in nodes.get(name, ()) if v.uid not in chosen]
        rest = Candidates(table, request, priority, {name: others}, budgets, gone=given[name])
        answer = _best(rest)
        if answer is not None:
            further = [rest.victims[i] for i in answer.victims]
            plans[name] = _plan(name, [*given[name], *further], budgets)
    return {name: plans[name] for name in names if name in plans}


def _plan(node: str, victims: Sequence[Victim], budgets: Sequence[Budget]) -> Plan:
    return Plan(
        node=node,
        victims=tuple(sorted(victims, key=lambda v: (v.priority, -v.started, v.uid))),
        violations=violations(victims, [budget.allowed for budget in budgets]),
    )


def _best(candidates: Candidates) -> Answer | None:
    answers = []
    for size, nodes in _stages(candidates):
        answer = solve(candidates, size, nodes)
        if answer is not None:
            answers.append(answer)
            if answer.key.violations == 0:
                break
    return min(answers, default=None)


def _stages(candidates: Candidates) -> Iterator[tuple[int, Bools]]:
    """How many victims to look at, and the nodes that fit without all of those."""
    first = _lowest_level(candidates)
    if first is not None:
        yield first
    size = len(candidates.victims)
    if first is None or first[0] < size:
        yield size, candidates.fitting_without(size, enough=PODS_EXAMINED)


def _lowest_level(candidates: Candidates) -> tuple[int, Bools] | None:
    """The shortest prefix of unprotected victims, up to a priority, that lets a node fit.

    Steps grow from the lowest priority up, and then close in: most victims are never looked at.
    """
    levels = candidates.priority[: candidates.unprotected]
    if not levels.size:
        return None
    ends = [*(np.flatnonzero(np.diff(levels)) + 1).tolist(), len(levels)]
    low, high, step = -1, 0, 1
    while not (found := candidates.fitting_without(ends[high], enough=PODS_EXAMINED)).any():
        if high == len(ends) - 1:
            return None
        low, high = high, min(high + step, len(ends) - 1)
        step *= 2
    while high - low > 1:
        middle = (low + high) // 2
        fitting = candidates.fitting_without(ends[middle], enough=PODS_EXAMINED)
        if fitting.any():
            high, found = middle, fitting
        else:
            low = middle
    return ends[high], found
