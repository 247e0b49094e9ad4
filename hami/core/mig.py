"""Which part of a device a MIG instance takes, so that the rest stays as useful as it can be.

A device that is cut into instances has up to eight memory slices. What is occupied of it is a
*mask*: bit ``i`` for slice ``i``. What it offers are profiles, each with the places where it may
stand. There are 256 masks, so every answer is worked out once for all of them and then looked up;
the tables serve one device and whole columns of devices alike.

The profile is the smallest that holds the request, the next larger one only where none of the
smaller has room. Among its free placements the order of preference is:

1. larger profiles that had room still have it, the largest first;
2. the fewest *stranded* slices: free, but out of reach of every placement that is still free;
3. the most placements left for larger profiles, the largest first;
4. HAMi's order: profiles named ``1g.`` or ``3g.`` from the highest start down, others upwards.

Several records may name the same slice, though only one of them can be right. So who holds a device
is counted for each slice, eight counters in one integer (wider than a machine word): adding and
taking back records is plain ``+`` and ``-``, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from hami.core.device import MigPlacement, MigProfile

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SLICES: Final = 8
MASKS: Final = 1 << SLICES

GEOMETRIES_KEPT: Final = 64
PACKINGS_KEPT: Final = 512

_DIGIT_BITS: Final = 32
_DIGIT: Final = (1 << _DIGIT_BITS) - 1
_SHIFTS: Final = tuple(_DIGIT_BITS * i for i in range(SLICES))
ALL: Final = sum(1 << shift for shift in _SHIFTS)
"""Counters of a record that occupies every slice: one that cannot be read."""

Option = tuple[MigProfile, MigPlacement]

_ALL_MASKS: Final[Ints] = np.arange(MASKS, dtype=np.int64)
_SET_BITS: Final[Ints] = np.array([mask.bit_count() for mask in range(MASKS)], np.int64)
_NO_RANK: Final = MASKS
_WEIGHED: Final = 56
"""Of more profiles than any device has, the largest so many are told apart by ``costs``."""
_FROM_THE_TOP: Final = ("1g.", "3g.")


# -- counters ----------------------------------------------------------------------------------


def counters_of(placement: MigPlacement) -> int:
    """One record's counters: 1 for each of its slices; slices that no device has are left out."""
    first, last = max(placement.start, 0), min(placement.start + placement.size, SLICES)
    return sum(1 << _SHIFTS[i] for i in range(first, last))


def mask_of(counters: int) -> int:
    """The slices whose counter is not zero."""
    return sum(1 << i for i, shift in enumerate(_SHIFTS) if counters >> shift & _DIGIT)


def maximum(a: int, b: int) -> int:
    """One after the other: the larger of each counter."""
    if a == b or not b:
        return a
    return sum(max(a >> shift & _DIGIT, b >> shift & _DIGIT) << shift for shift in _SHIFTS)


# -- geometry ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """The answers to one size of request, for each mask. Treat the arrays as read-only."""

    options: tuple[Option | None, ...]
    """What ``Geometry.choose`` answers."""
    capacity: Ints
    """How many times in a row there is room."""


