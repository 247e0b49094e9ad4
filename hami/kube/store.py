"""The objects of one resource, and the handlers that are told how they change. Pure state.

Takes a reflector's events, in order. Handlers are level-based: given an object, make the world
agree with it. They see each difference between what they were told last and what is, also when the
difference happened while nobody watched; an event that comes twice is told once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from hami.errors import HamiError
from hami.kube.metrics import KubeMetrics
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


@dataclass(frozen=True, slots=True)
class _Handler(Generic[T]):
    on_set: Callable[[T, T | None], None]
    on_delete: Callable[[T], None]


class Store(Generic[T]):
    """The objects as last seen, by namespace and name."""

    def __init__(self, resource: str, *, metrics: KubeMetrics) -> None:
        self._resource = resource
        self._metrics = metrics
        self._objects: dict[Key, T] = {}
        self._handlers: list[_Handler[T]] = []

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

    def apply(self, event: Event[T]) -> None:
        """Make the store agree with what a reflector saw."""
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
            self._metrics.handler_errors.labels(self._resource).inc()
            log.warning(
                "handler_failed",
                resource=self._resource,
                object=str(_key(obj)),
                error=str(error),
            )


def _key(obj: T) -> Key:
    return Key(obj.metadata.namespace, obj.metadata.name)
