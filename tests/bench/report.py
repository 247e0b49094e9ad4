"""From measurements to ``docs/performance.md``: the tables between its marks, and its pictures.

``python -m tests.bench.report docs``, as ``scripts/performance-tables`` does. Prose is written by
hand; a table is whatever stands between ``<!-- measured: NAME -->`` and ``<!-- end -->``. What was
not measured keeps its table.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench import plot

Figures = Any
_BLOCK: Final = re.compile(r"(<!-- measured: ([-a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main(docs: Path) -> None:
    """Write both files anew."""
    measured = {
        file.stem: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted((docs / "measurements").glob("*.json"))
    }
    page = docs / "performance.md"
    page.write_text(fill(page.read_text(encoding="utf-8"), measured), encoding="utf-8")
    for name, (source, draw) in PICTURES.items():
        if source in measured:
            picture = draw(measured[source]["figures"])
            (docs / "images" / name).write_text(picture, encoding="utf-8")


def fill(text: str, measured: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with the tables of what was measured."""

    def block(match: re.Match[str]) -> str:
        source, make = TABLES[match[2]]
        if source not in measured:
            return match[0]
        table = make(measured[source])
        return f"{match[1]}\n{table}\n{match[3]}"

    return _BLOCK.sub(block, text)


def _machine(measured: Figures) -> str:
    facts = measured["machine"]
    return table(
        ("processor", "cores", "memory", "Python"),
        [
            (
                facts["processor"],
                facts["cores"],
                f"{facts['memory_gib']} GiB",
                facts["python"],
            )
        ],
    )


def _latency(measured: Figures) -> str:
    rows = [
        (
            row["nodes"],
            _both(row["known"]["filter"]),
            _both(row["new"]["filter"]),
            _both(row["unfit"]),
            _both(row["known"].get("prioritize")),
            _both(row["bind"]),
        )
        for row in _rows(measured["figures"], asked="all")
    ]
    return table(("nodes", "known", "new", "unfit", "prioritize", "bind"), rows)


def _through(measured: Figures) -> str:
    rows = [
        (
            row["nodes"],
            row["mode"],
            row["policy"],
            row["asked"],
            row["through"]["pods_per_second"],
            _both(row["through"]["decide"]),
            _both(row["through"]["bind"]),
            row["through"]["cpu_ms_per_pod"],
            row["through"]["refused"],
        )
        for row in measured["figures"]
        if "through" in row
    ]
    head = ("nodes", "mode", "policy", "asked about", "pods/s", "decide", "bind", "CPU ms/pod")
    return table((*head, "refused"), rows)


def _storm(measured: Figures) -> str:
    figures = measured["figures"]
    verbs = ("filter", "decide", "bind")
    rows = [
        (name, *(_both(figures[name][verb]) for verb in verbs), figures[name]["cores"])
        for name in ("quiet", "storm")
    ]
    ratio = ("p99, storm over quiet", *(figures[f"{verb}_p99_ratio"] for verb in verbs), "")
    return table(("", "filter", "filter and prioritize", "bind", "cores"), [*rows, ratio])


def _memory(measured: Figures) -> str:
    fitted = measured["figures"]["fit"]
    return table(
        ("an empty cluster", "each 1000 nodes", "each 10 000 pods"),
        [tuple(f"{fitted[key]} MiB" for key in fitted)],
    )


def _cold_start(measured: Figures) -> str:
    rows = [
        (
            row["nodes"],
            row["pods"],
            f"{row['ready_seconds']} s",
            f"{row['sync_seconds']} s",
            f"{row['list_seconds']} s",
            f"{row['resident_mib']} MiB",
        )
        for row in measured["figures"]
    ]
    head = ("nodes", "pods", "from start to `/readyz`", "of it sync", "lists alone", "resident")
    return table(head, rows)


def _one_node(measured: Figures) -> str:
    row = measured["figures"]["one node"]
    running = row["running"]
    return table(
        ("pods", "running, p50", "running, p99", "all, worst of the rounds", "late"),
        [
            (
                row["pods"],
                f"{running['p50_ms'] / 1000:.2f} s",
                f"{running['p99_ms'] / 1000:.2f} s",
                f"{row['all_seconds']} s",
                row["late"],
            )
        ],
    )


def _identical(measured: Figures) -> str:
    rows = [
        (
            row["mode"],
            row["pods"],
            f"{row['seconds']} s",
            row["pods_per_second"],
            f"{row['failed']} ({row['failed_percent']} %)",
            row["late"],
            row["nodes_used"],
        )
        for row in measured["figures"]["binpack"]
    ]
    head = ("mode", "pods", "until all are bound", "pods/s", "failed binds", "late", "nodes used")
    return table(head, rows)


