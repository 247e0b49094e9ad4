"""Which devices of a node belong together, by the scores of the links between them.

A pair's score is high where its link is fast. Several devices for one container should be close to
each other; a single one should be the one that others miss least. Directions may differ, as a
node's annotation says them: of a pair the score from the first to the second in the list's order
counts. Up to ``EXACT`` candidates every set is looked at, all at once. Beyond that a set grows from
every candidate by the best next one, and the best of these sets is improved by exchanges of one
device; that is bounded, deterministic, and need not be the best there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

EXACT: Final = 16
"""So many candidates have at most 12870 sets of one size."""
MAX_EXCHANGES: Final = 256

_SET_BITS: Final = np.array([n.bit_count() for n in range(256)], np.uint8)


def score_matrix(scores: Mapping[str, Mapping[str, int]], uuids: Sequence[str]) -> Floats:
    """From each device (row) to each other (column); 0 where nothing is known."""
    matrix = np.zeros((len(uuids), len(uuids)))
    for row, uuid in enumerate(uuids):
        links = scores.get(uuid)
        if links:
            matrix[row] = [links.get(other, 0) for other in uuids]
    np.fill_diagonal(matrix, 0)
    return matrix


def choose_set(scores: Floats, candidates: Sequence[int], count: int) -> tuple[int, ...]:
    """The devices to take, in the order of the list.

    One device: the lowest sum of its own scores to the other candidates. More: the highest sum over
    their pairs. Among equals the set that comes first when all are written in the list's order.

    Args:
        scores: Of every column to every other.
        candidates: Columns of the devices that fit, in order of preference.
        count: How many are wanted; not more than there are.
    """
    columns = np.asarray(candidates, np.int64)
    if not 0 <= count <= len(columns):
        raise ValueError(f"expected a count from 0 to {len(columns)}, met {count}")
    if count in (0, len(columns)):
        return tuple(candidates[:count])
    links = scores[np.ix_(columns, columns)]
    if count == 1:
        alone = links.sum(axis=1) - links.diagonal()
        return (int(columns[alone.argmin()]),)
    if count == 2:
        chosen = _best_pair(links)
    elif len(columns) <= EXACT:
        chosen = _best(links, count)
    else:
        chosen = _good(links, count)
    return tuple(columns[chosen].tolist())


def _best_pair(links: Floats) -> Ints:
    pairs = np.where(np.tri(len(links), dtype=np.bool_), -np.inf, links)
    return np.array(np.unravel_index(pairs.argmax(), pairs.shape), np.int64)


def _best(links: Floats, count: int) -> Ints:
    """Of every set of this size the first with the highest sum.

    A set is a number whose highest bit is the first candidate. A set's sum is that of the set
    without its first candidate, and what links that one to the others. So the sums of all sets are
    built up by doubling; that is quicker than a product of matrices, and never waits for another
    thread as such a product does on a busy machine.
    """
    size = len(links)
    sums = np.zeros(2**size)
    for bit in range(size):
        first = size - 1 - bit
        to_others = np.zeros(2**bit)
        for other in range(bit):
            half = 2**other
            to_others[half : 2 * half] = to_others[:half] + links[first, size - 1 - other]
        sums[2**bit : 2 ** (bit + 1)] = sums[: 2**bit] + to_others
    sets = _sets(size, count)
    best = int(sets[sums[sets].argmax()])
    return np.array([i for i in range(size) if best >> (size - 1 - i) & 1], np.int64)


@lru_cache(maxsize=EXACT * EXACT)
def _sets(size: int, count: int) -> Ints:
    """Every set of this size, in the list's order: the larger number first."""
    numbers = np.arange(2**size - 1, -1, -1, dtype=np.int64)
    sets: Ints = numbers[_SET_BITS[numbers >> 8] + _SET_BITS[numbers & 255] == count]
    return sets


def _good(links: Floats, count: int) -> Ints:
    """The best of the sets that grow from each candidate, improved by exchanges."""
    upper = np.triu(links, 1)
    links = upper + upper.T
    best = _grown(links, count)
    for _ in range(MAX_EXCHANGES):
        near = links[:, best].sum(axis=1)
        gains = near[np.newaxis, :] - near[:, np.newaxis] - links
        gains[~best, :] = -np.inf
        gains[:, best] = -np.inf
        out, into = np.unravel_index(gains.argmax(), gains.shape)
        if gains[out, into] <= 0:
            break
        best[out], best[into] = False, True
    return np.flatnonzero(best)


def _grown(links: Floats, count: int) -> Bools:
    """The best of the sets that take, from one candidate on, always the nearest to what they have.

    One row a candidate; all grow at once.
    """
    inside = np.eye(len(links), dtype=np.bool_)
    near = links.copy()
    sums = np.zeros(len(links))
    rows = np.arange(len(links))
    for _ in range(count - 1):
        nearest = np.where(inside, -np.inf, near).argmax(axis=1)
        inside[rows, nearest] = True
        sums += near[rows, nearest]
        near += links[nearest]
    best: Bools = inside[sums.argmax()]
    return best
