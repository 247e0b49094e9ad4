"""The best victims on some nodes: who can stay does, then every better set is tried.

These are the second and third step of the search that ``preemption`` describes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from hami.core.table import Bools, Ints
from hami.core.victims import LOWEST, NOBODY, Answer, Candidates, Key, importance

EXACT: Final = 12
"""A node with so many victims has 4096 sets of them."""
NODES_EXACT: Final = 32
SETS_TRIED: Final = 2**16
CROWDED_NODES: Final = 64
"""Of nodes with more than ``EXACT`` victims, those with the fewest are looked at."""


# -- the second step ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pools:
    """Sets of victims to begin with, one a row: all of a node, or of some of its devices."""

    node: Ints
    victims: Ints
    """Numbers, those that should stay most first; ``NOBODY`` beyond the last."""

    def take(self, rows: Bools | Ints) -> _Pools:
        """Some rows."""
        return _Pools(node=self.node[rows], victims=self.victims[rows])


def solve(search: Candidates, size: int, nodes: Bools) -> Answer | None:
    """The best choice among the first so many victims on these nodes; None if none helps."""
    chosen = np.flatnonzero(nodes[search.node[:size]])
    if not chosen.size:
        return None
    counts = np.bincount(search.node[chosen], minlength=len(nodes))
    crowded = np.flatnonzero(counts > EXACT)
    simple = chosen[counts[search.node[chosen]] <= EXACT]
    parts = [_fitting_pools(search, search.node[simple], simple)]
    if crowded.size:
        parts += _crowded_pools(search, chosen, crowded[np.argsort(counts[crowded], kind="stable")])
    pools = _joined(parts)
    if not pools.node.size:
        return None
    removed = _reprieved(search, pools)
    order = _ranked(search, pools, removed)
    best = min(_answer(search, pools, removed, row) for row in order[:NODES_EXACT].tolist())
    exact = order[(pools.victims[order] != NOBODY).sum(axis=1) <= EXACT]
    return _improved(search, pools, exact[:NODES_EXACT].tolist(), best)


def _crowded_pools(search: Candidates, chosen: Ints, crowded: Ints) -> list[_Pools]:
    """For nodes with many victims the pools that fit: of some devices, or else of the whole."""
    few = np.sort(crowded[:CROWDED_NODES])
    groups: list[set[int]] = []
    for node in few.tolist():
        groups += _of_devices(search, chosen[search.node[chosen] == node])
    pool = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    victims = np.fromiter((n for group in groups for n in group), np.int64, len(pool))
    by_device = _fitting_pools(search, pool, victims)
    others = few[~np.isin(few, by_device.node)]
    rest = chosen[np.isin(search.node[chosen], others)]
    return [by_device, _fitting_pools(search, search.node[rest], rest)]


def _of_devices(search: Candidates, chosen: Ints) -> list[set[int]]:
    """Of one node the victims of each device, and of the devices easiest to free together."""
    on_device: dict[str, set[int]] = defaultdict(set)
    for number in chosen.tolist():
        for uuid in search.victims[number].charges:
            on_device[uuid].add(number)
    groups = sorted(
        on_device.values(),
        key=lambda group: (
            search.violations(group),
            max(int(search.priority[n]) for n in group),
            len(group),
            sorted(search.victims[n].uid for n in group),
        ),
    )
    together = [groups[0] | groups[1]] if len(groups) > 1 and search.several else []
    for group in groups[2:] if together else ():
        together.append(together[-1] | group)
    return groups + together


def _fitting_pools(search: Candidates, pool: Ints, victims: Ints) -> _Pools:
    """Those pools without whose victims the pod fits.

    Args:
        search: Who knows the victims.
        pool: Of each victim the number of its pool; a pool is on one node.
        victims: The victims of all pools.
    """
    started = (search.victims[i].started for i in victims.tolist())
    order = np.lexsort(
        (
            np.fromiter(started, np.float64, len(victims)),
            -search.priority[victims],
            ~_protected(search, pool, victims),
            pool,
        )
    )
    ordered = victims[order]
    _, begins, counts = np.unique(pool[order], return_index=True, return_counts=True)
    matrix = np.full((len(begins), int(counts.max(initial=0))), NOBODY)
    rows = np.repeat(np.arange(len(begins)), counts)
    matrix[rows, np.arange(len(ordered)) - begins[rows]] = ordered
    pools = _Pools(node=search.node[ordered[begins]], victims=matrix)
    return pools.take(_fitting(search, pools, matrix != NOBODY))


def _protected(search: Candidates, pool: Ints, victims: Ints) -> Bools:
    """Marks of victims that would break a budget if all of their pool went, as Kubernetes counts.

    The most important ones take what a budget allows.
    """
    marks = np.zeros(len(victims), np.bool_)
    covered = np.flatnonzero(search.covered[victims]).tolist()
    covered.sort(key=lambda i: importance(search.victims[victims[i]]))
    left: dict[tuple[int, int], int] = {}
    for i in covered:
        for number in search.victims[victims[i]].budgets:
            place = int(pool[i]), number
            left[place] = left.get(place, search.allowed[number]) - 1
            marks[i] |= left[place] < 0
    return marks


def _joined(parts: Sequence[_Pools]) -> _Pools:
    width = max(part.victims.shape[1] for part in parts)
    padded = [
        np.pad(p.victims, ((0, 0), (0, width - p.victims.shape[1])), constant_values=NOBODY)
        for p in parts
    ]
    return _Pools(node=np.concatenate([p.node for p in parts]), victims=np.concatenate(padded))


def _fitting(search: Candidates, pools: _Pools, removed: Bools) -> Bools:
    """For each pool whether the pod fits without the marked victims."""
    cases, positions = np.nonzero(removed)
    return search.fits(pools.node, cases, pools.victims[cases, positions])


def _reprieved(search: Candidates, pools: _Pools) -> Bools:
    """Marks of those who have to go when everybody who can stay does, in the pools' order."""
    removed: Bools = pools.victims != NOBODY
    for position in range(removed.shape[1]):
        rows = np.flatnonzero(removed[:, position])
        trial = removed[rows]
        trial[:, position] = False
        fits = _fitting(search, pools.take(rows), trial)
        removed[rows[fits], position] = False
    return removed