def _start(measured: Figures) -> str:
    rows = [
        (name, f"{row['p50_ms'] / 1000:.2f} s", f"{row['p99_ms'] / 1000:.2f} s")
        for name, row in measured["figures"].items()
    ]
    return table(("", "p50", "p99"), rows)


def _preemption(measured: Figures) -> str:
    columns = ("", "asked", "busy ms", "loop ms", "victims")
    head = ("", "asks for", "search", "loop", "victims")
    return table(head, [[row[name] for name in columns] for row in measured["figures"]])


def _topology(measured: Figures) -> str:
    rows = [
        (
            row["count"],
            row["candidates"],
            row["later ms"],
            row.get("plain ms", "-"),
            row.get("x", "-"),
        )
        for row in measured["figures"]
        if row["candidates"] > 16 or (row["candidates"] == 16 and row["count"] % 4 == 0)
    ]
    return table(("devices asked", "of", "ms", "every set in turn, ms", "times faster"), rows)


def _scrape(measured: Figures) -> str:
    names = {
        "next copy": "copy, on the event loop",
        "first scrape": "first scrape",
        "next scrape": "next, one node in fifty changed",
        "library": "the same lines by prometheus_client, each time",
    }
    return table(("", ""), [(text, measured["figures"][key]) for key, text in names.items()])


def _shares(measured: Figures) -> str:
    """A row for each kind of work, a column for each share."""
    rows = measured["figures"]["shares"]
    asked = sorted({row["share"] for row in rows})
    kinds: dict[tuple[Any, ...], dict[int, float]] = {}
    for row in rows:
        kind = (row["kernel us"], row["mode"], row["processes"])
        kinds.setdefault(kind, {})[row["share"]] = row["used"]
    head = ("kernel µs", "mode", "processes", *(f"{share} %" for share in asked))
    return table(head, [(*kind, *(used[share] for share in asked)) for kind, used in kinds.items()])


def _share_facts(measured: Figures) -> str:
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


def _pairs(measured: Figures) -> str:
    columns = ("shares", "kernel us", "mode", "used", "ratio error %")
    rows = [[row[name] for name in columns] for row in measured["figures"]["pairs"]]
    return table(("shares", "kernel µs", "mode", "used", "error of the ratio, %"), rows)


def _failover(measured: Figures) -> str:
    names = {
        "given_back": "the leader stops",
        "killed": "the leader is killed, from when its Lease is over",
    }
    rows = [
        (text, *(f"{measured['figures'][f'{key}_{what}_ms']} ms" for what in ("p50", "max")))
        for key, text in names.items()
    ]
    return table(("", "p50", "longest"), rows)


def _alloc(measured: Figures) -> str:
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


def _slots(measured: Figures) -> str:
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


def _init(measured: Figures) -> str:
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


def _launch(measured: Figures) -> str:
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


TABLES: Final[dict[str, tuple[str, Callable[[Figures], str]]]] = {
    "machine": ("extender", _machine),
    "latency": ("extender", _latency),
    "through": ("extender", _through),
    "storm": ("storm", _storm),
    "memory": ("memory", _memory),
    "cold-start": ("cold_start", _cold_start),
    "failover": ("failover", _failover),
    "one-node": ("burst", _one_node),
    "identical": ("burst", _identical),
    "start": ("start", _start),
    "preemption": ("preemption", _preemption),
    "topology": ("topology", _topology),
    "scrape": ("scrape", _scrape),
    "shares": ("share", _shares),
    "share-facts": ("share", _share_facts),
    "share-pairs": ("share", _pairs),
    "alloc": ("alloc", _alloc),
    "slots": ("alloc", _slots),
    "init": ("init", _init),
    "launch": ("launch", _launch),
}


def picture_of(figures: Figures) -> str:
    """How filter's time grows with the cluster."""
    rows = _rows(figures, asked="all")
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


def _rows(figures: Figures, *, asked: str) -> list[Any]:
    """One row of each size of cluster."""
    found: dict[int, Any] = {}
    for row in figures:
        if row["asked"] == asked:
            found.setdefault(row["nodes"], row)
    return [found[nodes] for nodes in sorted(found)]


def _both(figures: Mapping[str, float] | None) -> str:
    return f"{figures['p50_ms']:.1f} / {figures['p99_ms']:.1f}" if figures else "-"


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with an empty line after it."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
