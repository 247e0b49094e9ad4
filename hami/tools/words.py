"""Sizes, times and shares as people read them. Pure."""

from __future__ import annotations

from typing import Final

MIB: Final = 2**20
_NS: Final = 1_000_000_000


def mib(count: int | None) -> str:
    """Bytes as MiB: whole ones where they are, one digit behind the point else."""
    if count is None:
        return "-"
    whole, rest = divmod(count, MIB)
    if not rest:
        return f"{whole} MiB"
    return f"{count} B" if count < MIB else f"{count / MIB:.1f} MiB"


def limit(count: int | None) -> str:
    """A memory limit; None: there is none."""
    return "no limit" if count is None else mib(count)


def share(permille: int) -> str:
    """A share of a device's time; 0 and 1000: no limit."""
    return "no limit" if permille in {0, 1000} else f"{permille / 10:g} %"


def duration(ns: int) -> str:
    """Nanoseconds, in the unit that suits."""
    if ns >= _NS:
        return seconds(ns / _NS)
    return f"{ns / 1_000_000:.3g} ms" if ns >= 1_000_000 else f"{ns / 1000:.3g} us"


def seconds(value: float) -> str:
    """A length of time."""
    if value >= 172_800:
        return f"{value / 86_400:.1f} days"
    if value >= 7_200:
        return f"{value / 3_600:.1f} h"
    return f"{value / 60:.1f} min" if value >= 120 else f"{value:.3g} s"


def ago(value: float | None) -> str:
    """An age in seconds; None: never, below 0: not yet."""
    if value is None:
        return "never"
    return f"{seconds(value)} ago" if value >= 0 else f"in {seconds(-value)}"
