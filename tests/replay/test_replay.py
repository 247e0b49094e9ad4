"""A recorded history gives the same decisions, to the byte, today.

Where a rule of placement was changed on purpose, ``scripts/record-replay`` makes the recording
anew; its difference is the change.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.replay.history import SEED, History
from tests.replay.player import replayed

RECORDING = Path(__file__).with_name("recorded.jsonl")


def test_recorded_history_gives_the_same_decisions() -> None:
    lines = RECORDING.read_bytes().splitlines()
    for number, (recorded, now) in enumerate(replayed(lines), start=1):
        assert now == recorded, f"{RECORDING.name}:{number}; see scripts/record-replay"


def test_recording_is_of_a_history_in_which_much_is_decided() -> None:
    decisions = [msgspec.json.decode(line)[1] for line in RECORDING.read_bytes().splitlines()]

    assert sum(bool(d.get("held")) for d in decisions) > 70
    assert sum("record" in d for d in decisions) > 60
    assert sum(bool(d.get("failed")) for d in decisions) > 30
    assert sum(bool(d.get("expired")) for d in decisions) > 3


@pytest.mark.parametrize("seed", range(SEED + 1, SEED + 4))
def test_any_history_replays(seed: int) -> None:
    lines = History(seed).write(200)
    for recorded, now in replayed(lines):
        assert now == recorded
