"""Tables of what was measured of the shim and the governor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.bench.markdown import Figures, table


def shares(measured: Figures) -> str:
    """A row for each kind of work, a column for each share."""
    rows = measured["figures"]["shares"]
    asked = sorted({row["share"] for row in rows})
    kinds: dict[tuple[Any, ...], dict[int, float]] = {}
    for row in rows:
        kind = (row["kernel us"], row["mode"], row["processes"])
        kinds.setdefault(kind, {})[row["share"]] = row["used"]
    head = ("kernel µs", "mode", "processes", *(f"{share} %" for share in asked))
    return table(head, [(*kind, *(used[share] for share in asked)) for kind, used in kinds.items()])


def share_facts(measured: Figures) -> str:
    figures = measured["figures"]
    settle = ", ".join(f"{name}: {value} s" for name, value in figures["settle s"].items())
    return table(
        ("", ""),
        [
            ("mean error, points", figures["mean error"]),
            ("worst error, points", figures["worst error"]),
            ("settled after", settle),
            ("lost by a container that may have all, %", figures["whole device"]["lost %"]),
            (
                f"the governor with {figures['cost']['containers']} busy containers, % of a core",
                figures["cost"]["percent of a core"],
            ),
        ],
    )


def pairs(measured: Figures) -> str:
    columns = ("shares", "kernel us", "mode", "used", "ratio error %")
    rows = [[row[name] for name in columns] for row in measured["figures"]["pairs"]]
    return table(("shares", "kernel µs", "mode", "used", "error of the ratio, %"), rows)


def alloc(measured: Figures) -> str:
    """Added nanoseconds: by pattern, then by the number of live pointers or of slots in use."""
    rows = measured["figures"]
    live = sorted({row["live"] for row in rows})
    names = {
        "again": "pair, addresses given out again",
        "fresh": "pair, always new addresses",
        "any": "pair, any of the live ones",
        "pool": "pair of the pool",
        "query": "memory query",
    }
    found = {(row["what"], row["live"], row["slots"]): _two_added(row) for row in rows}
    lines = [
        (text, *(found.get((what, count, 1), "-") for count in live))
        for what, text in names.items()
    ]
    return table(("added ns, p10 / p50; live pointers:", *(f"{count:,}" for count in live)), lines)


def _two_added(row: Mapping[str, float]) -> str:
    return f"{row['added_p10_ns']:.0f} / {row['added_ns']:.0f}"


def slots(measured: Figures) -> str:
    rows = [
        row for row in measured["figures"] if row["live"] == 0 and row["what"] in {"again", "query"}
    ]
    slots = sorted({row["slots"] for row in rows})
    found = {(row["what"], row["slots"]): _two_added(row) for row in rows}
    lines = [
        (text, *(found.get((what, count), "-") for count in slots))
        for what, text in (("again", "allocate and free"), ("query", "memory query"))
    ]
    return table(("added ns, p10 / p50; processes that hold memory:", *slots), lines)


def init(measured: Figures) -> str:
    rows = [
        (
            row["processes"],
            *(f"{row[f'cpu_{cut}_added_us'] / 1000:.2f} ms" for cut in ("p50", "p99")),
            *(f"{row[f'clock_{cut}_added_us'] / 1000:.2f} ms" for cut in ("p50", "p99")),
        )
        for row in measured["figures"]
    ]
    head = ("processes at once", "CPU, p50", "CPU, p99", "clock, p50", "clock, p99")
    return table(head, rows)


def launch(measured: Figures) -> str:
    rows = measured["figures"]
    loads = list(dict.fromkeys((row["threads"], row["processes"]) for row in rows))
    found = {(row["call"], row["situation"], row["threads"], row["processes"]): row for row in rows}
    lines = [
        (call, situation, *(_added(found[(call, situation, *load)]) for load in loads))
        for call, situation in dict.fromkeys((row["call"], row["situation"]) for row in rows)
    ]
    head = (f"{threads} in {processes}" for threads, processes in loads)
    return table(("call", "threads in processes:", *head), lines)


def _added(row: Mapping[str, Any]) -> str:
    times = f"{row['p50_ns']:.1f} / {row['p99_ns']:.1f}"
    if row["situation"] == "no shim":
        return times
    return f"{times} (+{row['added_p10_ns']:.1f}, +{row['added_p50_ns']:.1f})"
