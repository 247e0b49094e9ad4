"""From measurements to ``docs/performance.md``: the tables between its marks, and its pictures.

``python -m tests.bench.report docs``, as ``scripts/performance-tables`` does. Prose is written by
hand; a table is whatever stands between ``<!-- measured: NAME -->`` and ``<!-- end -->``. What was
not measured keeps its table.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tests.bench import tables_cluster, tables_shim
from tests.bench.markdown import Figures
from tests.bench.pictures import PICTURES

_BLOCK: Final = re.compile(r"(<!-- measured: ([-a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


TABLES: Final[dict[str, tuple[str, Callable[[Figures], str]]]] = {
    "machine": ("extender", tables_cluster.machine),
    "latency": ("extender", tables_cluster.latency),
    "through": ("extender", tables_cluster.through),
    "storm": ("storm", tables_cluster.storm),
    "memory": ("memory", tables_cluster.memory),
    "cold-start": ("cold_start", tables_cluster.cold_start),
    "failover": ("failover", tables_cluster.failover),
    "one-node": ("burst", tables_cluster.one_node),
    "identical": ("burst", tables_cluster.identical),
    "start": ("start", tables_cluster.start),
    "resize": ("resize", tables_cluster.resize),
    "preemption": ("preemption", tables_cluster.preemption),
    "topology": ("topology", tables_cluster.topology),
    "scrape": ("scrape", tables_cluster.scrape),
    "shares": ("share", tables_shim.shares),
    "share-facts": ("share", tables_shim.share_facts),
    "share-pairs": ("share", tables_shim.pairs),
    "alloc": ("alloc", tables_shim.alloc),
    "slots": ("alloc", tables_shim.slots),
    "init": ("init", tables_shim.init),
    "launch": ("launch", tables_shim.launch),
}


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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
