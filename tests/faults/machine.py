"""One long afternoon: the world, the scheduler and the weather, step by step, and the laws.

After every step nothing may be given out twice. At quiet points (no fault, nothing under way) the
controller counts exactly what the API server's objects say, and holds nothing else. At the end
every pod that fits is bound.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final, Protocol

import aiohttp
import anyio
import msgspec
from anyio.abc import TaskGroup

from hami.config import Settings
from hami.sandbox.apiserver import ApiServer
from tests.faults import truth
from tests.faults.scheduler import Asked, Scheduler
from tests.faults.weather import Weather
from tests.faults.world import QUOTA, World
from tests.support.controller import settings_for

MIB: Final = 2**20
QUIET_SECONDS: Final = 240.0
"""In which everything that was under way ends: a bind, its undoing, a hold, a reservation. That is
mostly at once; but pods that wait and fit by now are called one after the other while nobody
schedules, and each is held for, until their pauses have grown longer than their line."""
SETTINGS: Final[dict[str, Any]] = {
    "hold_seconds": 1.0,
    "bind_timeout_seconds": 2.0,
    "allocate_timeout_seconds": 2.0,
    "stop_seconds": 1.0,
}


class Opened(Protocol):
    """A controller that can be asked, and ended without a word."""

    @property
    def controller(self) -> Asked: ...

    def is_alive(self) -> bool: ...

    def trouble(self) -> None:
        """Something of its own kind happens to it, now and then."""

    def calm(self) -> None:
        """Whatever trouble there is ends."""

    def end(self) -> None: ...


Open = Callable[[bool], AbstractAsyncContextManager[Opened]]
"""Starts a controller; told whether it is the last one, which must live to the end."""


def settings_of(server: ApiServer, directory: Path, **controller: Any) -> Settings:
    """Of a controller that gives up, and comes back, in moments instead of minutes."""
    made = settings_for(server, directory, **SETTINGS, **controller)
    kube = msgspec.structs.replace(
        made.kube, watch_retry_cap_seconds=0.5, request_timeout_seconds=2.0
    )
    return msgspec.structs.replace(made, kube=kube)


def seed() -> int:
    """Of this run: HAMI_FAULTS_SEED, else a new one; printed, so that it can be set again."""
    given = os.environ.get("HAMI_FAULTS_SEED")
    chosen = int(given) if given else random.SystemRandom().randrange(2**32)
    print(f"HAMI_FAULTS_SEED={chosen}")
    return chosen


@dataclass(kw_only=True)
class Machine:
    """Everything, with one seed."""

    server: ApiServer
    seed: int
    open_controller: Open
    steps: int
    restart_every: int = 400
    quiet_every: int = 150
    pace_seconds: float = 0.0
    """Between two steps, where what happens takes time of its own."""
    chance: Random = field(init=False)
    world: World = field(init=False)
    scheduler: Scheduler = field(init=False)
    weather: Weather = field(init=False)

    def __post_init__(self) -> None:
        self.chance = Random(self.seed)
        self.world = World(store=self.server.store, chance=self.chance)
        self.scheduler = Scheduler(world=self.world, chance=Random(self.seed + 1))
        self.weather = Weather(self.server, self.chance)
        self._actions, self._weights = zip(*self._table().items(), strict=True)

    def _table(self) -> dict[Callable[[], None], float]:
        """What happens besides scheduling, and how often."""
        world, weather = self.world, self.weather
        return {
            world.create_pod: 14,
            world.create_gang: 1,
            world.recreate_pod: 1.5,
            world.delete_pod: 5,
            world.force_delete_pod: 2,
            world.finish_pod: 3,
            world.touch_pod: 2,
            world.allocate_all: 8,
            world.end_inits: 1.5,
            world.make_room: 1,
            world.lose_node: 0.5,
            world.return_nodes: 1,
            world.lose_device: 0.5,
            world.return_devices: 0.8,
            world.cordon: 0.7,
            world.silence_kubelet: 0.5,
            weather.refuse_writes: 2,
            weather.refuse_reads: 0.6,
            weather.delay: 1.5,
            weather.lose_answers: 2,
            weather.go_down: 0.3,
            weather.forget_changes: 0.5,
            weather.drop_watches: 0.5,
            weather.distort_watch: 1,
        }

    async def run(self) -> None:
        """All steps, then the end."""
        self.world.begin()
        left = self.steps
        while left > 0:
            async with self._controller(last=False) as (opened, group):
                left -= await self._live(opened, min(left, self.restart_every), group)
                opened.end()
            self._missed_by_everybody()
        async with self._controller(last=True) as (_, group):
            await self._settle(group)
        assert self.scheduler.done["bound"] > self.steps // 40, self.said()

    @asynccontextmanager
    async def _controller(self, *, last: bool) -> AsyncIterator[tuple[Opened, TaskGroup]]:
        async with self.open_controller(last) as opened, anyio.create_task_group() as group:
            self.scheduler.controller = opened.controller
            yield opened, group
            self.scheduler.controller = None

    async def _live(self, opened: Opened, steps: int, group: TaskGroup) -> int:
        """So many steps, or fewer if the controller dies; how many."""
        for number in range(1, steps + 1):
            await self._step(opened, group)
            await anyio.sleep(self.pace_seconds)
            self._check_room()
            if not opened.is_alive():
                return number
            if number % self.quiet_every == 0:
                opened.calm()
                with suppress(aiohttp.ClientError):
                    await self._be_quiet()
                    continue
                assert not opened.is_alive(), "a controller that lives answers"
        return steps

    async def _step(self, opened: Opened, group: TaskGroup) -> None:
        if self.chance.random() < 0.5:
            await self.scheduler.schedule(group)
            await anyio.sleep(self.chance.choice((0.0, 0.01)))
            return
        if self.chance.random() < 0.02:
            opened.trouble()
        (action,) = self.chance.choices(self._actions, self._weights)
        action()
        self.world.done[action.__name__] += 1
        await anyio.sleep(self.chance.choice((0.0, 0.0, 0.005, 0.02)))

    def _missed_by_everybody(self) -> None:
        """While no controller is there, the world goes on."""
        self.weather.clear()
        for action in (self.world.finish_pod, self.world.force_delete_pod, self.world.create_pod):
            action()
        self._check_room()

    async def _be_quiet(self) -> None:
        """Nothing goes wrong and nobody schedules until all agree."""
        self.weather.clear()
        self.world.allocate_all()

        async def agreed() -> list[str]:
            self._check_room()
            return [] if not self.scheduler.idle else await self._disagreements()

        await self._until_none(agreed, QUIET_SECONDS)

    async def _settle(self, group: TaskGroup) -> None:
        """Nothing goes wrong any more: whatever fits is bound, and all is counted."""
        self.weather.clear()
        self.world.heal()

        async def served() -> list[str]:
            self.world.allocate_all()
            await self.scheduler.schedule(group, limit=8)
            self._check_room()
            if not self.scheduler.idle or self.world.allocating():
                return [
                    "pods are being bound, or get their devices"
                ]  # which may fail, and make room
            return self._forgotten()

        await self._until_none(served, QUIET_SECONDS)
        await self._be_quiet()
        assert not self._forgotten(), self.said()

    def _check_room(self) -> None:
        wrong = self.world.breaches()
        assert not wrong, "\n".join([*wrong, self.said()])

    def _forgotten(self) -> list[str]:
        """Pods that wait though there is room for them."""
        now, nodes = self.world.truth(), self.world.nodes()
        return [
            f"{pod['metadata']['name']} ({pod['metadata']['labels']['kind']}) waits and fits {node}"
            for pod in self.world.waiting()
            if pod["metadata"]["labels"]["kind"] != "gang"  # which waits for its siblings' room
            if (node := truth.surely_fits(pod, nodes, now, self.world.cards, quota=QUOTA))
        ]

    async def _disagreements(self) -> list[str]:
        """What the controller thinks and is not so."""
        controller = self.scheduler.controller
        assert controller is not None
        counts = {
            state: await controller.value("hami_reservations", state=state)
            for state in ("held", "reserved")
        }
        thought = {
            place: (int(slots), int(memory) // MIB, int(cores))
            for place, (slots, memory, cores) in (await controller.usage()).items()
        }
        names = (truth.MEMORY, truth.CORES)
        share = [await controller.value("hami_resource_quota_used", quota_name=n) for n in names]
        now = self.world.truth()
        known = truth.counted(now, self.world.nodes())
        return [
            *([] if tuple(share) == now.shared() else [f"quota: {now.shared()}, {share} counted"]),
            *(f"{n:g} pods are {state}, nobody binds them" for state, n in counts.items() if n),
            *(
                f"{place}: {known.get(place)} is held, {thought.get(place)} counted"
                for place in sorted(known.keys() | thought.keys())
                if known.get(place, truth.NOTHING) != thought.get(place, truth.NOTHING)
            ),
        ]

    async def _until_none(self, wrong: Callable[[], Awaitable[list[str]]], seconds: float) -> None:
        found = ["nothing was looked at"]
        with anyio.move_on_after(seconds):
            while found:
                found = await wrong()
                await anyio.sleep(0.02)
        assert not found, "\n".join([*found, self.said()])

    def said(self) -> str:
        """What happened so far, for whoever reads a failure."""
        errors = self.scheduler.errors.most_common(5)
        return (
            f"HAMI_FAULTS_SEED={self.seed}, world {dict(self.world.done)}, "
            f"scheduler {dict(self.scheduler.done)}, errors {errors}"
        )
