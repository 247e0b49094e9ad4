"""What real devices offer in MIG mode, as their drivers report it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from hami.core.device import MigPlacement, MigProfile
from hami.core.quantity import MiB, Percent

Profiles = tuple[MigProfile, ...]


def profile(
    name: str, *, memory: int, cores: int, slices: int, starts: Iterable[int], size: int
) -> MigProfile:
    """A profile whose instances all have one size."""
    return MigProfile(
        name=name,
        memory=MiB(memory),
        cores=Percent(cores),
        slices=slices,
        placements=tuple(MigPlacement(start=start, size=size) for start in starts),
    )


A100: Final[Profiles] = (
    profile("1g.5gb", memory=4864, cores=15, slices=1, starts=range(7), size=1),
    profile("2g.10gb", memory=9984, cores=29, slices=2, starts=(0, 2, 4), size=2),
    profile("3g.20gb", memory=20096, cores=43, slices=3, starts=(0, 4), size=4),
    profile("7g.40gb", memory=40320, cores=100, slices=7, starts=(0,), size=8),
)
"""The profiles that are offered where nobody chose others."""
H100_ALL: Final[Profiles] = (
    profile("1g.10gb", memory=9984, cores=15, slices=1, starts=range(7), size=1),
    profile("1g.10gb+me", memory=9984, cores=15, slices=1, starts=range(7), size=1),
    profile("1g.20gb", memory=20096, cores=15, slices=1, starts=(0, 2, 4, 6), size=2),
    profile("2g.20gb", memory=20096, cores=29, slices=2, starts=(0, 2, 4), size=2),
    profile("3g.40gb", memory=40448, cores=43, slices=3, starts=(0, 4), size=4),
    profile("4g.40gb", memory=40448, cores=58, slices=4, starts=(0,), size=4),
    profile("7g.80gb", memory=81024, cores=100, slices=7, starts=(0,), size=8),
)
"""Every profile of the driver."""
A30: Final[Profiles] = (
    profile("1g.6gb", memory=5952, cores=25, slices=1, starts=range(4), size=1),
    profile("2g.12gb", memory=11968, cores=50, slices=2, starts=(0, 2), size=2),
    profile("4g.24gb", memory=24062, cores=100, slices=4, starts=(0,), size=4),
)
"""A device of four slices."""
