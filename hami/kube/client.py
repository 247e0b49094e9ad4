"""Requests to the API server: bytes out, bytes in, each with a deadline, a turn and a metric.

Owns the request's life: rate limit, authentication, deadline, status to error. Knows neither
objects nor retries: what may be tried again is for the caller to say (``backoff.retrying``).
Paths come from ``resources``, bodies and answers are JSON bytes.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from time import monotonic
from typing import Final
from urllib.parse import urlencode

import aiohttp
import anyio
import msgspec
from aiohttp.abc import AbstractStreamWriter
from prometheus_client import CollectorRegistry
from yarl import URL

from hami.config import KubeSettings
from hami.errors import (
    CodecError,
    GoneError,
    HamiError,
    KubeError,
    ThrottledError,
    UnavailableError,
)
from hami.kube import credentials
from hami.kube.metrics import KubeMetrics
from hami.kube.resources import resource_of
from hami.kube.status import error_from, parse_status
from hami.kube.throttle import Lane, budgets_of, limiter

JSON: Final = "application/json"
JSON_PATCH: Final = "application/json-patch+json"
MERGE_PATCH: Final = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH: Final = "application/strategic-merge-patch+json"

MAX_RESPONSE_BYTES: Final = 256 * 1024 * 1024
"""A page of 500 objects of the largest size that etcd takes by default fits three times over."""
CLOSE_SECONDS: Final = 5.0

Guard = Callable[[], None]
"""Raises ``HamiError`` where a request must not be sent any more; asked last of all, each time."""
Query = Mapping[str, str | int]
Body = bytes | Mapping[str, object] | list[object]

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=None, sock_read=None)


class _ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class Page(msgspec.Struct, frozen=True):
    """One page of a list; items are left as bytes, so that one bad item spoils nothing."""

    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


_PAGE = msgspec.json.Decoder(Page)


class ByteStream:
    """A response body that arrives bit by bit."""

    def __init__(self, response: aiohttp.ClientResponse, what: str) -> None:
        self._response = response
        self._what = what

    async def read(self) -> bytes:
        """The next bytes, as soon as there are any; empty at the end. The caller sets a deadline.

        Raises:
            UnavailableError: The connection broke.
        """
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailableError(f"{self._what}: stream broke: {error!r}") from error


class KubeClient:
    """Speaks to one API server. Made by ``connect``."""

    def __init__(
        self, source: credentials.Credentials, settings: KubeSettings, *, metrics: KubeMetrics
    ) -> None:
        self.metrics = metrics
        self.settings = settings
        self._source = source
        self._limiter = limiter(settings)

    def adopt(self, settings: KubeSettings) -> None:
        """From now on use these rates and this deadline; the cluster stays the same."""
        if budgets_of(settings) != budgets_of(self.settings):
            self._limiter = limiter(settings)
        self.settings = settings

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._limiter.waiting

    @property
    def host(self) -> str:
        """The API server's address."""
        return self._source.host

    def expected_wait(self, lane: Lane, *, requests: int) -> float:
        """Seconds until so many more requests of the lane could have been answered, as it goes."""
        return self._limiter.expected_wait(lane, requests=requests)

    async def get(
        self, path: str, *, query: Query | None = None, lane: Lane = Lane.ROUTINE
    ) -> bytes:
        """The object or list at ``path``."""
        return await self._request("GET", path, query=query, lane=lane)

    async def post(
        self,
        path: str,
        body: Body,
        *,
        query: Query | None = None,
        lane: Lane = Lane.ROUTINE,
        guard: Guard | None = None,
    ) -> bytes:
        """Create an object, or act on a sub-resource; the answer's body."""
        return await self._request("POST", path, body=body, query=query, lane=lane, guard=guard)

    async def put(
        self, path: str, body: Body, *, query: Query | None = None, lane: Lane = Lane.ROUTINE
    ) -> bytes:
        """Replace an object; the new one. Its resourceVersion is the precondition."""
        return await self._request("PUT", path, body=body, query=query, lane=lane)

    async def patch(
        self,
        path: str,
        body: Body,
        *,
        content_type: str = MERGE_PATCH,
        query: Query | None = None,
        lane: Lane = Lane.ROUTINE,
        guard: Guard | None = None,
    ) -> bytes:
        """Change an object; the new one."""
        return await self._request(
            "PATCH",
            path,
            body=body,
            query=query,
            lane=lane,
            content_type=content_type,
            guard=guard,
        )

    async def delete(
        self,
        path: str,
        body: Body | None = None,
        *,
        query: Query | None = None,
        lane: Lane = Lane.ROUTINE,
        guard: Guard | None = None,
    ) -> bytes:
        """Delete an object; ``body`` may hold DeleteOptions with preconditions."""
        return await self._request("DELETE", path, body=body, query=query, lane=lane, guard=guard)

    async def ask(self, verb: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body whatever the status is: of what stands behind the API server's proxy."""
        what = f"{verb} {path}"
        patience = self.settings.request_timeout_seconds
        with self._measured(verb, path) as outcome, self._deadline(what):
            async with self._limiter.turn(Lane.ROUTINE, patience_seconds=patience):
                response = await self._send(verb, path, query=None, body=body, content_type=JSON)
                outcome.code = response.status
                async with response:
                    return response.status, await _read(response, what=what)

    async def list_pages(
        self, path: str, *, query: Query | None = None, page_size: int | None = None
    ) -> AsyncIterator[Page]:
        """Every page of a consistent list; all of them carry the same resourceVersion.

        Raises:
            GoneError: The list took longer than the server keeps its version: begin again.
            CodecError: A page is not a list.
        """
        wanted = {**(query or {}), "limit": page_size or self.settings.page_size}
        token = ""
        while True:
            page_query = {**wanted, "continue": token} if token else wanted
            body = await self.get(path, query=page_query)
            try:
                page = _PAGE.decode(body)
            except msgspec.MsgspecError as error:
                raise CodecError(f"GET {path}: expected a list, met {error}") from error
            if not page.metadata.resource_version:
                raise CodecError(f"GET {path}: expected a list with a resourceVersion, met none")
            if token and page.metadata.continue_ == token:
                raise GoneError(f"GET {path}: the list does not advance beyond {token[:80]}")
            yield page
            token = page.metadata.continue_
            if not token:
                return

    @asynccontextmanager
    async def stream(self, path: str, *, query: Query | None = None) -> AsyncIterator[ByteStream]:
        """An open response to a GET, for watches; not rate-limited, for the reflector paces it.

        The deadline of a request holds until the headers are there.
        """
        what = f"GET {path}"
        with self._measured("WATCH", path) as outcome, self._deadline(what):
            response = await self._send("GET", path, query=query, body=None, content_type=JSON)
            outcome.code = response.status
            if response.status != 200:
                async with response:
                    error = await _refusal(response, what=what, testing=False)
                    self._slow_down(error, path, Lane.ROUTINE)
                    raise error
        try:
            yield ByteStream(response, what)
        finally:
            response.close()

    async def _request(
        self,
        verb: str,
        path: str,
        *,
        query: Query | None,
        lane: Lane,
        body: Body | None = None,
        content_type: str = JSON,
        guard: Guard | None = None,
    ) -> bytes:
        what = f"{verb} {path}"
        patience = self.settings.request_timeout_seconds
        with self._measured(verb, path) as outcome, self._deadline(what):
            async with self._limiter.turn(lane, patience_seconds=patience):
                response = await self._send(
                    verb, path, query=query, body=body, content_type=content_type, guard=guard
                )
                outcome.code = response.status
                async with response:
                    if not 200 <= response.status < 300:
                        error = await _refusal(
                            response, what=what, testing=content_type == JSON_PATCH
                        )
                        self._slow_down(error, path, lane)
                        raise error
                    return await _read(response, what=what)

    def _slow_down(self, error: KubeError, path: str, lane: Lane) -> None:
        """Obey a server that has too much to do; a budget that forbids an eviction is no such."""
        if isinstance(error, ThrottledError) and not path.endswith("/eviction"):
            self._limiter.refused(lane, retry_after_seconds=error.retry_after_seconds)
            self.metrics.throttled.labels(lane.value).inc()

    async def close(self) -> None:
        """Close every connection, within a deadline even when cancelled."""
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await self._source.close()

    async def _send(
        self,
        verb: str,
        path: str,
        *,
        query: Query | None,
        body: Body | None,
        content_type: str,
        guard: Guard | None = None,
    ) -> aiohttp.ClientResponse:
        """Send once; a second time where the first met a 401 and the credentials were renewed."""
        tail = f"?{urlencode(query)}" if query else ""
        text = body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
        while True:
            headers = await self._source.headers()
            data: bytes | _Guarded | None = text
            if text is not None:
                headers["Content-Type"] = content_type
            if guard is not None:
                guard()
                data = None if text is None else _Guarded(text, guard)
            response = await self._source.session.request(
                verb,
                URL(f"{self._source.host}{path}{tail}", encoded=True),
                data=data,
                headers=headers,
                timeout=_NO_TIMEOUT,
                allow_redirects=False,
                **self._source.route,
            )
            if response.status != 401 or not await self._source.renew():
                return response
            response.release()

    @contextmanager
    def _measured(self, verb: str, path: str) -> Iterator[_Outcome]:
        resource, outcome, started = resource_of(path), _Outcome(), monotonic()
        try:
            yield outcome
        finally:
            self.metrics.requests.labels(verb, resource, outcome.code).inc()
            self.metrics.request_seconds.labels(verb, resource).observe(monotonic() - started)

    @contextmanager
    def _deadline(self, what: str) -> Iterator[None]:
        """Bound the wait, and turn every way of getting no answer into one error."""
        seconds = self.settings.request_timeout_seconds
        try:
            with anyio.fail_after(seconds):
                yield
        except TimeoutError as error:
            raise UnavailableError(f"{what}: no answer within {seconds:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error.__cause__, HamiError):
                raise error.__cause__ from error  # a guard kept the body back
            raise UnavailableError(f"{what}: no answer: {error!r}") from error


@asynccontextmanager
async def connect(
    settings: KubeSettings,
    *,
    metrics: KubeMetrics | None = None,
    environment: Mapping[str, str] = os.environ,
) -> AsyncIterator[KubeClient]:
    """A client for the cluster that settings and environment point at; nothing is sent yet.

    Raises:
        ConfigError: There are no usable credentials; the message says what was tried.
    """
    configuration = await credentials.load(settings, environment)
    source = credentials.Credentials(settings, environment, configuration)
    client = KubeClient(source, settings, metrics=metrics or KubeMetrics(CollectorRegistry()))
    try:
        yield client
    finally:
        await client.close()


class _Guarded(aiohttp.BytesPayload):
    """A body that is kept back, and the request with it, if its guard refuses at the very last.

    Between the first asking and this one lies the wait for a connection.
    """

    def __init__(self, body: bytes, guard: Guard) -> None:
        super().__init__(body)
        self._guard = guard

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        self._guard()
        await super().write_with_length(writer, content_length)


class _Outcome:
    """The status of a request under way; 0 until there is an answer."""

    code = 0


async def _refusal(response: aiohttp.ClientResponse, *, what: str, testing: bool) -> KubeError:
    status = parse_status(await _read(response, what=what))
    return error_from(
        status,
        code=response.status,
        what=what,
        retry_after=response.headers.get("Retry-After"),
        testing=testing,
    )


async def _read(response: aiohttp.ClientResponse, *, what: str) -> bytes:
    """The whole body, bounded."""
    chunks: list[bytes] = []
    size = 0
    while size <= MAX_RESPONSE_BYTES:
        chunk = await response.content.readany()
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
        size += len(chunk)
    raise CodecError(f"{what}: expected at most {MAX_RESPONSE_BYTES} bytes, met more")
