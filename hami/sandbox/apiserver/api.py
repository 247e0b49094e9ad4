"""The REST verbs: from a Call to an HTTP response.

Each method reads a request, calls the registry or the store, and encodes the answer; the rules are
theirs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final, Literal

import msgspec
from aiohttp import web

from hami.sandbox.apiserver import answers, bodies, pods, watching
from hami.sandbox.apiserver.faults import ConnectionDroppedError, Fault, Faults, distort
from hami.sandbox.apiserver.kinds import POD
from hami.sandbox.apiserver.operation import Operation
from hami.sandbox.apiserver.paging import Page, Paging
from hami.sandbox.apiserver.records import Object, Record, Selection
from hami.sandbox.apiserver.registry import Registry
from hami.sandbox.apiserver.requests import Target, is_true
from hami.sandbox.apiserver.store import Store
from hami.sandbox.apiserver.views import JSON, View, choose_view

_MAX_WARNINGS: Final = 20
_MAX_WARNING_CHARACTERS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, and what is known about it."""

    request: web.Request
    target: Target
    user: str
    fault: Fault | None
    """What was chosen to go wrong with it."""

    @property
    def query(self) -> Mapping[str, str]:
        """The parameters in the URL."""
        return self.request.query


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


class Api:
    """Answers requests on stored objects."""

    def __init__(
        self, store: Store, registry: Registry, *, faults: Faults, bookmark_seconds: float
    ) -> None:
        self._store = store
        self._registry = registry
        self._faults = faults
        self._bookmark_seconds = bookmark_seconds
        self._paging = Paging()
        self.log_reader: pods.LogReader | None = None
        self._handlers: Mapping[tuple[str, str], Handler] = {
            ("get", ""): self._get,
            ("get", "status"): self._get,
            ("get", "log"): self._log,
            ("list", ""): self._list,
            ("watch", ""): self._watch,
            ("create", ""): self._create,
            ("create", "binding"): self._bind,
            ("create", "eviction"): self._evict,
            ("update", ""): self._update,
            ("update", "status"): self._update,
            ("patch", ""): self._patch,
            ("patch", "status"): self._patch,
            ("delete", ""): self._delete,
            ("deletecollection", ""): self._delete_collection,
        }

    async def answer(self, call: Call) -> web.StreamResponse:
        """The response to a request; raises StatusError."""
        target = call.target
        handler = self._handlers.get((target.verb, target.subresource))
        if handler is None or (target.verb == "create" and target.name and not target.subresource):
            raise answers.method_not_allowed()
        return await handler(call)

    async def _get(self, call: Call) -> web.StreamResponse:
        return self._show(call, self._store.get_record(call.target.kind, call.target.key))

    async def _list(self, call: Call) -> web.StreamResponse:
        selection = bodies.parse_selection(call.target, call.query)
        return self._show_page(call, self._find_page(call, selection), selection)

    async def _watch(self, call: Call) -> web.StreamResponse:
        collection = self._store.collection(call.target.kind)
        watch = self._parse_watch(call)
        lines = watching.events(collection, watch, version=lambda: self._store.version)
        if call.fault is not None:
            lines = distort(lines, call.fault)
        return await self._stream(call, _joined(lines), content_type=JSON)

    async def _create(self, call: Call) -> web.StreamResponse:
        operation = _operation("CREATE", call)
        obj = await bodies.read_object(call.request)
        record = await self._registry.create(operation, obj)
        return _warned(self._show(call, record, status=201), operation)

    async def _update(self, call: Call) -> web.StreamResponse:
        operation = _operation("UPDATE", call)
        obj = await bodies.read_object(call.request)
        record = await self._registry.update(operation, obj)
        return _warned(self._show(call, record), operation)

    async def _patch(self, call: Call) -> web.StreamResponse:
        operation = _operation("UPDATE", call)
        patch = await bodies.read_patch(call.request, call.target)
        record = await self._registry.patch(operation, patch)
        return _warned(self._show(call, record), operation)

    async def _delete(self, call: Call) -> web.StreamResponse:
        options, dry_run = await bodies.read_delete_options(call.request)
        operation = replace(_operation("DELETE", call), dry_run=dry_run)
        record = await self._registry.delete(operation, options)
        return _warned(self._show(call, record), operation)

    async def _delete_collection(self, call: Call) -> web.StreamResponse:
        options, dry_run = await bodies.read_delete_options(call.request)
        operation = replace(_operation("DELETE", call), dry_run=dry_run)
        selection = bodies.parse_selection(call.target, call.query)
        deleted = []
        for record in self._store.collection(call.target.kind).select(selection):
            namespace, name = record.key
            one = replace(call.target, verb="delete", namespace=namespace, name=name)
            try:
                deleted.append(await self._registry.delete(replace(operation, target=one), options))
            except answers.StatusError as error:
                if error.code != 404:
                    raise
        page = Page(records=deleted, version=self._store.version)
        return self._show_page(call, page, selection)

    async def _bind(self, call: Call) -> web.StreamResponse:
        binding = await bodies.read_body(call.request, pods.Binding)
        if bodies.is_dry_run(call.query):
            raise answers.not_implemented("dry runs of bindings")
        pods.bind(self._store, call.target, binding)
        return json_response(msgspec.json.encode(answers.success(code=201)), 201)

    async def _evict(self, call: Call) -> web.StreamResponse:
        eviction = await bodies.read_body(call.request, bodies.Eviction)
        options, dry_run = bodies.parse_delete_options(eviction.delete_options, call.query)
        operation = replace(_operation("DELETE", call), dry_run=dry_run)
        await pods.evict(self._store, self._registry, operation, options)
        return json_response(msgspec.json.encode(answers.success(code=201)), 201)

    async def _log(self, call: Call) -> web.StreamResponse:
        pod = self._store.get_record(POD, call.target.key).decode()
        query = bodies.parse_log_query(call.query)
        container = pods.choose_container(pod, call.query.get("container", ""))
        if self.log_reader is None:
            raise answers.not_found("logs of pods", call.target.name)
        namespace, name = call.target.key
        chunks = await self.log_reader(namespace, name, container, query)
        return await self._stream(call, chunks, content_type="text/plain")

    async def _stream(
        self, call: Call, chunks: AsyncGenerator[bytes, None], *, content_type: str
    ) -> web.StreamResponse:
        """Send the chunks as they come, until they end or the client or a fault does."""
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(call.request)
        transport = call.request.transport
        if transport is None:
            return response
        self._faults.open_stream(transport)
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    await response.write(chunk)
        except ConnectionDroppedError:
            transport.close()
        except ConnectionResetError:
            pass
        finally:
            self._faults.close_stream(transport)
        return response

    def _show(self, call: Call, record: Record, *, status: int = 200) -> web.Response:
        return json_response(self._view(call).show(record.encoded), status)

    def _show_page(self, call: Call, page: Page, selection: Selection) -> web.Response:
        metadata: Object = {"resourceVersion": str(page.version)}
        if page.continue_token:
            metadata["continue"] = page.continue_token
            if not selection.is_narrowed:
                metadata["remainingItemCount"] = page.remaining
        return json_response(self._view(call).show_list(page, metadata=metadata))

    def _view(self, call: Call) -> View:
        accept = call.request.headers.get("Accept", "")
        return choose_view(call.target.kind, accept, call.query, now=self._store.now)

    def _find_page(self, call: Call, selection: Selection) -> Page:
        query, version = call.query, self._store.version
        collection = self._store.collection(call.target.kind)
        limit = bodies.parse_integer(query, "limit") or 0
        if token := query.get("continue"):
            return self._paging.next_page(token, limit=limit, horizon=collection.horizon)
        asked = bodies.parse_integer(query, "resourceVersion") or 0
        if asked > version:
            raise watching.too_large_version(asked, version)
        if query.get("resourceVersionMatch") == "Exact" and asked != version:
            raise answers.expired(f"the resource version {asked} is no longer available")
        records = collection.select(selection)
        return self._paging.first_page(records, version=version, limit=limit)

    def _parse_watch(self, call: Call) -> watching.Watch:
        query = call.query
        version = bodies.parse_integer(query, "resourceVersion")
        sends_initial = is_true(query.get("sendInitialEvents"))
        wants_bookmarks = is_true(query.get("allowWatchBookmarks"))
        view = self._view(call)
        timeout = bodies.parse_integer(query, "timeoutSeconds")
        return watching.Watch(
            selection=bodies.parse_selection(call.target, query),
            version=None if sends_initial or not version else version,
            timeout_seconds=min(
                timeout or watching.DEFAULT_TIMEOUT_SECONDS, watching.MAX_TIMEOUT_SECONDS
            ),
            bookmark_seconds=self._bookmark_seconds if wants_bookmarks else None,
            ends_initial_events=sends_initial and wants_bookmarks,
            render=None if view.is_plain else view.show,
        )


def json_response(body: bytes, status: int = 200) -> web.Response:
    """A response with an encoded JSON body."""
    return web.Response(body=body, status=status, content_type=JSON)


async def _joined(chunks: AsyncGenerator[list[bytes], None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(chunks):
        async for lines in chunks:
            yield b"".join(lines)


def _operation(verb: Literal["CREATE", "UPDATE", "DELETE"], call: Call) -> Operation:
    return Operation(
        verb=verb,
        target=call.target,
        user=call.user,
        dry_run=bodies.is_dry_run(call.query),
        field_validation=bodies.parse_field_validation(call.query),
    )


def _warned(response: web.Response, operation: Operation) -> web.Response:
    for warning in operation.warnings[:_MAX_WARNINGS]:
        printable = "".join(filter(str.isprintable, warning))[:_MAX_WARNING_CHARACTERS]
        text = printable.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{text}"')
    return response
