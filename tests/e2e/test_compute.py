"""Compute is shared as pods ask, from the manifest to the kernel: agent, shim and processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from hami.core.codec_steering import SUSPEND_KEY
from hami.sandbox.cluster import Sandbox
from hami.sandbox.gpu import node as gpu_node
from tests.support.governed import load_program
from tests.support.sandbox import Reached, gpu, inside, make_pod, outside, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MODEL = "A100-80GB"


def working(name: str, **limits: Any) -> dict[str, Any]:
    """A pod whose two processes launch one kernel of a millisecond after the other."""
    load = f"{load_program()} 1000 eager {MARKS[name]}"
    shell = f"sleep 1000 | {load} & sleep 1000 | {load} & wait"
    return make_pod(name, limits=gpu(1, memory=4000, **limits), command=["sh", "-c", shell])


MARKS = {"small": 2 * 2**20, "large": 4 * 2**20, "first": 6 * 2**20, "second": 8 * 2**20}
"""What each one's processes allocate: by it they are known."""


def command(pid: int) -> list[str]:
    """A process's command line; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().strip("\0").split("\0")
    except OSError:
        return []


class Books:
    """Who has used how much, as the simulated GPU keeps it."""

    def __init__(self, sandbox: Sandbox) -> None:
        (node,) = sandbox.nodes.values()
        self._state = node.gpu_state

    def busy_ns(self, name: str) -> int:
        return sum(
            process.busy_ns
            for process in gpu_node.read_processes(self._state, 0)
            if command(process.pid)[-1:] == [str(MARKS[name])]
        )

    async def use(self, *names: str, seconds: float = 2.0) -> dict[str, float]:
        """Percent of the device that each pod uses now."""
        before, began = {name: self.busy_ns(name) for name in names}, time.monotonic_ns()
        await anyio.sleep(seconds)
        passed = time.monotonic_ns() - began
        return {name: (self.busy_ns(name) - before[name]) / passed * 100 for name in names}

    async def settle(self, wanted: Mapping[str, float], *, within: float) -> None:
        """Return once the pods use so many percent."""
        met: dict[str, float] = {}
        with anyio.move_on_after(45):
            while True:
                met = await self.use(*wanted)
                if all(abs(met[name] - share) <= within for name, share in wanted.items()):
                    return
        raise AssertionError(f"expected {wanted}, met {met}")


async def start(reached: Reached, *pods: dict[str, Any]) -> None:
    await outside(lambda: reached.apply(*pods))
    for pod in pods:
        await outside(reached.await_phase, pod["metadata"]["name"], "Running")


async def test_two_pods_get_the_shares_they_asked_for_and_keep_them_without_the_agent() -> None:
    async with inside(gpus=1, model=MODEL) as (sandbox, reached):
        books = Books(sandbox)
        await start(reached, working("small", gpucores=30), working("large", gpucores=60))
        await books.settle({"small": 30, "large": 60}, within=4)

        (agent,) = [node.agent for node in sandbox.nodes.values()]
        assert agent is not None
        before = agent.restarts
        agent.signal(signal.SIGKILL)
        await books.settle({"small": 30, "large": 60}, within=6)
        await until(lambda: agent.restarts > before, "the agent to be there again")
        await books.settle({"small": 30, "large": 60}, within=4)


async def test_lower_priority_waits_and_goes_on() -> None:
    async with inside(gpus=1, model=MODEL) as (sandbox, reached):
        books = Books(sandbox)
        await start(reached, working("second", priority=1))
        await until(lambda: books.busy_ns("second") > 0, "the second to work")

        await start(reached, working("first", priority=0))
        await books.settle({"second": 0}, within=0.1)
        assert books.busy_ns("first") > 0

        await outside(lambda: reached.kubectl("delete", "pod", "first"))
        before = books.busy_ns("second")
        await until(lambda: books.busy_ns("second") > before, "the second to go on")


async def test_annotation_suspends_and_a_malformed_one_is_told() -> None:
    async with inside(gpus=1, model=MODEL) as (sandbox, reached):
        books = Books(sandbox)
        await start(reached, working("first"))
        await until(lambda: books.busy_ns("first") > 0, "it to work")

        def annotate(value: str) -> None:
            reached.kubectl("annotate", "--overwrite", "pod", "first", value)

        await outside(annotate, f"{SUSPEND_KEY}=true")
        await books.settle({"first": 0}, within=0.1)

        await outside(annotate, f"{SUSPEND_KEY}-")
        before = books.busy_ns("first")
        await until(lambda: books.busy_ns("first") > before, "it to go on")

        await outside(annotate, f"{SUSPEND_KEY}=perhaps")
        await until(
            lambda: any(
                event["reason"] == "AnnotationMalformed"
                for event in sandbox.api.store.list("events")
            ),
            "an event about the malformed annotation",
        )
        before = books.busy_ns("first")
        await until(lambda: books.busy_ns("first") > before, "it to work all the same")
