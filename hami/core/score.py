"""Which node and which device is preferred, among those that fit.

Formulas: a device's score is ten times the weighted sum of its used shares with the request added;
a node's is ten times the sum of the used shares of all its devices before the request. Binpack
prefers high scores, spread low ones; ``DevicePolicy`` has all orders. Last ties: higher index, then
higher uuid; nodes by name. So equal input always gives the same choice.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from hami.core.device import DevicePolicy, SortKey, Weights
from hami.core.table import Bools, Columns, Floats, Ints

SCALE: Final = 10.0
MAX_PRIORITY: Final = 10
"""Highest score an extender may give."""


def device_scores(
    columns: Columns, *, slots: int, memory: Ints, cores: int, weights: Weights
) -> Floats:
    """Each device's score if the request were on it; 0 for a device without some capacity."""
    usable = (columns.slots > 0) & (columns.memory > 0) & (columns.cores > 0)
    total = (
        weights.slots * _share(columns.used_slots + slots, columns.slots)
        + weights.cores * _share(columns.used_cores + cores, columns.cores)
        + weights.memory * _share(columns.used_memory + memory, columns.memory)
    )
    return _rounded(np.where(usable, SCALE * total, 0.0))


def device_order(
    columns: Columns,
    eligible: Bools,
    *,
    policy: DevicePolicy,
    weights: Weights,
    memory: Ints,
    cores: int,
    costs: Ints | None = None,
) -> Ints:
    """For each node the columns in order of preference, eligible ones first.

    Args:
        columns: The devices.
        eligible: Which of them may be taken.
        policy: The order.
        weights: Of each resource in a score.
        memory: MiB of the request on each device.
        cores: Percent of the request.
        costs: What an instance would spoil of each MIG device: least first, before all policies.
            None where there are no such devices.
    """
    width = eligible.shape[1]
    scores = device_scores(columns, slots=1, memory=memory, cores=cores, weights=weights)
    keys: list[npt.NDArray[np.generic]] = [np.broadcast_to(-np.arange(width), eligible.shape)]
    keys += [_sort_values(key, columns, scores) for key in reversed(policy.keys)]
    if costs is not None:
        keys.append(costs)
    return np.lexsort((*keys, ~eligible), axis=1)


def _sort_values(key: SortKey, columns: Columns, scores: Floats) -> npt.NDArray[np.generic]:
    match key:
        case SortKey.FULLEST:
            return -scores
        case SortKey.EMPTIEST:
            return scores
        case SortKey.HIGH_NUMA:
            return -columns.numa
        case SortKey.LOW_NUMA:
            return columns.numa
        case SortKey.FEWEST:
            return columns.used_slots


def node_scores(columns: Columns) -> Floats:
    """Each node's score: how much of it is used; 0 for a node without some capacity."""
    capacity = [columns.slots.sum(axis=1), columns.cores.sum(axis=1), columns.memory.sum(axis=1)]
    used = [
        columns.used_slots.sum(axis=1),
        columns.used_cores.sum(axis=1),
        columns.used_memory.sum(axis=1),
    ]
    usable = np.logical_and.reduce([total > 0 for total in capacity])
    shares = sum(_share(part, total) for part, total in zip(used, capacity, strict=True))
    return _rounded(np.where(usable, SCALE * shares, 0.0))


def priorities(preference: Floats, *, best: int) -> Ints:
    """Preferences (higher is better) as an extender's scores, 0 to 10.

    Only the one at ``best`` gets 10, so that coarse numbers never hide the first choice.
    """
    low, high = preference.min(), preference.max()
    span = high - low
    scaled = (preference - low) / span if span > 0 else np.zeros_like(preference)
    result = np.floor(scaled * (MAX_PRIORITY - 1)).astype(np.int64)
    result[best] = MAX_PRIORITY
    return result


def _rounded(scores: Floats) -> Floats:
    """Equal where they are equal but for rounding, so that only the stated rules break ties."""
    return np.round(scores, 9)


def _share(used: Ints, total: Ints) -> Floats:
    return used / np.maximum(total, 1)
