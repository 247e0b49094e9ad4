"""A line chart as SVG, both axes logarithmic. Pure: series in, text out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

WIDTH: Final = 720
HEIGHT: Final = 420
LEFT: Final = 70
RIGHT: Final = 170
TOP: Final = 48
BOTTOM: Final = 56
COLOURS: Final = (
    *("#1f6feb", "#d1242f", "#1a7f37", "#9a6700"),
    *("#8250df", "#57606a", "#bf3989", "#00a3a3"),
)

Points = Sequence[tuple[float, float]]


def chart(series: Mapping[str, Points], *, title: str, x: str, y: str) -> str:
    """The picture; every value must be above 0."""
    points = [point for line in series.values() for point in line]
    across = _Axis([p[0] for p in points], LEFT, WIDTH - RIGHT)
    up = _Axis([p[1] for p in points], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text((LEFT, 26), title, size=15, anchor="start"),
        *_grid(across, up),
        _text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14), x),
        f'<g transform="translate(18 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)">'
        f"{_text((0, 0), y)}</g>",
    ]
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        parts += _line(line, across, up, colour)
        at = TOP + 12 + 22 * number
        parts.append(f'<rect x="{WIDTH - RIGHT + 16}" y="{at - 9}" width="16" height="4" '
                     f'fill="{colour}"/>')  # fmt: skip
        parts.append(_text((WIDTH - RIGHT + 40, at - 3), name, anchor="start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Axis:
    """From values to pixels, between whole steps of 1, 2, 5."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.ticks = _ticks(min(values), max(values))
        self._low = math.log(self.ticks[0])
        self._span = math.log(self.ticks[-1]) - self._low
        self._start, self._length = start, end - start

    def at(self, value: float) -> float:
        return self._start + self._length * (math.log(value) - self._low) / self._span


def _ticks(low: float, high: float) -> list[float]:
    """Steps of 1, 2 and 5 that enclose the values."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    steps = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    first = max(i for i, step in enumerate(steps) if step <= low * (1 + 1e-9))
    last = min(i for i, step in enumerate(steps) if step >= high * (1 - 1e-9))
    return steps[first : max(last, first + 1) + 1]


def _grid(across: _Axis, up: _Axis) -> list[str]:
    left, right, low, high = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, TOP
    lines = []
    for tick in across.ticks:
        at = across.at(tick)
        lines.append(_stroke((at, low), (at, high)))
        lines.append(_text((at, low + 18), _number(tick)))
    for tick in up.ticks:
        at = up.at(tick)
        lines.append(_stroke((left, at), (right, at)))
        lines.append(_text((left - 8, at + 4), _number(tick), anchor="end"))
    return lines


def _line(points: Points, across: _Axis, up: _Axis, colour: str) -> list[str]:
    places = [(across.at(x), up.at(y)) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>', *dots]


def _stroke(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#d0d7de"/>'


def _text(at: tuple[float, float], text: str, *, size: int = 12, anchor: str = "middle") -> str:
    x, y = at
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'fill="#1f2328">{escape(text)}</text>'
    )


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if value >= 1 else f"{value:g}"
