"""Checks of compute: how exactly shares are held, alone and side by side, and how fast one yields.

A share is work done by time passed: a kernel counts for as long as it takes on the idle device.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.gpu.card import WORKER, Card, Finding, limited, said

SETTLE_SECONDS = 1.5
MEAN_ERROR_POINTS = 2.0
RATIO_ERROR = 0.05
BLOCK_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is tried."""

    shares: Sequence[int] = tuple(range(10, 100, 10))
    microseconds: Sequence[int] = (10, 1000, 50_000)
    ways: Sequence[str] = ("eager", "graph", "streams")
    seconds: float = 4.0


def shares(card: Card, plan: Plan) -> Iterator[Finding]:
    """One program alone, held to a share."""
    for microseconds in plan.microseconds:
        for way in plan.ways:
            errors = []
            measured = {}
            for percent in plan.shares:
                (got,) = _side_by_side(card, [(percent, way, microseconds)], plan.seconds)
                measured[percent] = round(got, 2)
                errors.append(abs(got - percent))
            mean = sum(errors) / len(errors)
            yield Finding(
                check="shares", what=f"{way}, kernels of {microseconds} us, percent",
                measured=measured, expected=f"mean error <= {MEAN_ERROR_POINTS} points",
                ok=mean <= MEAN_ERROR_POINTS, note=f"mean error {mean:.2f}",
            )  # fmt: skip


def pairs(card: Card, plan: Plan) -> Iterator[Finding]:
    """Two programs side by side."""
    for first, second in ((30, 70), (10, 90), (50, 50)):
        got = _side_by_side(card, [(first, "eager", 1000), (second, "eager", 1000)], plan.seconds)
        ratio = got[0] / max(got[1], 1e-9)
        wanted = first / second
        yield Finding(
            check="pairs", what=f"{first} to {second}, percent",
            measured=[round(share, 2) for share in got], expected=f"ratio {wanted:.3f}",
            ok=abs(ratio / wanted - 1) <= RATIO_ERROR, note=f"ratio {ratio:.3f}",
        )  # fmt: skip


def _side_by_side(
    card: Card, programs: Sequence[tuple[int, str, int]], seconds: float
) -> list[float]:
    """Percent of the device's time that each got, after they have settled."""
    whole = seconds + 2 * SETTLE_SECONDS
    started = [
        card.start(
            limited("--cores", str(percent), "--policy", "force",
                    command=[*WORKER, "spin", str(us), str(whole), way])
        )
        for percent, way, us in programs
    ]  # fmt: skip
    for process in started:
        said(process)
    begin = time.monotonic() + SETTLE_SECONDS
    found = [_share(process, begin, begin + seconds) for process in started]
    card.stop()
    return found


def _share(process: subprocess.Popen[str], begin: float, end: float) -> float:
    """Percent, of the batches between two moments; those at the edges count in part."""
    work = 0.0
    while True:
        batch = said(process)
        length = max(batch["ended"] - batch["began"], 1e-9)
        inside = min(batch["ended"], end) - max(batch["began"], begin)
        work += batch["work_seconds"] * max(inside, 0.0) / length
        if batch["ended"] >= end:
            return float(100 * work / (end - begin))


def priority(card: Card) -> Iterator[Finding]:
    """How soon one of lower priority stops when one of higher priority begins."""
    low = card.start(
        limited("--priority", "1",
                command=[*WORKER, "spin", "1000", "12", "eager"])
    )  # fmt: skip
    said(low)
    time.sleep(SETTLE_SECONDS)
    high = card.start(
        limited("--priority", "0",
                command=[*WORKER, "spin", "1000", "4", "eager"])
    )  # fmt: skip
    said(high)
    began = said(high)["began"]
    last = began
    while (batch := said(low))["began"] < began + 3:
        long = batch["ended"] - batch["began"] > 2 * BLOCK_SECONDS
        if long:  # it waited: what came before is when it stopped
            break
        last = batch["ended"]
    card.stop()
    yield Finding(
        check="priority", what="seconds until one of lower priority waits",
        measured=round(last - began, 3), expected=f"<= {BLOCK_SECONDS}",
        ok=last - began <= BLOCK_SECONDS,
    )  # fmt: skip
