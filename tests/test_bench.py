"""The benchmarks still run, at sizes of no meaning, and their figures still fill the page."""

from __future__ import annotations

import json
import re
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.bench import (
    bench_alloc,
    bench_burst,
    bench_cold_start,
    bench_extender,
    bench_init,
    bench_memory,
    bench_resize,
    bench_share,
    bench_start,
    bench_storm,
    harness,
    pictures,
    plot,
    report,
)
from tests.support import governed

DOCS = Path(__file__).parents[1] / "docs"


def figures(file: Path) -> Any:
    measured = json.loads(file.read_text())
    assert measured["machine"]["cores"] > 0
    return measured["figures"]


@pytest.mark.slow
async def test_extender(tmp_path: Path) -> None:
    file = tmp_path / "extender.json"
    await bench_extender.main(
        f"--nodes 30 --sustain 40 --through 20 --known 10 --ways exclusive:binpack --json {file}"
        .split()
    )  # fmt: skip

    rows = figures(file)

    assert [(row["nodes"], row["asked"]) for row in rows] == [
        (30, "all"), (30, "sample"), (40, "all"), (40, "sample"),
    ]  # fmt: skip
    assert all(row["known"]["filter"]["p50_ms"] > 0 for row in rows)
    assert [row["through"]["pods"] for row in rows[2:]] == [20, 20]
    assert "pods/s" in report.TABLES["through"][1]({"figures": rows})
    ET.fromstring(pictures.picture_of(rows))


@pytest.mark.slow
async def test_storm(tmp_path: Path) -> None:
    file = tmp_path / "storm.json"
    await bench_storm.main(
        f"--nodes 20 --pods 60 --pod-events 50 --spell 10 --rounds 1 --json {file}".split()
    )

    found = figures(file)

    assert found["quiet"]["refused"] == found["storm"]["refused"] == 0
    assert found["filter_p99_ratio"] > 0
    assert "storm over quiet" in report.TABLES["storm"][1]({"figures": found})


@pytest.mark.slow
async def test_memory_and_cold_start(tmp_path: Path) -> None:
    memory, cold = tmp_path / "memory.json", tmp_path / "cold.json"
    await bench_memory.main(f"--sizes 5 20:10 10:60 --json {memory}".split())
    await bench_cold_start.main(f"--nodes 20 --json {cold}".split())

    assert figures(memory)["fit"]["empty_mib"] > 0
    assert figures(cold)[0]["reservations"] == 120
    assert "MiB" in report.TABLES["memory"][1](json.loads(memory.read_text()))
    assert "| 20 | 120 |" in report.TABLES["cold-start"][1](json.loads(cold.read_text()))


@pytest.mark.slow
async def test_burst(tmp_path: Path) -> None:
    file = tmp_path / "burst.json"
    await bench_burst.main(f"--pods 3 --rounds 1 --identical 12 --nodes 2 --json {file}".split())

    found = figures(file)

    assert found["one node"]["late"] == 0
    assert [(row["mode"], row["failed"]) for row in found["binpack"]] == [
        ("exclusive", 0), ("cooperative", 0),
    ]  # fmt: skip
    assert "| 3 |" in report.TABLES["one-node"][1]({"figures": found})
    assert "| exclusive | 12 |" in report.TABLES["identical"][1]({"figures": found})


@pytest.mark.slow
async def test_start() -> None:
    found = await bench_start.main(1, 2)

    assert set(found) == {"one at a time", "2 at once"}
    assert "one at a time" in report.TABLES["start"][1]({"figures": found})


@pytest.mark.slow
def test_resize(tmp_path: Path) -> None:
    file = tmp_path / "resize.json"
    assert bench_resize.main(f"--rounds 2 --json {file}".split()) == 0

    assert "| more memory |" in report.TABLES["resize"][1]({"figures": figures(file)})


def test_memory_calls_of_the_shim(tmp_path: Path) -> None:
    file = tmp_path / "alloc.json"
    assert bench_alloc.main(f"--rounds 2 --calls 500 --live 0 2000 --json {file}".split()) == 0

    rows = figures(file)

    assert {(row["what"], row["live"], row["slots"]) for row in rows} == {
        ("again", 0, 1), ("query", 0, 1), ("again", 2000, 1), ("query", 2000, 1), ("any", 2000, 1),
        ("pool", 0, 1), ("pool", 2000, 1),
        ("fresh", 0, 1), ("fresh", 2000, 1), ("again", 0, 16), ("query", 0, 16),
        ("again", 0, 256), ("query", 0, 256),
    }  # fmt: skip
    assert all(row["shim_ns"] > 0 for row in rows)
    assert "| pair, always new addresses |" in report.TABLES["alloc"][1]({"figures": rows})
    assert "| 1 | 16 | 256 |" in report.TABLES["slots"][1]({"figures": rows})
    ET.fromstring(pictures.picture_of_allocations(rows))


