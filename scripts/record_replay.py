"""Writes tests/replay/recorded.jsonl: an invented history, and what is decided in it today."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.replay.history import History  # noqa: E402 - after the path is known
from tests.replay.test_replay import RECORDING  # noqa: E402


def main() -> None:
    lines = History().write()
    RECORDING.write_bytes(b"".join(line + b"\n" for line in lines))
    print(f"{RECORDING.relative_to(ROOT)}: {len(lines)} steps")


if __name__ == "__main__":
    main()
