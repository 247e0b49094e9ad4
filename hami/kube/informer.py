"""Follows one resource: a reflector that feeds a store, and whoever waits for a change of it.

What an event means is the store's to say; how it was got, the reflector's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, NoReturn, TypeVar

import anyio
from anyio.abc import TaskStatus

from hami.kube.reflector import Reflector
from hami.kube.store import Store
from hami.kube.watching import Event, Listed, T

R = TypeVar("R")


class Informer(Generic[T]):
    """The objects that a reflector sees, by namespace and name."""

    def __init__(self, reflector: Reflector[T]) -> None:
        self._reflector = reflector
        self._store: Store[T] = Store(reflector.resource.plural, metrics=reflector.metrics)
        self._waiting: set[anyio.Event] = set()
        self._synced = False

    @property
    def synced(self) -> bool:
        """Whether the store has once held everything there was."""
        return self._synced

    @property
    def resource_version(self) -> str | None:
        """The version the store has reached; None before the first list and while one is due."""
        return self._reflector.resource_version

    @property
    def last_event_age(self) -> float:
        """Seconds since the server was last heard; bookmarks keep it low on a quiet cluster."""
        return self._reflector.silent_seconds

    def get(self, namespace: str, name: str) -> T | None:
        """The object as last seen; the namespace is empty for cluster-wide resources."""
        return self._store.get(namespace, name)

    def list(self) -> tuple[T, ...]:
        """Every object, in no order."""
        return self._store.list()

    def add_handler(
        self, on_set: Callable[[T, T | None], None], on_delete: Callable[[T], None]
    ) -> None:
        """Call these from now on, and ``on_set`` at once for what is there: see ``Store``."""
        self._store.add_handler(on_set, on_delete)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> NoReturn:
        """Follow the API server for ever; started once the store holds everything there is."""

        def apply(event: Event[T]) -> None:
            self._store.apply(event)
            if isinstance(event, Listed) and not self._synced:
                self._synced = True
                task_status.started()
            for waiting in self._waiting:
                waiting.set()
            self._waiting.clear()

        await self._reflector.run(apply)

    async def catch_up(self, version: str, *, patience_seconds: float) -> None:
        """Return once the store holds every change up to that version of this resource.

        Where the watch does not show as much in time (a watch of a quiet resource does not tell how
        far it is), or where versions are no numbers, everything is listed anew.
        """
        try:
            await self.wait_for(
                lambda: _reaches(self.resource_version, version), timeout_seconds=patience_seconds
            )
        except TimeoutError:
            wanted = self._reflector.relist()
            await self.wait_for(
                lambda: self._reflector.lists_done >= wanted, timeout_seconds=math.inf
            )

    async def wait_for(self, predicate: Callable[[], R | None], *, timeout_seconds: float) -> R:
        """The first true result of ``predicate``, which is asked now and after each change.

        Raises:
            TimeoutError: It was not true in time.
        """
        with anyio.fail_after(timeout_seconds):
            while not (result := predicate()):
                changed = anyio.Event()
                self._waiting.add(changed)
                try:
                    await changed.wait()
                finally:
                    self._waiting.discard(changed)
        return result


def _reaches(reached: str | None, wanted: str) -> bool:
    """Whether a version is as late as another, as far as that can be told."""
    if reached is None or not (reached.isdecimal() and wanted.isdecimal()):
        return False
    return int(reached) >= int(wanted)
