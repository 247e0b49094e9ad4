"""From the request for more to the process that has it, through the whole sandbox.

Usage: python -m tests.bench.bench_resize [--rounds 40] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

from hami.core.codec_resize import RESIZE_KEY
from hami.sandbox import spec
from tests.bench import harness
from tests.support.gpu import MIB
from tests.support.growing import Grower, growing
from tests.support.sandbox import Reached, background

STEP_MIB = 100
NS = 1e9


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    harness.add_json(parser)
    options = parser.parse_args(words)
    with background(spec.uniform(nodes=2, gpus=2, model="A100-80GB")) as reached:
        figures = measure(reached, options.rounds)
    harness.print_rows({"": title, **row} for title, row in figures.items())
    harness.write_json(options.json, figures)
    return 0


def measure(reached: Reached, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds until a process that waits for memory has it, and from when it was asked for."""
    with growing(reached, "grower", memory=STEP_MIB) as grower:
        assert grower.ask("alloc", STEP_MIB * MIB)[0] == 0
        took = [_grow(reached, grower, (i + 2) * STEP_MIB) for i in range(rounds)]
    return {"growth": harness.summary(took)}


def _grow(reached: Reached, grower: Grower, limit_mib: int) -> float:
    grower.order("await_alloc", STEP_MIB * MIB, 30)
    text = json.dumps({"main": {"gpumem": limit_mib}})
    body = {"metadata": {"annotations": {RESIZE_KEY: text}}}
    began = time.monotonic_ns()
    reached.patch("/api/v1/namespaces/default/pods/grower", body)
    result, _, ended = grower.answer()
    assert result == 0
    return (ended - began) / NS


if __name__ == "__main__":
    raise SystemExit(main())
