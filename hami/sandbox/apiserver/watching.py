"""Watches: a kind's changes as a stream of lines, from a version on.

Owns bookmarks, time-outs, the synthetic events of a watch without a version, and the ERROR event
that ends one. Reads the collection's log by position; a client too slow for the log is cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import anyio
import msgspec

from hami.sandbox.apiserver import answers
from hami.sandbox.apiserver.collection import Collection
from hami.sandbox.apiserver.records import Change, Selection, watch_line

DEFAULT_TIMEOUT_SECONDS: Final = 1800.0
MAX_TIMEOUT_SECONDS: Final = 86_400.0
_INITIAL_EVENTS_END: Final = "k8s.io/initial-events-end"

Render = Callable[[bytes], bytes]
"""Turns an encoded object into what the client asked for, such as a Table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What one client watches."""

    selection: Selection
    version: int | None
    """The version to go on from; None to begin with an ADDED event for each object."""
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    bookmark_seconds: float | None = None
    """How often to send a bookmark; None for a client that wants none."""
    ends_initial_events: bool = False
    """Whether a bookmark marks the end of the synthetic events."""
    render: Render | None = None


async def events(
    collection: Collection, watch: Watch, *, version: Callable[[], int]
) -> AsyncGenerator[list[bytes], None]:
    """The lines of the watch, several at a time, until its time is up or it has lost changes.

    ``version`` tells the store's version, which bookmarks carry.
    """
    try:
        position = _start(collection, watch, version())
    except answers.StatusError as error:
        yield [watch_line("ERROR", msgspec.json.encode(error.to_status()))]
        return
    if watch.version is None:
        yield _initial(collection, watch, version())
    loop = asyncio.get_running_loop()
    deadline = loop.time() + watch.timeout_seconds
    interval = watch.bookmark_seconds or watch.timeout_seconds
    next_bookmark = loop.time() + interval
    with collection.subscribed(watch.selection, position) as subscription:
        while (changes := subscription.take()) is not None:
            if lines := [line for change in changes if (line := _line(change, watch))]:
                yield lines
                continue
            now = loop.time()
            if watch.bookmark_seconds and now >= min(next_bookmark, deadline):
                next_bookmark = now + interval
                yield [_bookmark(collection, watch, version())]
            if now >= deadline:
                return
            with anyio.move_on_after(min(deadline, next_bookmark) - now):
                await subscription.wait()


def _start(collection: Collection, watch: Watch, current: int) -> int:
    if watch.version is None:
        return collection.end
    if watch.version > current:
        raise too_large_version(watch.version, current)
    return collection.position_after(watch.version)


def too_large_version(asked: int, current: int) -> answers.StatusError:
    """504: the client has seen a version that this server has not reached."""
    message = f"Too large resource version: {asked}, current: {current}"
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    return answers.StatusError(504, "Timeout", message, {"causes": [cause]}, retry_after_seconds=1)


def _initial(collection: Collection, watch: Watch, version: int) -> list[bytes]:
    render = watch.render or _as_is
    lines = [
        watch_line("ADDED", render(record.encoded)) for record in collection.select(watch.selection)
    ]
    if watch.ends_initial_events:
        lines.append(_bookmark(collection, watch, version, {_INITIAL_EVENTS_END: "true"}))
    return lines


def _line(change: Change, watch: Watch) -> bytes | None:
    event_type = change.type_for(watch.selection)
    if event_type is None:
        return None
    if watch.render is None:
        return change.line(event_type)
    return watch_line(event_type, watch.render(change.object_for(event_type)))


def _bookmark(
    collection: Collection,
    watch: Watch,
    version: int,
    annotations: Mapping[str, str] | None = None,
) -> bytes:
    metadata: dict[str, Any] = {"resourceVersion": str(version), "creationTimestamp": None}
    if annotations:
        metadata["annotations"] = annotations
    kind = collection.kind
    obj = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata}
    return watch_line("BOOKMARK", (watch.render or _as_is)(msgspec.json.encode(obj)))


def _as_is(encoded: bytes) -> bytes:
    return encoded
