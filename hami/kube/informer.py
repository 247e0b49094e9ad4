"""A copy of one resource's objects, and the handlers that are told how it changes.

Applies a reflector's events to a store and calls synchronous, level-based handlers: given an
object, make the world agree with it. A handler sees each difference between what it was told last
and what is, also when the difference happened while the watch was away; it may be told the same
twice. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

import anyio
from anyio.abc import TaskStatus

from hami.errors import HamiError
from hami.kube.reflector import Reflector
from hami.kube.watching import (
    Added,
    Bookmark,
    Deleted,
    Event,
    Key,
    Listed,
    Modified,
    T,
    Unreadable,
)
from hami.logs import get_logger

log = get_logger(__name__)

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _Handler(Generic[T]):
    on_set: Callable[[T, T | None], None]
    on_delete: Callable[[T], None]


class Informer(Generic[T]):
    """The objects that a reflector sees, by namespace and name."""

    def __init__(self, reflector: Reflector[T]) -> None:
        self._reflector = reflector
        self._objects: dict[Key, T] = {}
        self._handlers: list[_Handler[T]] = []
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
        return self._objects.get(Key(namespace, name))

    def list(self) -> tuple[T, ...]:
        """Every object, in no order."""
        return tuple(self._objects.values())

    def add_handler(
        self, on_set: Callable[[T, T | None], None], on_delete: Callable[[T], None]
    ) -> None:
        """Call these from now on, beginning with ``on_set`` for everything that is there.

        Handlers are called in the order they were added, and must neither block nor wait. One that
        raises ``HamiError`` is logged with the object and called again when the object changes.

        Args:
            on_set: Takes the object, and the one it follows (of the same uid) if there was one.
            on_delete: Takes the object as it was last seen. An object that was replaced by another
                of its name is deleted first.
        """
        handler = _Handler(on_set, on_delete)
        self._handlers.append(handler)
        for obj in self.list():
            self._guard(obj, handler.on_set, obj, None)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> NoReturn:
        """Follow the API server for ever; started once the store holds everything there is."""

        def apply(event: Event[T]) -> None:
            self._apply(event)
            if isinstance(event, Listed) and not self._synced:
                self._synced = True
                task_status.started()
            for waiting in self._waiting:
                waiting.set()
            self._waiting.clear()

        await self._reflector.run(apply)

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

    def _apply(self, event: Event[T]) -> None:
        match event:
            case Listed():
                self._replace(event)
            case Added(object=obj) | Modified(object=obj):
                self._set(obj)
            case Deleted(key=key):
                self._delete(key)
            case Bookmark() | Unreadable():
                pass

    def _replace(self, listed: Listed[T]) -> None:
        """Make the store equal to the list; what is gone goes first, so that its room is free."""
        kept = {_key(obj) for obj in listed.objects} | {lost.key for lost in listed.unreadable}
        for key in [key for key in self._objects if key not in kept]:
            self._delete(key)
        for obj in listed.objects:
            self._set(obj)

    def _set(self, obj: T) -> None:
        key, meta = _key(obj), obj.metadata
        old = self._objects.get(key)
        if old is not None and old.metadata.uid != meta.uid:
            self._delete(key)
            old = None
        if old is not None and old.metadata.resource_version == meta.resource_version:
            return
        self._objects[key] = obj
        for handler in self._handlers:
            self._guard(obj, handler.on_set, obj, old)

    def _delete(self, key: Key) -> None:
        old = self._objects.pop(key, None)
        if old is None:
            return
        for handler in self._handlers:
            self._guard(old, handler.on_delete, old)

    def _guard(self, obj: T, call: Callable[..., None], *args: T | None) -> None:
        try:
            call(*args)
        except HamiError as error:
            resource = self._reflector.resource.plural
            self._reflector.metrics.handler_errors.labels(resource).inc()
            log.warning(
                "handler_failed", resource=resource, object=str(_key(obj)), error=str(error)
            )


def _key(obj: T) -> Key:
    return Key(obj.metadata.namespace, obj.metadata.name)
