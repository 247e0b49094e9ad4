"""What the sandbox's commands show to people: tables that fit 80 columns, and the wait for a start.

Knows how things look; what there is to show comes as plain data.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from hami.sandbox.gpu import catalogue
from hami.sandbox.spec import Layout

UUID_SHOWN: Final = 12
"""``GPU-`` and eight digits: enough to tell devices apart, and ``-o json`` has the rest."""


def table(*headings: str) -> Table:
    """A table of this project's looks: no frame, two blanks between columns."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        made.add_column(heading, header_style="dim", overflow="fold")
    return made


def counted(number: int, thing: str) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


@contextmanager
def starting(layout: Layout) -> Iterator[None]:
    """Show that something is under way, on stderr, and what came of it."""
    console = Console(stderr=True, highlight=False)
    nodes = len(layout.names())
    gpus = sum(g.count for _, group in layout.names() for g in group.gpus)
    size = f"{counted(nodes, 'node')}, {counted(gpus, 'GPU')}"
    began = time.monotonic()
    if sys.stderr.isatty():
        with console.status(f"starting the sandbox: {size}"):
            yield
    else:
        yield
    console.print(f"the sandbox is up after {time.monotonic() - began:.1f} s: {size}")


def show(state: dict[str, Any]) -> None:
    """Print the state of a sandbox (see ``commands.status``) as tables."""
    console = Console(highlight=False)
    console.print(_nodes(state["nodes"]))
    console.print()
    console.print(_pods(state["pods"]) if state["pods"] else "no pods")
    console.print()
    facts = state["facts"]
    for name in ("isolation", "logs", "metrics"):
        console.print(f"{name}: {facts[name]}", soft_wrap=True, markup=False)
    console.print(f"export KUBECONFIG={facts['kubeconfig']}", soft_wrap=True, markup=False)


def _nodes(nodes: list[dict[str, Any]]) -> Table:
    rows = table("node", "GPU", "model", "shares", "memory MiB", "cores")
    for column in rows.columns[3:]:
        column.justify, column.no_wrap = "right", True
    for node in nodes:
        for d in node["devices"]:
            rows.add_row(
                node["name"],
                d["uuid"][:UUID_SHOWN],
                escape(d["model"]) if d["healthy"] else f"{escape(d['model'])} [red]unhealthy[/]",
                f"{d['used_slots']}/{d['slots']}",
                f"{d['used_memory']}/{d['memory']}",
                f"{d['used_cores']} %",
            )
        if not node["devices"]:
            rows.add_row(node["name"], "[dim]none[/]")
    return rows


def _pods(pods: list[dict[str, Any]]) -> Table:
    rows = table("pod", "phase", "node", "holds")
    for pod in pods:
        shares = (
            f"{d['uuid'][:UUID_SHOWN]}: {d['memory']} MiB"
            + (f", {d['cores']} %" if d["cores"] else "")
            for d in pod["devices"]
        )
        holds = "\n".join(shares) or escape(pod["message"])
        rows.add_row(pod["pod"], pod["phase"], pod["node"], holds)
    return rows


def show_models() -> None:
    """Print the GPU models that simulated nodes can have."""
    rows = table("model", "product", "memory MiB", "SMs", "compute capability")
    for model in catalogue.MODELS.values():
        rows.add_row(
            model.key,
            model.product,
            str(model.memory_bytes // 2**20),
            str(model.sm_count),
            ".".join(str(part) for part in model.compute_capability),
        )
    Console(highlight=False).print(rows)


def indented(content: RenderableType) -> Padding:
    """The table or text, every line of it one blank to the right."""
    return Padding(content, (0, 0, 0, 1))