def _ranked(search: Candidates, pools: _Pools, removed: Bools) -> Ints:
    """The pools' rows, the best choice first."""
    gone = np.where(removed, pools.victims, NOBODY)
    broken = np.zeros(len(gone), np.int64)
    for row in np.flatnonzero(np.append(search.covered, False)[gone].any(axis=1)).tolist():
        broken[row] = search.violations(gone[row][gone[row] != NOBODY].tolist())
    highest = np.append(search.priority, LOWEST)[gone].max(axis=1, initial=LOWEST)
    memory = search.memory(gone).sum(axis=1)
    return np.lexsort((pools.node, memory, removed.sum(axis=1), highest, broken))


def _answer(search: Candidates, pools: _Pools, removed: Bools, row: int) -> Answer:
    victims = tuple(pools.victims[row][removed[row]].tolist())
    return Answer(search.key(int(pools.node[row]), victims), victims)


# -- the third step ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sets:
    """Sets of victims that would be better than what is known, with what they are sorted by."""

    members: Bools
    victims: Ints
    """The number behind each position of ``members``."""
    keys: Ints
    """Violations, highest priority, count, memory, node, turn among equals: a row each."""


def _improved(search: Candidates, pools: _Pools, rows: Sequence[int], best: Answer) -> Answer:
    """The best choice of any victims of these pools, if it is better than the one known."""
    parts = [
        _better_sets(search, int(pools.node[row]), pools.victims[row], best.key) for row in rows
    ]
    if not parts:
        return best
    keys = np.concatenate([part.keys for part in parts], axis=1)
    owner = np.repeat(np.arange(len(parts)), [len(part.members) for part in parts])
    begins = np.cumsum([0] + [len(part.members) for part in parts])
    order = np.lexsort(keys[::-1])[:SETS_TRIED]
    done, size = 0, 64
    while done < len(order):
        turn = order[done : done + size]
        members = np.zeros((len(turn), EXACT), np.bool_)
        victims = np.full((len(turn), EXACT), NOBODY)
        for row, (number, part) in enumerate(zip(turn.tolist(), owner[turn].tolist(), strict=True)):
            own = parts[part]
            members[row, : len(own.victims)] = own.members[number - begins[part]]
            victims[row, : len(own.victims)] = own.victims
        tried = _Pools(node=keys[4, turn], victims=victims)
        fits = _fitting(search, tried, members)
        if fits.any():
            return min(best, _answer(search, tried, members, int(fits.argmax())))
        done, size = done + size, min(4 * size, 4096)
    return best


def _better_sets(search: Candidates, node: int, pool: Ints, known: Key) -> _Sets:
    """Every set of the pool's victims that is better than what is known, or as good."""
    numbers = sorted(pool[pool != NOBODY].tolist(), key=lambda n: search.victims[n].uid)
    victims = np.array(numbers, np.int64)
    members = _subsets(len(numbers))
    priorities = np.where(members, search.priority[victims], LOWEST)
    keys = np.stack(
        [
            _broken(search, members, numbers),
            priorities.max(axis=1, initial=LOWEST),
            members.sum(axis=1),
            np.where(members, search.memory(victims), 0).sum(axis=1),
            np.full(len(members), node),
            np.arange(len(members)),
        ]
    )
    better, equal = np.zeros(len(members), np.bool_), np.ones(len(members), np.bool_)
    for values, limit in zip(keys, known[:5], strict=False):
        better |= equal & (values < limit)
        equal &= values == limit
    kept = better | equal
    return _Sets(members=members[kept], victims=victims, keys=keys[:, kept])


def _broken(search: Candidates, members: Bools, numbers: Sequence[int]) -> Ints:
    """The violations of every set."""
    total = np.zeros(len(members), np.int64)
    covering = {b for n in numbers for b in search.victims[n].budgets}
    for budget in sorted(covering):
        covered = [budget in search.victims[n].budgets for n in numbers]
        total += np.maximum(members[:, covered].sum(axis=1) - max(search.allowed[budget], 0), 0)
    return total


@lru_cache(maxsize=EXACT + 1)
def _subsets(size: int) -> Bools:
    """Every set, one a row; of sets of one size first those whose members come first."""
    numbers = np.arange(2**size - 1, -1, -1)
    members: Bools = np.array(numbers[:, np.newaxis] >> np.arange(size)[::-1] & 1, np.bool_)
    return members