class Geometry:
    """The profiles of one kind of device. Made by ``geometry``, which keeps those in use.

    Placements that no device can have (outside of the eight slices, or without any) are left out
    here, and profiles without another: inventories come from nodes and are not trusted.
    """

    def __init__(self, profiles: Sequence[MigProfile]) -> None:
        legal = [(profile, _legal(profile)) for profile in profiles]
        self._profiles = sorted((p for p in legal if p[1]), key=lambda p: _size(p[0]))
        self._bits: list[Ints] = []
        self._free: list[Bools] = []
        for _, placements in self._profiles:
            bits = np.array([_bits(at) for at in placements], np.int64)
            self._bits.append(bits)
            self._free.append((bits[:, np.newaxis] & _ALL_MASKS) == 0)
        self._room: list[Ints] = [free.sum(axis=0) for free in self._free]
        self._stranded = self._stranded_slices()
        self._best = [self._best_placements(i) for i in range(len(self._profiles))]

    def choose(
        self, mask: int, *, memory: int, cores: int = 0, whole: bool = False
    ) -> Option | None:
        """The profile and placement for a request; None where there is no room.

        Args:
            mask: What is occupied.
            memory: MiB that the profile must have at least.
            cores: Percent that it must have at least; 0 where none was asked.
            whole: Whether the whole device is wanted: the largest profile, whatever its size, for
                it often has a little less memory than the device.
        """
        return self.packing(memory=memory, cores=cores, whole=whole).options[mask]

    def capacity(self, mask: int, *, memory: int, cores: int = 0, whole: bool = False) -> int:
        """How many times in a row ``choose`` finds room, beginning with this mask."""
        return int(self.packing(memory=memory, cores=cores, whole=whole).capacity[mask])

    def capacities(self, *, memory: int, cores: int = 0, whole: bool = False) -> Ints:
        """``capacity`` of every mask."""
        return self.packing(memory=memory, cores=cores, whole=whole).capacity

    def costs(self, *, memory: int, cores: int = 0, whole: bool = False) -> Ints:
        """For every mask what one more instance spoils, to compare devices of one kind.

        First which larger profiles lose their last room, the largest weighing most, then how many
        slices become stranded. 0 where there is no room.
        """
        options = self.packing(memory=memory, cores=cores, whole=whole).options
        costs = np.zeros(MASKS, np.int64)
        for mask, option in enumerate(options):
            if option is None:
                continue
            profile, placement = option
            after = mask | _bits(placement)
            costs[mask] = max(self._stranded[after] - self._stranded[mask], 0)
            for i, (other, _) in enumerate(self._profiles[-_WEIGHED:]):
                room = self._room[-_WEIGHED:][i]
                if _size(other) > _size(profile) and room[mask] and not room[after]:
                    costs[mask] += 1 << (4 + i)
        return costs

    def stranded(self, mask: int) -> int:
        """How many free slices no free placement reaches; slices of no profile do not count."""
        return int(self._stranded[mask])

    def packing(self, *, memory: int, cores: int = 0, whole: bool = False) -> Packing:
        """All answers for a request of this size."""
        last = len(self._profiles) - 1
        return _packing(
            self,
            tuple(
                i
                for i, (profile, _) in enumerate(self._profiles)
                if (i == last if whole else profile.memory >= memory and profile.cores >= cores)
            ),
        )

    def _stranded_slices(self) -> Ints:
        reached = np.zeros(MASKS, np.int64)
        for bits, free in zip(self._bits, self._free, strict=True):
            reached |= np.bitwise_or.reduce(np.where(free, bits[:, np.newaxis], 0), axis=0)
        stranded: Ints = _SET_BITS[reached[0] & ~_ALL_MASKS & ~reached]
        return stranded

    def _best_placements(self, index: int) -> Ints:
        """For every mask the number of this profile's best free placement, -1 without one."""
        profile, placements = self._profiles[index]
        rank = self._ranks(profile)
        order = np.array(
            sorted(range(len(placements)), key=lambda i: _turn(profile, placements[i]))
        )
        bits, free = self._bits[index][order], self._free[index][order]
        ranks = np.where(free, rank[_ALL_MASKS | bits[:, np.newaxis]], _NO_RANK)
        best: Ints = np.where(free.any(axis=0), order[ranks.argmin(axis=0)], -1)
        return best

    def _ranks(self, profile: MigProfile) -> Ints:
        """How good it is to leave each mask behind, seen by this profile; 0 is best."""
        larger = [
            room
            for (other, _), room in zip(self._profiles, self._room, strict=True)
            if _size(other) > _size(profile)
        ][::-1]
        keys = [room == 0 for room in larger] + [self._stranded] + [-room for room in larger]
        _, ranks = np.unique(np.stack(keys, axis=1), axis=0, return_inverse=True)
        return ranks.reshape(-1).astype(np.int64)

    def _pack(self, eligible: tuple[int, ...]) -> Packing:
        options: list[Option | None] = [None] * MASKS
        capacity = np.zeros(MASKS, np.int64)
        for mask in range(MASKS - 1, -1, -1):
            for i in eligible:
                best = int(self._best[i][mask])
                if best >= 0:
                    profile, placements = self._profiles[i]
                    options[mask] = profile, placements[best]
                    capacity[mask] = 1 + capacity[mask | int(self._bits[i][best])]
                    break
        return Packing(
            options=tuple(options),
            capacity=capacity,
        )


@lru_cache(maxsize=GEOMETRIES_KEPT)
def geometry(profiles: tuple[MigProfile, ...]) -> Geometry:
    """The geometry of a device that offers these profiles."""
    return Geometry(profiles)


@lru_cache(maxsize=PACKINGS_KEPT)
def _packing(of: Geometry, eligible: tuple[int, ...]) -> Packing:
    """Few requests differ in which profiles hold them, so few tables serve all."""
    return of._pack(eligible)


def _legal(profile: MigProfile) -> tuple[MigPlacement, ...]:
    """The placements that a device can have, each once."""
    return tuple(
        dict.fromkeys(
            at
            for at in profile.placements
            if at.start >= 0 and at.size > 0 and at.start + at.size <= SLICES
        )
    )


def _size(profile: MigProfile) -> tuple[int, int]:
    """What makes one profile larger than another."""
    return profile.memory, profile.slices


def _bits(at: MigPlacement) -> int:
    return ((1 << at.size) - 1) << at.start


def _turn(profile: MigProfile, at: MigPlacement) -> int:
    """When HAMi would try this placement: lower is earlier."""
    return -at.start if profile.name.startswith(_FROM_THE_TOP) else at.start
