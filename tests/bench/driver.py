"""A scheduler of benchmarks: filter and prioritize one pod after the other, binds beside that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tests.bench.harness import Controller, Http, Questions, bind_body

RETRY_SECONDS = 1.0
ATTEMPTS = 30
NO_NODE = "no node fits"


class _Filtered(msgspec.Struct, rename="pascal"):
    node_names: list[str] | None = None
    error: str = ""


class _Score(msgspec.Struct, rename="pascal"):
    host: str
    score: int


class _Bound(msgspec.Struct, rename="pascal"):
    error: str = ""


_FILTERED = msgspec.json.Decoder(_Filtered)
_SCORES = msgspec.json.Decoder(list[_Score])
_BOUND = msgspec.json.Decoder(_Bound)


@dataclass(slots=True, kw_only=True)
class Times:
    """Seconds of every request, by verb, and what went wrong."""

    filter: list[float] = field(default_factory=list)
    prioritize: list[float] = field(default_factory=list)
    decide: list[float] = field(default_factory=list)
    """Filter and prioritize together."""
    bind: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Driver:
    """Asks one controller as a scheduler does."""

    def __init__(self, controller: Controller) -> None:
        self._url = controller.url
        self._asking = Http(controller.url)
        self._idle: list[Http] = []
        self.times = Times()

    async def decide(self, pod: Mapping[str, Any], questions: Questions) -> str:
        """The node for the pod; empty where none fits or the controller refuses."""
        body = questions.ask(pod)
        started = time.perf_counter()
        answer = await self._asking.post("/filter", body)
        filtered_at = time.perf_counter()
        filtered = _FILTERED.decode(answer)
        self.times.filter.append(filtered_at - started)
        if filtered.error or not filtered.node_names:
            self.times.errors.append(filtered.error or NO_NODE)
            return ""
        if len(filtered.node_names) == 1:
            self.times.decide.append(filtered_at - started)
            return filtered.node_names[0]
        asked_at = time.perf_counter()
        answer = await self._asking.post("/prioritize", body)
        seconds = time.perf_counter() - asked_at
        self.times.prioritize.append(seconds)
        self.times.decide.append(filtered_at - started + seconds)
        return max(_SCORES.decode(answer), key=lambda each: each.score).host

    async def bind(self, pod: Mapping[str, Any], node: str) -> bool:
        """Whether the pod was bound."""
        http = self._idle.pop() if self._idle else Http(self._url)
        started = time.perf_counter()
        error = _BOUND.decode(await http.post("/bind", bind_body(pod, node))).error
        self.times.bind.append(time.perf_counter() - started)
        self._idle.append(http)
        if error:
            self.times.errors.append(error)
        return not error

    async def schedule(
        self, pods: Iterable[Mapping[str, Any]], questions: Callable[[], Questions]
    ) -> int:
        """Schedule all of them as fast as it goes; how many were bound in the end.

        What is refused comes again after a pause, as from a scheduler's back-off queue.
        """
        queue = [(0.0, 0, pod) for pod in pods]
        queue.reverse()
        later: list[tuple[float, int, Mapping[str, Any]]] = []
        bound = 0

        async def bind(pod: Mapping[str, Any], node: str, attempt: int) -> None:
            nonlocal bound
            if await self.bind(pod, node):
                bound += 1
            elif attempt < ATTEMPTS:
                later.append((time.perf_counter() + RETRY_SECONDS, attempt, pod))

        async with asyncio.TaskGroup() as tasks:
            binds: set[asyncio.Task[None]] = set()
            while queue or later or binds:
                now = time.perf_counter()
                queue += [entry for entry in later if entry[0] <= now]
                later[:] = [entry for entry in later if entry[0] > now]
                if not queue:
                    await asyncio.sleep(0.01)
                    continue
                _, attempt, pod = queue.pop()
                node = await self.decide(pod, questions())
                if node:
                    task = tasks.create_task(bind(pod, node, attempt + 1))
                    binds.add(task)
                    task.add_done_callback(binds.discard)
                elif attempt < ATTEMPTS:
                    later.append((now + RETRY_SECONDS, attempt + 1, pod))
        return bound

    async def close(self) -> None:
        for http in (self._asking, *self._idle):
            await http.close()


async def warm_up(driver: Driver, pods: Sequence[Mapping[str, Any]], questions: Questions) -> None:
    """Return once the controller decides and binds: each process may need a moment to lead."""
    async with asyncio.timeout(60):
        for pod in pods:
            while True:
                node = await driver.decide(pod, questions)
                if node and await driver.bind(pod, node):
                    break
                await asyncio.sleep(0.5)
    driver.times = Times()