def test_start_of_a_program_with_the_shim(tmp_path: Path) -> None:
    file = tmp_path / "init.json"
    assert bench_init.main(f"--rounds 2 --processes 1 3 --json {file}".split()) == 0

    rows = figures(file)

    assert [row["processes"] for row in rows] == [1, 3]
    assert all(row["clock_p50_plain_us"] > 0 for row in rows)
    assert "| 3 |" in report.TABLES["init"][1]({"figures": rows})


def test_memory_is_fitted_exactly_where_it_grows_evenly() -> None:
    rows = [
        {"nodes": nodes, "pods": pods, "resident_mib": 90 + 7 * nodes / 1000 + 30 * pods / 10_000}
        for nodes, pods in ((0, 0), (5000, 0), (1000, 10_000))
    ]

    assert bench_memory.fit(rows) == {
        "empty_mib": 90.0, "per_1000_nodes_mib": 7.0, "per_10000_pods_mib": 30.0,
    }  # fmt: skip


@pytest.mark.parametrize(("nodes", "sample"), [(10, 10), (99, 99), (100, 100), (5000, 500)])
def test_the_sample_is_that_of_kube_scheduler(nodes: int, sample: int) -> None:
    assert harness.sample_of(nodes) == sample


def test_a_chart_shows_every_series_between_whole_steps() -> None:
    picture = plot.chart(
        {"a < b": [(100, 1.5), (5000, 40.0)], "c": [(100, 3.0)]}, title="T", x="n", y="ms"
    )

    root = ET.fromstring(picture)
    texts = [element.text for element in root.iter() if element.tag.endswith("}text")]

    assert {"a < b", "c", "n", "ms", "100", "5 000", "1", "50"} <= set(texts)
    assert sum(element.tag.endswith("circle") for element in root.iter()) == 3


def test_only_what_was_measured_is_written_anew() -> None:
    page = (
        "before\n<!-- measured: start -->\nold\n<!-- end -->\n"
        "<!-- measured: memory -->\nkept\n<!-- end -->\nafter\n"
    )
    measured = {"start": {"figures": {"one": {"p50_ms": 10.0, "p99_ms": 2500.0}}}}

    written = report.fill(page, measured)

    assert "| one | 0.01 s | 2.50 s |" in written
    assert "old" not in written
    assert "kept" in written
    assert report.fill(written, measured) == written


def test_every_table_has_its_place_on_the_page() -> None:
    page = (DOCS / "performance.md").read_text()

    assert sorted(re.findall(r"<!-- measured: ([-a-z]+) -->", page)) == sorted(report.TABLES)


def test_every_benchmark_writes_its_figures_where_it_is_told() -> None:
    """As ``scripts/bench`` tells each of them."""
    for file in (DOCS.parent / "tests" / "bench").glob("bench_*.py"):
        assert "harness.write_json(options.json" in file.read_text(), file.name


def test_the_page_shows_the_figures_that_are_kept() -> None:
    measured = {
        file.stem: json.loads(file.read_text()) for file in (DOCS / "measurements").glob("*.json")
    }
    page = (DOCS / "performance.md").read_text()

    assert report.fill(page, measured) == page, "stale: run scripts/performance-tables"


@pytest.mark.slow
async def test_share() -> None:
    case = bench_share.Case(1000, "eager", 1)
    with tempfile.TemporaryDirectory() as place:
        async with governed.governed(Path(place)) as bench:
            rows = await bench_share.share_errors(bench, case, [30, 60], 1.0)
            found = {
                "shares": rows,
                "mean error": 0.0,
                "worst error": 0.0,
                "pairs": [{"shares": "30/70", "kernel us": 1, "mode": "eager", "used": "",
                           "ratio error %": 0.0}],
                "settle s": await bench_share.settling(bench),
                "whole device": await bench_share.whole_device(bench, 0.5),
                "cost": await bench_share.governor_cost(1, 2),
            }  # fmt: skip

    assert [row["share"] for row in rows] == [30, 60]
    assert all(row["used"] > 0 and row["starved"] == 0 for row in rows)
    for name in ("shares", "share-facts", "share-pairs"):
        assert "|" in report.TABLES[name][1]({"figures": found})
    ET.fromstring(pictures.picture_of_shares(found))
