"""The suite for a machine with a GPU, as one command.

    python -m tests.gpu [--only NAME...] [--quick] [--simulated] [--json FILE]

Prints what was measured, and beside it what is expected. Exit status 1: something is not as it
should be. Where there is no GPU, --simulated takes a simulated one: the same code runs, but the
figures say nothing of hardware.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import native
from hami.sandbox.gpu import catalogue, node
from tests.bench import harness
from tests.gpu import compute, frameworks, memory
from tests.gpu.card import Card, Finding

SOAK_SECONDS = 3600.0
QUICK_SOAK_SECONDS = 3.0
QUICK = compute.Plan(shares=(30, 70), microseconds=(1000,), ways=("eager", "graph"), seconds=1.5)

Check = Callable[[Card], Iterator[Finding]]


def checks(*, quick: bool, soak_seconds: float) -> dict[str, Check]:
    """Every check by name, in the order in which they run."""
    plan = QUICK if quick else compute.Plan()
    return {
        "addresses": memory.addresses,
        "truth": memory.truth,
        "limits": memory.limits,
        "shares": lambda card: compute.shares(card, plan),
        "pairs": lambda card: compute.pairs(card, plan),
        "priority": compute.priority,
        "torch": frameworks.torch,
        "soak": lambda card: memory.soak(card, seconds=soak_seconds),
    }


def run(chosen: dict[str, Check], card: Card) -> list[Finding]:
    """What all of them found; one that breaks is a finding too."""
    found: list[Finding] = []
    for name, check in chosen.items():
        try:
            for finding in check(card):
                found.append(finding)
                show(finding)
        except Exception as error:
            failed = Finding(check=name, what="the check broke", measured=repr(error), ok=False)
            found.append(failed)
            show(failed)
        finally:
            card.stop()
    return found


def show(finding: Finding) -> None:
    """One line."""
    mark = {True: "ok", False: "WRONG", None: "-"}[finding.ok]
    expected = "" if finding.expected is None else f", expected {finding.expected}"
    measured = "" if finding.measured is None else f": {finding.measured}"
    note = f" ({finding.note})" if finding.note else ""
    print(f"{mark:6} {finding.check}: {finding.what}{measured}{expected}{note}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", help="these checks alone")
    parser.add_argument("--quick", action="store_true", help="minutes instead of hours")
    parser.add_argument("--soak", type=float, help="seconds of it")
    parser.add_argument("--simulated", action="store_true", help="on a simulated GPU")
    harness.add_json(parser)
    options = parser.parse_args(arguments)
    soak = options.soak or (QUICK_SOAK_SECONDS if options.quick else SOAK_SECONDS)
    every = checks(quick=options.quick, soak_seconds=soak)
    if unknown := set(options.only or ()) - every.keys():
        parser.error(f"--only: expected {', '.join(every)}, met {', '.join(unknown)}")
    chosen = {name: every[name] for name in every if name in (options.only or every)}
    native.build()
    with tempfile.TemporaryDirectory() as name:
        if options.simulated and os.environ.get("LD_LIBRARY_PATH") != str(node.LIBRARY_DIR):
            return _again_on_a_simulated_gpu(Path(name))
        card = Card.first(Path(name))
        print(f"{card.name} {card.uuid}{', simulated' if card.simulated else ''}")
        found = run(chosen, card)
    harness.write_json(
        options.json,
        {"gpu": card.name, "simulated": card.simulated, "findings": [asdict(f) for f in found]},
    )
    wrong = sum(finding.ok is False for finding in found)
    print(f"{len(found)} findings, {wrong} of them wrong")
    return 1 if wrong else 0


def _again_on_a_simulated_gpu(directory: Path) -> int:
    """The dynamic linker must find the libraries from the start, so in a new process."""
    node.create_node_state(directory / "gpus", [catalogue.get("h100")], node_name="suite")
    environment = {
        **os.environ,
        node.NODE_ENV: str(directory / "gpus"),
        "LD_LIBRARY_PATH": str(node.LIBRARY_DIR),
    }
    command = [sys.executable, "-P", "-m", "tests.gpu", *sys.argv[1:]]
    return os.spawnve(os.P_WAIT, sys.executable, command, environment)


if __name__ == "__main__":
    sys.exit(main())
