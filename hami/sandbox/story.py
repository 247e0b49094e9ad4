"""The demo's pods as they are shown: how far each has come, and what its container found.

Knows how it looks at 80 columns and wider; what has happened comes from ``demo``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hami.sandbox.screen import UUID_SHOWN, indented, table

STEPS: Final = ("admitted", "bound", "allocated", "running", "checked")
DONE: Final = "[green]✔[/]"
_OPEN: Final = "[dim]…[/]"
_RESULTS: Final = {0: "CUDA_SUCCESS", 2: "OUT_OF_MEMORY"}
"""Results of the driver as they are shown; CUDA_ERROR_OUT_OF_MEMORY is what is hoped for."""
OUT_OF_MEMORY: Final = 2


@dataclass(kw_only=True)
class Story:
    """What has been seen of one pod so far, with the seconds since it was created."""

    name: str
    limits: dict[str, Any]
    began: float
    steps: dict[str, float] = field(default_factory=dict)
    node: str = ""
    report: dict[str, Any] | None = None
    why_not: str = ""

    def see(self, step: str, now: float) -> None:
        """Note when a step was first seen done."""
        self.steps.setdefault(step, now - self.began)

    @property
    def asks(self) -> str:
        """The request in words."""
        limits = {key.partition("/")[2]: value for key, value in self.limits.items()}
        gpus = int(limits["gpu"])
        each = " each" if gpus > 1 else ""
        words = [f"{gpus} GPU" if gpus == 1 else f"{gpus} GPUs", f"{limits['gpumem']} MiB{each}"]
        return ", ".join([*words, f"{limits['gpucores']} %"] if "gpucores" in limits else words)

    @property
    def told(self) -> bool:
        """Whether it has come to its end: checked inside, or refused with a reason."""
        return self.report is not None or bool(self.why_not)

    @property
    def kept(self) -> bool:
        """Whether the container found exactly what it asked for, on every device."""
        report = self.report
        return report is not None and bool(report.get("ok")) and all(map(_held, _devices(report)))

    def lines(self) -> Iterator[str]:
        """How far it has come, step by step, for output that cannot be redrawn."""
        yield f"pod {self.name} asks for {self.asks}"
        for step, seconds in self.steps.items():
            yield f"  {step} after {_milliseconds(seconds)}"
        if self.why_not:
            yield f"  refused: {self.why_not}"


def picture(stories: Iterable[Story]) -> Group:
    """How far each pod is; below it what the containers found, and why one has no place."""
    told = list(stories)
    parts: list[RenderableType] = [Text(), indented(_progress(told))]
    if any(story.report for story in told):
        parts += [Text(), " [dim]and what the processes inside them see:[/]", Text()]
        parts.append(indented(_findings(told)))
    for story in told:
        if story.why_not:
            why = f"[bold]{story.name}[/] stays [yellow]Pending[/]: {escape(story.why_not)}"
            parts += [Text(), indented(why)]
    return Group(*parts)


def _progress(stories: list[Story]) -> Table:
    rows = table("pod", "asks for", *STEPS)
    for column in rows.columns[2:]:
        column.justify = "right"
    for column in rows.columns:
        column.no_wrap = True
    for story in stories:
        cells = (_step(story, step) for step in STEPS)
        rows.add_row(f"[bold]{story.name}[/]", story.asks, *cells)
    return rows


def _step(story: Story, step: str) -> str:
    seconds = story.steps.get(step)
    if seconds is not None:
        return f"[green]{_milliseconds(seconds)}[/]"
    if story.why_not:
        return "[yellow]no[/]" if step == "bound" else ""
    return _OPEN


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"


def _findings(stories: list[Story]) -> Table:
    """One row a device, as the process in the container sees it."""
    rows = table("pod", "node", "device", "CUDA", "NVML", "all of it", "one byte more")
    for story in stories:
        for device in _devices(story.report or {}):
            fill = device.get("fill") or {}
            result = fill.get("one_more_byte", -1)
            rows.add_row(
                f"[bold]{story.name}[/]",
                story.node,
                device["uuid"][:UUID_SHOWN],
                _mib(device["cuda"]["total"]),
                _mib(device["nvml"]["total"]),
                _mark("allocated", good=bool(fill.get("ok"))),
                _mark(_RESULTS.get(result, f"error {result}"), good=result == OUT_OF_MEMORY),
            )
    return rows


def _devices(report: dict[str, Any]) -> list[dict[str, Any]]:
    devices: list[dict[str, Any]] = report.get("devices") or []
    return devices


def _held(device: dict[str, Any]) -> bool:
    fill = device.get("fill") or {}
    return bool(fill.get("ok")) and fill.get("one_more_byte") == OUT_OF_MEMORY


def _mib(size_bytes: int) -> str:
    return f"{size_bytes // 2**20} MiB"


def _mark(word: str, *, good: bool) -> str:
    return f"[green]{word}[/]" if good else f"[red]{word}[/]"
