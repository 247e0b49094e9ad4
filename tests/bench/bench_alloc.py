"""What the shim adds to allocating, freeing and asking for memory, in nanoseconds a call.

    python -m tests.bench.bench_alloc [--rounds N] [--calls N] [--live N...] [--json FILE]

Over a driver whose calls cost nothing. *again*: a pair of cuMemAlloc and cuMemFree where the driver
gives out again what was freed last, as drivers do. *fresh*: it always gives out new addresses, one
after the other. *any*: one of the live pointers is freed, chosen at random, and one is allocated:
then each call finds its entry in a cold cache. *pool*: cuMemAllocAsync and cuMemFreeAsync of a pool
that has the memory already.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench import harness, shimbench

LIVE = (0, 1_000, 100_000, 1_000_000)
SLOTS = (1, 16, 256)


def measure(
    bed: shimbench.Bed, *, live: list[int], calls: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """One row a figure."""
    program = bed.program("alloc_bench")
    for pattern, extra in (("again", {}), ("fresh", {"STUB_FRESH": "1"})):
        environments = (bed.plain, bed.with_shim(pattern))
        pair = [shimbench.Ordered(program, {**env, **extra}) for env in environments]
        held = 0
        for count in live:
            for ordered in pair:
                ordered.order("live", count - held)
            held = count
            orders = [(pattern, "pair")]
            if pattern == "again":
                orders += [("pool", "async")]
                orders += [("query", "query"), *([("any", "churn")] if count else [])]
            for name, order in orders:
                found = shimbench.turns(pair, order, calls, rounds)
                yield {"what": name, "live": count, "slots": 1, **found}
        for ordered in pair:
            ordered.stop()
    for slots in SLOTS[1:]:
        environments = (bed.plain, bed.with_shim(f"slots-{slots}", slots=slots))
        pair = [shimbench.Ordered(program, env) for env in environments]
        for name, order in (("again", "pair"), ("query", "query")):
            found = shimbench.turns(pair, order, max(calls // 4, 1), rounds)
            yield {"what": name, "live": 0, "slots": slots, **found}
        for ordered in pair:
            ordered.stop()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--live", type=int, nargs="+", default=list(LIVE))
    harness.add_json(parser)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        bed = shimbench.Bed.make(Path(name))
        rows = list(measure(bed, live=options.live, calls=options.calls, rounds=options.rounds))
    harness.write_json(options.json, rows)
    harness.print_rows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
