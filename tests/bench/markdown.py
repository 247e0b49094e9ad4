"""What all tables share: rows as Markdown, and figures as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Figures = Any


def rows_of(figures: Figures, *, asked: str) -> list[Any]:
    """One row of each size of cluster."""
    found: dict[int, Any] = {}
    for row in figures:
        if row["asked"] == asked:
            found.setdefault(row["nodes"], row)
    return [found[nodes] for nodes in sorted(found)]


def both(figures: Mapping[str, float] | None) -> str:
    return f"{figures['p50_ms']:.1f} / {figures['p99_ms']:.1f}" if figures else "-"


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with an empty line after it."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)
