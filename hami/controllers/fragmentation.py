"""How much of the free capacity nobody can have, model by model. Pure.

Memory is stranded on a device without a free slot or without free compute, compute on one without a
free slot or without free memory, and a MIG slice where no profile of the device can reach it any
more. Counted are devices that pods can get: healthy and not cordoned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from hami.core import mig
from hami.core.device import MODE_MIG, MigProfile
from hami.core.table import Bools, Columns, Ints
from hami.core.words import Words

MODELS_SHOWN: Final = 64
"""The most frequent ones; the others are summed up, for nodes may make up names."""
OTHER: Final = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """What is free of a model's devices."""

    model: str
    memory: int = 0
    """MiB."""
    stranded_memory: int = 0
    cores: int = 0
    """Percent."""
    stranded_cores: int = 0
    stranded_slices: int = 0


def by_model(
    columns: Columns, words: Words, geometries: Sequence[tuple[MigProfile, ...]]
) -> tuple[Free, ...]:
    """Every model's free and stranded capacity, the most frequent models first."""
    c = columns
    usable = c.present & c.healthy & ~c.cordoned
    hardware = np.zeros(usable.shape, np.bool_)
    if words.knows(MODE_MIG):
        hardware = c.mode == words.number(MODE_MIG)
    shared = usable & ~hardware
    memory = np.maximum(c.memory - c.used_memory, 0)
    cores = np.maximum(c.cores - c.used_cores, 0)
    no_slot = c.used_slots >= c.slots
    no_cores = (c.cores > 0) & (cores == 0)
    no_memory = (c.memory > 0) & (memory == 0)
    counts = np.bincount(c.model[usable], minlength=len(words))
    sums = {
        "memory": _sum(memory, c.model, shared, len(words)),
        "stranded_memory": _sum(memory, c.model, shared & (no_slot | no_cores), len(words)),
        "cores": _sum(cores, c.model, shared, len(words)),
        "stranded_cores": _sum(cores, c.model, shared & (no_slot | no_memory), len(words)),
        "stranded_slices": _slices(c, usable & hardware, geometries, len(words)),
    }
    found = np.flatnonzero(counts).tolist()
    ordered = sorted(found, key=lambda number: (-int(counts[number]), words.word(number)))
    models = [
        Free(model=words.word(n), **{name: int(column[n]) for name, column in sums.items()})
        for n in ordered
    ]
    return (*models[:MODELS_SHOWN], *_others(models[MODELS_SHOWN:]))


def _sum(values: Ints, model: Ints, chosen: Bools, size: int) -> Ints:
    """The chosen devices' values by model."""
    sums = np.zeros(size, np.int64)
    np.add.at(sums, model[chosen], values[chosen])
    return sums


def _slices(
    c: Columns, chosen: Bools, geometries: Sequence[tuple[MigProfile, ...]], size: int
) -> Ints:
    sums = np.zeros(size, np.int64)
    kinds = np.stack([c.model[chosen], c.geometry[chosen], c.mig_mask[chosen]], axis=1)
    distinct, counts = np.unique(kinds, axis=0, return_counts=True)
    for (model, number, mask), count in zip(distinct.tolist(), counts.tolist(), strict=True):
        sums[model] += mig.geometry(geometries[number]).stranded(mask) * count
    return sums


def _others(models: Sequence[Free]) -> tuple[Free, ...]:
    """All of them as one."""
    if not models:
        return ()
    names = [f.name for f in fields(Free) if f.name != "model"]
    return (Free(model=OTHER, **{n: sum(getattr(m, n) for m in models) for n in names}),)
