"""A pod whose process allocates on order, in a sandbox: what live resize is tried on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.gpu import ROOT
from tests.support.sandbox import Reached, eventually, gpu, make_pod

PROGRAM = ROOT / "tests/shim/programs/objects.py"


class Grower:
    """The pod's process: orders go in by a pipe, answers are in the pod's log."""

    def __init__(self, reached: Reached, name: str, pipe: int) -> None:
        self._reached, self._name, self._pipe = reached, name, pipe
        self._orders = 0

    def order(self, *words: object) -> None:
        """Tell it something, and do not wait."""
        os.write(self._pipe, (" ".join(map(str, words)) + "\n").encode())
        self._orders += 1

    def answer(self) -> tuple[int, ...]:
        """Of the last order."""
        lines: list[str] = eventually(self._answers, f"an answer of {self._name}")
        return tuple(int(word) for word in lines[self._orders].split())

    def ask(self, *words: object) -> tuple[int, ...]:
        """Tell it something; what it says."""
        self.order(*words)
        return self.answer()

    def _answers(self) -> list[str] | None:
        text = self._reached.log(self._name)
        lines = text.splitlines()  # the first says that it is ready
        return lines if len(lines) > self._orders and text.endswith("\n") else None


@contextmanager
def growing(reached: Reached, name: str, *, memory: int, **limits: Any) -> Iterator[Grower]:
    """Such a pod, running and initialised."""
    pipe = reached.place / f"{name}.orders"
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDWR)  # so that nobody waits for the other end
    try:
        shell = f"exec {sys.executable} -S {PROGRAM} < {Path(pipe)}"
        pod = make_pod(name, limits=gpu(1, memory=memory, **limits), command=["sh", "-c", shell])
        reached.apply(pod)
        reached.await_phase(name, "Running")
        grower = Grower(reached, name, held)
        assert grower.ask("init", 0) == (0,)
        yield grower
    finally:
        os.close(held)
        pipe.unlink()
