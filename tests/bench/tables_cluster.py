"""Tables of what was measured of controller, agent and sandbox."""

from __future__ import annotations

from tests.bench.markdown import Figures, both, rows_of, table


def machine(measured: Figures) -> str:
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


def latency(measured: Figures) -> str:
    rows = [
        (
            row["nodes"],
            both(row["known"]["filter"]),
            both(row["new"]["filter"]),
            both(row["unfit"]),
            both(row["known"].get("prioritize")),
            both(row["bind"]),
        )
        for row in rows_of(measured["figures"], asked="all")
    ]
    return table(("nodes", "known", "new", "unfit", "prioritize", "bind"), rows)


def through(measured: Figures) -> str:
    rows = [
        (
            row["nodes"],
            row["mode"],
            row["policy"],
            row["asked"],
            row["through"]["pods_per_second"],
            both(row["through"]["decide"]),
            both(row["through"]["bind"]),
            row["through"]["cpu_ms_per_pod"],
            row["through"]["refused"],
        )
        for row in measured["figures"]
        if "through" in row
    ]
    head = ("nodes", "mode", "policy", "asked about", "pods/s", "decide", "bind", "CPU ms/pod")
    return table((*head, "refused"), rows)


def storm(measured: Figures) -> str:
    figures = measured["figures"]
    verbs = ("filter", "decide", "bind")
    rows = [
        (name, *(both(figures[name][verb]) for verb in verbs), figures[name]["cores"])
        for name in ("quiet", "storm")
    ]
    ratio = ("p99, storm over quiet", *(figures[f"{verb}_p99_ratio"] for verb in verbs), "")
    return table(("", "filter", "filter and prioritize", "bind", "cores"), [*rows, ratio])


def memory(measured: Figures) -> str:
    fitted = measured["figures"]["fit"]
    return table(
        ("an empty cluster", "each 1000 nodes", "each 10 000 pods"),
        [tuple(f"{fitted[key]} MiB" for key in fitted)],
    )


def cold_start(measured: Figures) -> str:
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


def one_node(measured: Figures) -> str:
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


def identical(measured: Figures) -> str:
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


def start(measured: Figures) -> str:
    rows = [
        (name, f"{row['p50_ms'] / 1000:.2f} s", f"{row['p99_ms'] / 1000:.2f} s")
        for name, row in measured["figures"].items()
    ]
    return table(("", "p50", "p99"), rows)


def resize(measured: Figures) -> str:
    found = measured["figures"]["growth"]
    return table(
        ("", "p50", "p99", "longest"),
        [("more memory", *(f"{found[f'{name}_ms']:.0f} ms" for name in ("p50", "p99", "max")))],
    )


def preemption(measured: Figures) -> str:
    columns = ("", "asked", "busy ms", "loop ms", "victims")
    head = ("", "asks for", "search", "loop", "victims")
    return table(head, [[row[name] for name in columns] for row in measured["figures"]])


def topology(measured: Figures) -> str:
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


def scrape(measured: Figures) -> str:
    names = {
        "next copy": "copy, on the event loop",
        "first scrape": "first scrape",
        "next scrape": "next, one node in fifty changed",
        "library": "the same lines by prometheus_client, each time",
    }
    return table(("", ""), [(text, measured["figures"][key]) for key, text in names.items()])


def failover(measured: Figures) -> str:
    names = {
        "given_back": "the leader stops",
        "killed": "the leader is killed, from when its Lease is over",
    }
    rows = [
        (text, *(f"{measured['figures'][f'{key}_{what}_ms']} ms" for what in ("p50", "max")))
        for key, text in names.items()
    ]
    return table(("", "p50", "longest"), rows)
