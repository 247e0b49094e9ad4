"""Pods that might have to go, as arrays, and what makes one choice of them better than another.

``Candidates`` are one preemptor's victims on some nodes. It answers what a search asks: whether the
pod fits a node without some of them, and how good that is. It knows no strategy (see
``preemption`` and ``reprieve``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from hami.core.device import PodRequest
from hami.core.relief import Charges, Relief
from hami.core.table import Bools, DeviceTable, Ints

NOBODY: Final = -1
"""In place of a victim's number."""
LOWEST: Final = -(2**62)
"""Below every priority."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A disruption budget."""

    allowed: int
    """How many of its pods may be evicted now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """A pod that holds devices and might have to go."""

    uid: str
    pod: str
    """``namespace/name``."""
    priority: int
    started: float
    """When it began to run; of equal priority the older is more important."""
    charges: Charges
    budgets: tuple[int, ...] = ()
    """Positions of the budgets that cover it."""


def importance(victim: Victim) -> tuple[int, float, str]:
    """The most important sorts first."""
    return -victim.priority, victim.started, victim.uid


def violations(victims: Iterable[Victim], allowed: Sequence[int]) -> int:
    """How many evictions go beyond what the budgets allow, budget by budget."""
    counts = Counter(number for victim in victims for number in victim.budgets)
    return sum(max(0, n - max(allowed[number], 0)) for number, n in counts.items())


class Key(NamedTuple):
    """What makes one choice better than another: the lower."""

    violations: int
    highest: int
    pods: int
    memory: int
    node: int
    uids: tuple[str, ...]


class Answer(NamedTuple):
    """A choice of victims, by number."""

    key: Key
    victims: tuple[int, ...]


class Candidates:
    """One preemptor's victims as arrays.

    A victim's number is its position in the order of the search: those that no exhausted budget
    protects first, each kind by rising priority. So what the first step looks at is a prefix.

    Attributes:
        names: The nodes, by number.
        victims: By number; likewise ``node`` (a number), ``priority`` and ``covered`` (by budgets).
        unprotected: How many no exhausted budget covers.
        gone: Pods that are gone in any case.
        allowed: How many evictions each budget allows beside those.
        several: Whether the request is for more than one device in all.
    """

    def __init__(
        self,
        table: DeviceTable,
        request: PodRequest,
        priority: int,
        nodes: Mapping[str, Sequence[Victim]],
        budgets: Sequence[Budget],
        *,
        gone: Sequence[Victim] = (),
    ) -> None:
        """Sort the victims.

        Args:
            table: The devices.
            request: What is to fit.
            priority: Below which pods are victims.
            nodes: Nodes and their pods; a single one where some are gone.
            budgets: All that any pod names.
            gone: Pods of that one node that are gone in any case.
        """
        self.names = sorted(name for name in nodes if name in table.rows)
        self.gone = gone
        self.several = sum(r.count for c in request.containers for r in c.requests) > 1
        taken = Counter(number for victim in gone for number in victim.budgets)
        self.allowed = [max(0, b.allowed - taken[i]) for i, b in enumerate(budgets)]
        pods = [victim for name in self.names for victim in nodes[name]]
        ranks = np.array([victim.priority for victim in pods], np.int64)
        spent = np.array([bool(v.budgets) and self._spent(v) for v in pods], np.bool_)
        order = np.lexsort((ranks, spent))
        order = order[ranks[order] < priority]
        counts = np.array([len(nodes[name]) for name in self.names], np.int64)
        self.victims = [pods[i] for i in order.tolist()]
        self.node: Ints = np.repeat(np.arange(len(self.names)), counts)[order]
        self.priority: Ints = ranks[order]
        self.covered: Bools = np.array([bool(v.budgets) for v in self.victims], np.bool_)
        self.unprotected = int(len(order) - spent[order].sum())
        self._relief = Relief(table, request, self.names)
        self._relief.load(np.zeros(len(gone), np.int64), [victim.charges for victim in gone])
        self._known: Ints = np.full(len(order), NOBODY)

    def fits(self, nodes: Ints, cases: Ints, victims: Ints) -> Bools:
        """For each case whether the pod fits its node without these victims."""
        pods = self._numbers(victims)
        fixed = len(self.gone)
        if fixed:
            cases = np.concatenate([np.repeat(np.arange(len(nodes)), fixed), cases])
            pods = np.concatenate([np.tile(np.arange(fixed), len(nodes)), pods])
            order = np.argsort(cases, kind="stable")
            cases, pods = cases[order], pods[order]
        return self._relief.fits(nodes, cases, pods)

    def memory(self, victims: Ints) -> Ints:
        """MiB of each; 0 for ``NOBODY``. They have been asked about before."""
        if not victims.size:
            return np.zeros(victims.shape, np.int64)
        amounts = np.append(self._relief.memory[self._known], 0)
        memory: Ints = amounts[victims]
        return memory

    def violations(self, victims: Iterable[int]) -> int:
        """Of this choice, beside those that are gone in any case."""
        return violations((self.victims[i] for i in victims), self.allowed)

    def key(self, node: int, victims: Sequence[int]) -> Key:
        """How good a choice is."""
        numbers = np.array(victims, np.int64)
        return Key(
            violations=self.violations(victims),
            highest=int(self.priority[numbers].max(initial=LOWEST)),
            pods=len(victims),
            memory=int(self.memory(numbers).sum()),
            node=node,
            uids=tuple(sorted(self.victims[i].uid for i in victims)),
        )

    def fitting_without(self, size: int, *, enough: int) -> Bools:
        """Marks of the nodes that fit without all of their victims among the first so many.

        Nodes with few victims come first, for they cannot need many; once nodes with enough victims
        fit, the others are left out.
        """
        marks = np.zeros(len(self.names), np.bool_)
        counts = np.bincount(self.node[:size], minlength=len(marks))
        nodes = np.argsort(counts, kind="stable")
        nodes = nodes[counts[nodes] > 0]
        turn = np.full(len(marks), NOBODY)
        turn[nodes] = np.arange(len(nodes))
        order = np.argsort(turn[self.node[:size]], kind="stable")
        ends = np.cumsum(counts[nodes])
        first = 0
        while first < len(nodes) and counts[marks].sum() < enough:
            low = int(ends[first] - counts[nodes[first]])
            last = max(first + 1, int(np.searchsorted(ends, low + enough, side="right")))
            part, victims = nodes[first:last], order[low : ends[last - 1]]
            marks[part] = self.fits(part, turn[self.node[victims]] - first, victims)
            first = last
        return marks

    def _spent(self, victim: Victim) -> bool:
        return any(self.allowed[number] == 0 for number in victim.budgets)

    def _numbers(self, victims: Ints) -> Ints:
        """The pods' numbers in the relief, which learns of those it does not know."""
        unknown = self._known[victims] == NOBODY
        if unknown.any():
            new = np.unique(victims[unknown])
            self._known[new] = np.arange(len(new)) + len(self._relief.memory)
            self._relief.load(self.node[new], [self.victims[i].charges for i in new.tolist()])
        numbers: Ints = self._known[victims]
        return numbers
