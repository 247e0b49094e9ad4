"""MIG instances on many devices at once: how many fit, what they take and what they spoil.

The geometry of one device is ``hami.core.mig``'s; here stand the vectors. Devices of one kind, with
the same slices in use and the same request, are looked at once. Knows no rule and no policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np

from hami.core import mig
from hami.core.device import MODE_MIG, MigPlacement, MigProfile
from hami.core.table import Bools, Columns, DeviceTable, Ints

PICKS_KEPT: Final = 4096

Pick = tuple[MigProfile, MigPlacement]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """One request, put to the MIG devices among some columns."""

    table: DeviceTable
    columns: Columns
    memory: Ints
    """MiB asked of each device; all that it has means its largest profile."""
    cores: int
    """Percent asked; 0 for any."""
    devices: Bools
    """The places that hold devices partitioned in hardware."""
    any: bool
    """Whether there are such places."""

    def capacity(self) -> Ints:
        """How many instances each device can still give; 0 for all that is no MIG device."""
        return self._looked_up(_capacities)

    def costs(self) -> Ints:
        """What one more instance would spoil of each device; 0 for all that is no MIG device."""
        return self._looked_up(_costs)

    def pick(self, row: int, column: int, count: int) -> tuple[Pick, ...]:
        """The instances that ``count`` requests get of one device, one after the other."""
        c = self.columns
        return _picks(
            self.table.geometries[int(c.geometry[row, column])],
            int(c.mig_mask[row, column]),
            count,
            int(self.memory[row, column]),
            self.cores,
            bool(self.memory[row, column] >= c.memory[row, column]),
        )

    def with_taken(self, taken: Ints) -> Columns:
        """The columns after each device gave so many instances, memory and cores included."""
        c = self.columns
        mask, memory, cores = c.mig_mask.copy(), c.used_memory.copy(), c.used_cores.copy()
        for row, column in zip(*(at.tolist() for at in np.nonzero(taken)), strict=True):
            for profile, placement in self.pick(row, column, int(taken[row, column])):
                mask[row, column] |= mig.mask_of(mig.counters_of(placement))
                memory[row, column] += profile.memory
                cores[row, column] += profile.cores
        return replace(
            c,
            mig_mask=mask,
            used_memory=memory,
            used_cores=cores,
            used_slots=c.used_slots + taken,
        )

    def _looked_up(
        self, values_of: Callable[[tuple[MigProfile, ...], int, int, bool], Ints]
    ) -> Ints:
        """For each device the value at its mask in the table of its kind and request."""
        found = np.zeros(self.columns.present.shape, np.int64)
        for places, profiles, memory, whole in self._kinds():
            masks = self.columns.mig_mask[places]
            found[places] = values_of(profiles, memory, self.cores, whole)[masks]
        return found

    def _kinds(self) -> Iterator[tuple[Bools, tuple[MigProfile, ...], int, bool]]:
        if not self.any:
            return
        c, devices = self.columns, self.devices
        whole = self.memory >= c.memory
        keys = (c.geometry << 40) + (np.minimum(self.memory, (1 << 38) - 1) << 1) + whole
        for key in np.unique(keys[devices]).tolist():
            profiles = self.table.geometries[key >> 40]
            memory = (key >> 1) & ((1 << 38) - 1)
            yield devices & (keys == key), profiles, memory, bool(key & 1)


def demand(table: DeviceTable, columns: Columns, *, memory: Ints, cores: int) -> Demand:
    """A request of so much of each device, put to those that are partitioned in hardware."""
    if table.words.knows(MODE_MIG):
        devices = columns.present & (columns.mode == table.words.number(MODE_MIG))
    else:
        devices = np.zeros(columns.present.shape, np.bool_)
    return Demand(
        table=table,
        columns=columns,
        memory=memory,
        cores=cores,
        devices=devices,
        any=bool(devices.any()),
    )


@lru_cache(maxsize=PICKS_KEPT)
def _capacities(profiles: tuple[MigProfile, ...], memory: int, cores: int, whole: bool) -> Ints:
    return mig.geometry(profiles).capacities(memory=memory, cores=cores, whole=whole)


@lru_cache(maxsize=PICKS_KEPT)
def _costs(profiles: tuple[MigProfile, ...], memory: int, cores: int, whole: bool) -> Ints:
    return mig.geometry(profiles).costs(memory=memory, cores=cores, whole=whole)


@lru_cache(maxsize=PICKS_KEPT)
def _picks(
    profiles: tuple[MigProfile, ...], mask: int, count: int, memory: int, cores: int, whole: bool
) -> tuple[Pick, ...]:
    kind = mig.geometry(profiles)
    picks: list[Pick] = []
    for _ in range(count):
        chosen = kind.choose(mask, memory=memory, cores=cores, whole=whole)
        if chosen is None:
            break
        picks.append(chosen)
        mask |= mig.mask_of(mig.counters_of(chosen[1]))
    return tuple(picks)
