"""Pictures of what was measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.bench import plot
from tests.bench.markdown import Figures, rows_of


def picture_of(figures: Figures) -> str:
    """How filter's time grows with the cluster."""
    rows = rows_of(figures, asked="all")
    lines = {
        "known, p50": [(row["nodes"], row["known"]["filter"]["p50_ms"]) for row in rows],
        "known, p99": [(row["nodes"], row["known"]["filter"]["p99_ms"]) for row in rows],
        "new, p50": [(row["nodes"], row["new"]["filter"]["p50_ms"]) for row in rows],
        "new, p99": [(row["nodes"], row["new"]["filter"]["p99_ms"]) for row in rows],
    }
    return plot.chart(
        lines, title="Filter over HTTP, asked about every node", x="nodes", y="milliseconds"
    )


def picture_of_allocations(figures: Figures) -> str:
    """What the shim adds to a pair, by the number of live pointers."""
    names = {"again": "given out again", "fresh": "always new", "any": "any of the live"}
    lines = {
        text: [
            (row["live"], max(row["added_p10_ns"], 1.0))
            for row in figures
            if row["what"] == what and row["slots"] == 1 and row["live"] > 0
        ]
        for what, text in names.items()
    }
    return plot.chart(
        lines,
        title="What the shim adds to cuMemAlloc and cuMemFree",
        x="live pointers",
        y="nanoseconds",
    )


def picture_of_shares(figures: Figures) -> str:
    """What was used of a device over what was asked for."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in figures["shares"]:
        name = f"{row['mode']} {row['kernel us']} µs, {row['processes']}"
        lines.setdefault(name, []).append((row["share"], max(row["used"], 0.1)))
    return plot.chart(
        lines, title="Share of a GPU, asked for and used", x="percent asked", y="percent used"
    )


PICTURES: Final[dict[str, tuple[str, Callable[[Figures], str]]]] = {
    "filter-latency.svg": ("extender", picture_of),
    "allocations.svg": ("alloc", picture_of_allocations),
    "share.svg": ("share", picture_of_shares),
}
