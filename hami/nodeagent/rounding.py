"""More exact figures than the driver's whole percents, within what rounding leaves open. Pure.

A container with eight processes of 1.4 % each reads as 8 %. But the device as a whole is measured
too: what its figure has more, or less, than all processes together is laid to the containers, by
how many processes each has, and never more than rounding can have put them off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

HALF: Final = 0.5
"""Points of a hundred by which a figure may be off."""


@dataclass(frozen=True, slots=True)
class Part:
    """One container's use of a device, in points of a hundred."""

    percent: float
    """Of all its processes, as the driver has it."""
    processes: int
    """How many of them worked."""


def refine(parts: Sequence[Part], *, whole: float | None) -> list[float]:
    """What each container used, in points.

    Args:
        parts: All containers on the device; nobody else works there.
        whole: What the driver says of the device in the same time; None: nothing.
    """
    plain = [part.percent for part in parts]
    slack = HALF * sum(part.processes for part in parts)
    if whole is None or slack <= 0:
        return plain
    missing = whole - sum(plain)
    if abs(missing) > slack + HALF:
        return plain  # of another time
    portion = min(max(missing / slack, -1.0), 1.0)
    return [max(part.percent + HALF * part.processes * portion, 0.0) for part in parts]
