"""The wall clock may jump: it is written for people to read and decides nothing.

Every use of it in what decides stands in the table below, with what it is for; and a history that
is decided while it jumps is decided as if it did not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from hami.core import codec
from tests.replay.history import History
from tests.replay.player import Decision, Player

ROOT = Path(__file__).parents[2] / "hami"
PARTS = ("core", "kube", "controllers")
WALL = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow")}
ALLOWED = {
    "controllers/handshake.py": "the time in the question that an agent is asked",
    "controllers/nodelocks.py": "the time in a lock, which HAMi's protocol gives an age",
    "controllers/nudger.py": "the time in the annotation of a nudge",
    "controllers/pending.py": "when a pod was decided on, as people are told",
    "controllers/podwriter.py": "the times in a pod's record",
    "kube/events.py": "the times of an Event",
    "kube/lease.py": "the times in a Lease; who holds it is decided by when it was seen to change",
}


def uses(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in WALL:
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            names = {alias.name for alias in node.names}
            assert names <= {"monotonic", "perf_counter"}, f"{path}: {names}"


def test_wall_clock_is_read_where_it_is_only_written_down() -> None:
    found = {
        str(path.relative_to(ROOT))
        for part in PARTS
        for path in (ROOT / part).rglob("*.py")
        if list(uses(path))
    }
    assert found == set(ALLOWED)


class Jumping:
    """A wall clock that leaps years in both directions, and stands still at times."""

    def __init__(self, seed: int) -> None:
        self._chance = Random(seed)

    def __call__(self) -> float:
        return self._chance.choice((0.0, 1.0, 1.7e9, 4.0e9))


def without_times(decision: Decision) -> Decision:
    record = decision.get("record", {})
    kept = {k: v for k, v in record.items() if k not in (codec.TIME_KEY, codec.BIND_TIME_KEY)}
    return {**decision, "record": kept}


@pytest.mark.parametrize("seed", range(3))
def test_decisions_do_not_depend_on_the_wall_clock(seed: int) -> None:
    steady, jumping = History(seed), Player(wall_clock=Jumping(seed))
    steady.write(200)
    for step, decision in steady.decided:
        assert without_times(jumping.take(step)) == without_times(decision)
