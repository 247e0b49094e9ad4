"""Two controllers of which one leads: it is paused for longer than its Lease lasts, or killed.

Whoever answers, nothing is given out twice, and the one that follows counts what is true as well.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import aiohttp
import anyio
import pytest

from hami.config import Settings
from hami.sandbox.apiserver import ApiServer
from tests.faults import machine
from tests.faults.machine import Machine
from tests.support.commands import Process
from tests.support.controller import Controller, Usage, controller_process
from tests.support.leaders import BRIEF, pause, resume

pytestmark = [pytest.mark.faults, pytest.mark.slow]

PATIENCE_SECONDS = 3.0
"""With one that was paused while it was asked; above the deadline of a bind."""
R = TypeVar("R")


@dataclass(kw_only=True)
class Pair:
    """Both, seen as one: whoever leads answers."""

    members: list[tuple[Controller, Process]]
    chance: Random
    _paused: set[int] = field(default_factory=set)

    @property
    def controller(self) -> Pair:
        return self

    # -- as one controller ------------------------------------------------------------------

    async def filter(self, pod: Mapping[str, Any], nodes: Sequence[str]) -> Any:
        return await self._first(lambda c: c.filter(pod, nodes), lambda a: str(a["Error"]))

    async def prioritize(self, pod: Mapping[str, Any], nodes: Sequence[str]) -> dict[str, int]:
        return await self._first(lambda c: c.prioritize(pod, nodes), lambda a: "" if a else "not")

    async def bind(self, pod: Mapping[str, Any], node: str) -> str:
        return await self._first(lambda c: c.bind(pod, node), str)

    async def usage(self) -> Usage:
        """What they agree on; where they do not, what one of them thinks."""
        found = [await member.usage() for member, _ in self._alive()]
        differing = [usage for usage in found if usage != found[0]]
        return differing[0] if differing else found[0]

    async def value(self, name: str, **labels: str) -> float:
        return max([await member.value(name, **labels) for member, _ in self._alive()])

    async def _first(
        self, ask: Callable[[Controller], Awaitable[R]], error_of: Callable[[R], str]
    ) -> R:
        """The answer of the one that leads, or the last refusal."""
        awake = [m for m in self._alive() if m[1].process.pid not in self._paused]
        self.chance.shuffle(awake)
        answer: R | None = None
        for member, _ in awake:
            try:
                with anyio.fail_after(PATIENCE_SECONDS):
                    answer = await ask(member)
            except (TimeoutError, aiohttp.ClientError):
                continue
            if not error_of(answer).startswith("not "):
                break
        if answer is None:
            raise TimeoutError
        return answer

    # -- what happens to them ---------------------------------------------------------------

    def is_alive(self) -> bool:
        return bool(self._alive())

    def trouble(self) -> None:
        """One is paused, or goes on; once in a while one is killed while the other lives."""
        self.calm()
        alive = self._alive()
        _, process = self.chance.choice(alive)
        if len(alive) > 1 and self.chance.random() < 0.2:
            process.process.kill()
        elif self.chance.random() < 0.7:
            pause(process)
            self._paused.add(process.process.pid)

    def calm(self) -> None:
        for _, process in self._alive():
            if process.process.pid in self._paused:
                resume(process)
        self._paused.clear()

    def end(self) -> None:
        for _, process in self._alive():
            process.process.send_signal(signal.SIGKILL)

    def _alive(self) -> list[tuple[Controller, Process]]:
        return [m for m in self.members if m[1].process.returncode is None]


def candidate(server: ApiServer, directory: Path) -> Settings:
    directory.mkdir(exist_ok=True)
    return machine.settings_of(
        server, directory, leader_elect=True, lease_namespace="default", **BRIEF
    )


@pytest.mark.timeout(600)
async def test_two_of_which_one_leads(tmp_path: Path) -> None:
    chosen = machine.seed()
    async with ApiServer(fault_seed=chosen).running() as server:

        @asynccontextmanager
        async def opened(_: bool) -> AsyncIterator[Pair]:
            async with AsyncExitStack() as stack:
                members = []
                for name in ("a", "b"):
                    place = tmp_path / name
                    started = controller_process(candidate(server, place), place)
                    members.append(await stack.enter_async_context(started))
                yield Pair(members=members, chance=Random(chosen))

        afternoon = Machine(
            server=server,
            seed=chosen,
            open_controller=opened,
            steps=400,
            restart_every=200,
            quiet_every=90,
            pace_seconds=0.05,
        )
        await afternoon.run()
        print(afternoon.said())
