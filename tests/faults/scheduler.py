"""kube-scheduler as the controller meets it: one pod at a time is filtered, binds run side by side.

What fails comes back. Nothing that the controller or the network does is an error here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

import aiohttp
import anyio
from anyio.abc import TaskGroup

from tests.faults.world import World
from tests.support.controller import Usage

BINDS = 8
"""At the same time."""
TIMEOUT_SECONDS = 4.0
"""The scheduler's own, above that of a bind (30 s and 20 s in life)."""


class Asked(Protocol):
    """Who answers: a controller, or the one of several that leads."""

    async def filter(self, pod: Mapping[str, Any], nodes: Sequence[str]) -> Any: ...

    async def prioritize(self, pod: Mapping[str, Any], nodes: Sequence[str]) -> dict[str, int]: ...

    async def bind(self, pod: Mapping[str, Any], node: str) -> str: ...

    async def usage(self) -> Usage: ...

    async def value(self, name: str, **labels: str) -> float: ...


@dataclass(kw_only=True)
class Scheduler:
    """Schedules the oldest pods that wait, through whoever answers."""

    world: World
    chance: Random
    controller: Asked | None = None
    """Whom to ask; None while nobody is there."""
    done: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    _binding: set[str] = field(default_factory=set)
    _tried: dict[str, int] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        return not self._binding

    async def schedule(self, group: TaskGroup, *, limit: int = 1) -> None:
        """Filter some pods, those first that were tried least, and begin to bind what fits."""
        pods = [p for p in self.world.waiting() if p["metadata"]["uid"] not in self._binding]
        pods.sort(key=lambda pod: self._tried.get(pod["metadata"]["uid"], 0))
        for pod in pods[:limit]:
            uid = pod["metadata"]["uid"]
            self._tried[uid] = self._tried.get(uid, 0) + 1
            if self.controller is None or len(self._binding) >= BINDS:
                return
            node = await self._choose(self.controller, pod)
            if node is not None:
                self._binding.add(uid)
                group.start_soon(self._bind, self.controller, pod, node)

    async def _choose(self, controller: Asked, pod: dict[str, Any]) -> str | None:
        names = [node["metadata"]["name"] for node in self.world.nodes()]
        self.chance.shuffle(names)
        try:
            with anyio.fail_after(TIMEOUT_SECONDS):
                answer = await controller.filter(pod, names)
                feasible: list[str] = answer.get("NodeNames") or []
                if answer.get("Error") or not feasible:
                    self.done["filter errors" if answer.get("Error") else "unfit"] += 1
                    return None
                scores = await controller.prioritize(pod, feasible)
        except (aiohttp.ClientError, TimeoutError):
            self.done["unanswered"] += 1
            return None
        if self.chance.random() < 0.15:  # the cluster's own scores may say otherwise
            return self.chance.choice(feasible)
        return max(feasible, key=lambda node: scores.get(node, 0))

    async def _bind(self, controller: Asked, pod: dict[str, Any], node: str) -> None:
        try:
            await anyio.sleep(self.chance.choice((0.0, 0.0, 0.02, 0.1)))
            with anyio.fail_after(TIMEOUT_SECONDS):
                error = await controller.bind(pod, node)
            self.done["bind errors" if error else "bound"] += 1
            if error:
                self.errors[error[:160]] += 1
        except (aiohttp.ClientError, TimeoutError):
            self.done["unanswered"] += 1
        finally:
            self._binding.discard(pod["metadata"]["uid"])
