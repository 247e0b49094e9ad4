"""Lists and watches one resource for ever, and tells what it sees as ordered events.

Owns the connection: pages, versions, bookmarks, silence, back-off. Knows nothing of stores; that is
the informer's. It pushes events to a synchronous callback rather than being an async generator,
because its deadlines would otherwise stand open around a ``yield``.

A watch is never trusted to be complete: it is renewed from its last version when the server ends
it, when its connection breaks, when it has been silent for too long, and by the clock. The list is
made again when that version is too old (410) or a line could not be understood.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, Generic, NoReturn

import anyio

from hami.errors import CodecError, GoneError, KubeError, ThrottledError, UnavailableError
from hami.kube.backoff import Backoff, Delays
from hami.kube.client import ByteStream, KubeClient
from hami.kube.resources import Resource
from hami.kube.watching import (
    Decode,
    Event,
    LineSplitter,
    Listed,
    T,
    Unreadable,
    decode_line,
    decode_object,
)
from hami.logs import get_logger

log = get_logger(__name__)

MAX_LINE_BYTES: Final = 8 * 1024 * 1024
"""etcd takes 1.5 MiB and the API server 3 MiB a request; twice that and more is no object."""
MAX_REFUSALS: Final = 3
"""A server that so often in a row refuses to go on from a version does not know it: it may have
been restored from a backup, or be another one."""
SHORT_WATCH_SECONDS: Final = 1.0
CLOCK_GRACE_SECONDS: Final = 10.0
"""What the server may exceed the time we asked it to end the watch after."""


class Reflector(Generic[T]):
    """One resource, perhaps of one namespace and narrowed by selectors."""

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        *,
        decode: Decode[T],
        namespace: str = "",
        field_selector: str = "",
        label_selector: str = "",
        page_size: int | None = None,
        inactivity_seconds: float | None = None,
        watch_seconds: float | None = None,
        max_line_bytes: int = MAX_LINE_BYTES,
        backoff: Backoff | None = None,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        """What is not given comes from the client's settings.

        Args:
            client: Where to ask.
            resource: What for.
            decode: From an object's JSON bytes, such as ``msgspec.json.Decoder(Pod).decode``.
            namespace: Only this namespace.
            field_selector: In the API's syntax.
            label_selector: In the API's syntax.
            page_size: Objects a list asks for at a time.
            inactivity_seconds: A watch without a byte for so long is renewed.
            watch_seconds: A watch is renewed after this long, and up to half as much again.
            max_line_bytes: Longest line of a watch.
            backoff: Waits after failures.
            uniform: Randomness between 0 and 1, for waits and watch times.
        """
        settings = client.settings
        self.resource = resource
        self.metrics = client.metrics
        self._client = client
        self._path = resource.path(namespace)
        self._decode = decode
        selectors = {"fieldSelector": field_selector, "labelSelector": label_selector}
        self._selectors = {name: value for name, value in selectors.items() if value}
        self._page_size = page_size or settings.page_size
        self._inactivity_seconds = inactivity_seconds or settings.watch_silence_seconds
        self._watch_seconds = watch_seconds or settings.watch_timeout_seconds
        self._max_line_bytes = max_line_bytes
        backoff = backoff or Backoff(cap_seconds=settings.watch_retry_cap_seconds)
        self._delays = Delays(backoff, uniform=uniform)
        self._uniform = uniform
        self._heard_at = time.monotonic()
        self._version: str | None = None
        self._refusals = 0
        self._lists_begun = 0
        self._lists_done = 0
        self._list_due = 0
        self._watching: anyio.CancelScope | None = None

    @property
    def resource_version(self) -> str | None:
        """The version reached; None while a list is due."""
        return self._version

    @property
    def silent_seconds(self) -> float:
        """How long ago the server was last heard: an answer to a list, or a byte of a watch."""
        return time.monotonic() - self._heard_at

    @property
    def lists_done(self) -> int:
        """The number of the last list that was told of; they are counted as they begin."""
        return self._lists_done

    def relist(self) -> int:
        """End the watch and list anew; the number of the first list that begins after this call."""
        self._list_due = self._lists_begun + 1
        if self._watching is not None:
            self._watching.cancel()
        return self._list_due

    async def run(self, emit: Callable[[Event[T]], None]) -> NoReturn:
        """List, then watch, for ever; ``emit`` gets every event in order, the first a ``Listed``.

        ``emit`` keeps refusals (``HamiError``) to itself; anything else it raises ends this, as
        cancellation does, and nothing else.
        """
        while True:
            try:
                if self._version is None or self._lists_begun < self._list_due:
                    self._lists_begun += 1
                    emit(await self._list())
                    self._lists_done = self._lists_begun
                reason = await self._watch_until_asked(emit)
            except (KubeError, CodecError) as error:
                await self._recover(error)
            else:
                self._count_restart(reason)

    async def _list(self) -> Listed[T]:
        objects: list[T] = []
        unreadable: list[Unreadable] = []
        version = ""
        pages = self._client.list_pages(
            self._path, query=self._selectors, page_size=self._page_size
        )
        async for page in pages:
            self._heard_at = time.monotonic()
            version = page.metadata.resource_version
            for raw in page.items or ():
                try:
                    obj = decode_object(raw, self._decode)
                except CodecError as error:
                    self._report(str(error))
                    continue
                if isinstance(obj, Unreadable):
                    self._report(obj.error, name=str(obj.key))
                    unreadable.append(obj)
                else:
                    objects.append(obj)
        self.metrics.lists.labels(self.resource.plural).inc()
        self._version = version
        log.info(
            "objects_listed",
            resource=self.resource.plural,
            objects=len(objects),
            unreadable=len(unreadable),
            resource_version=version,
        )
        return Listed(
            objects=tuple(objects), unreadable=tuple(unreadable), resource_version=version
        )

    async def _watch_until_asked(self, emit: Callable[[Event[T]], None]) -> str:
        """Watch; why it ended."""
        if self._lists_begun < self._list_due:
            return "asked"
        reason = "asked"
        with anyio.CancelScope() as self._watching:
            reason = await self._watch(emit)
        self._watching = None
        return reason

    async def _watch(self, emit: Callable[[Event[T]], None]) -> str:
        """Follow the stream until it ends; why it ended."""
        seconds = self._watch_seconds * (1 + self._uniform() / 2)
        query: dict[str, str | int] = {
            **self._selectors,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version or "",
            "timeoutSeconds": max(1, round(seconds)),
        }
        started = time.monotonic()
        async with self._client.stream(self._path, query=query) as stream:
            reason, heard = await self._follow(stream, emit, ends_at=started + seconds)
        if not heard and time.monotonic() - started < SHORT_WATCH_SECONDS:
            raise UnavailableError(f"watch of {self._path}: ended at once, with nothing sent")
        return reason

    async def _follow(
        self, stream: ByteStream, emit: Callable[[Event[T]], None], *, ends_at: float
    ) -> tuple[str, bool]:
        """Take lines until the end: why it came, and whether anything was sent before."""
        lines = LineSplitter(max_bytes=self._max_line_bytes)
        heard = False
        while True:
            left = ends_at + CLOCK_GRACE_SECONDS - time.monotonic()
            chunk = b""
            with anyio.move_on_after(min(self._inactivity_seconds, left)) as patience:
                chunk = await stream.read()
            if patience.cancelled_caught:
                return ("silent" if left > self._inactivity_seconds else "clock"), heard
            if not chunk:
                return "ended", heard
            heard = True
            self._heard_at = time.monotonic()
            for line in lines.feed(chunk):
                self._take(line, emit)

    def _take(self, line: bytes, emit: Callable[[Event[T]], None]) -> None:
        event, version = decode_line(line, self._decode)
        kind = type(event).__name__.lower()
        self.metrics.watch_events.labels(self.resource.plural, kind).inc()
        if isinstance(event, Unreadable):
            self._report(event.error, name=str(event.key))
        emit(event)
        self._version = version
        self._refusals = 0

    async def _recover(self, error: KubeError | CodecError) -> None:
        """Decide where to begin again, and wait before that."""
        wish = 0.0
        match error:
            case GoneError():
                reason, self._version = "expired", None
            case CodecError():
                reason, self._version = "malformed", None
                self._report(str(error))
            case ThrottledError():
                reason, wish = "throttled", error.retry_after_seconds or 0.0
            case _:
                reason = "failed"
                self._refusals += 1 if error.status else 0
                if self._refusals >= MAX_REFUSALS:
                    self._version = None
        delay = self._delays.after_failure(at_least_seconds=wish)
        self._count_restart(reason, seconds=delay, error=str(error))
        await anyio.sleep(delay)

    def _count_restart(self, reason: str, **details: object) -> None:
        self.metrics.watch_restarts.labels(self.resource.plural, reason).inc()
        level = log.warning if details else log.debug
        level("watch_restarted", resource=self.resource.plural, reason=reason, **details)

    def _report(self, error: str, **details: object) -> None:
        self.metrics.malformed.labels(self.resource.plural).inc()
        log.warning("malformed_object_met", resource=self.resource.plural, error=error, **details)
