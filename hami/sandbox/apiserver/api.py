"""The REST verbs: from a Target to an HTTP response.

Each method reads a request, calls the registry or the store, and encodes the answer; the rules are
theirs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from hami.sandbox.apiserver import answers, bodies, watching
from hami.sandbox.apiserver.kinds import Kind
from hami.sandbox.apiserver.paging import Page, Paging
from hami.sandbox.apiserver.records import Record, Selection, untyped
from hami.sandbox.apiserver.registry import Registry
from hami.sandbox.apiserver.requests import Target, is_true
from hami.sandbox.apiserver.store import Store

Handler = Callable[[web.Request, Target], Awaitable[web.StreamResponse]]


class Api:
    """Answers requests on stored objects."""

    def __init__(self, store: Store, registry: Registry, *, bookmark_seconds: float) -> None:
        self._store = store
        self._registry = registry
        self._bookmark_seconds = bookmark_seconds
        self._paging = Paging()
        self._verbs: Mapping[str, Handler] = {
            "get": self._get,
            "list": self._list,
            "watch": self._watch,
            "create": self._create,
            "update": self._update,
            "patch": self._patch,
            "delete": self._delete,
            "deletecollection": self._delete_collection,
        }

    async def answer(self, request: web.Request, target: Target) -> web.StreamResponse:
        """The response to a request; raises StatusError."""
        handler = self._verbs.get(target.verb)
        if handler is None:
            raise answers.method_not_allowed()
        return await handler(request, target)

    async def _get(self, request: web.Request, target: Target) -> web.StreamResponse:
        return object_response(self._store.get_record(target.kind, target.key))

    async def _list(self, request: web.Request, target: Target) -> web.StreamResponse:
        selection = bodies.parse_selection(target, request.query)
        page = self._find_page(target.kind, selection, request.query)
        return json_response(_encode_list(target.kind, page, selection))

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        watch = self._parse_watch(target, request.query)
        collection = self._store.collection(target.kind)
        response = web.StreamResponse(headers={"Content-Type": bodies.JSON})
        await response.prepare(request)
        async for lines in watching.events(collection, watch, version=lambda: self._store.version):
            await response.write(b"".join(lines))
        return response

    async def _create(self, request: web.Request, target: Target) -> web.StreamResponse:
        if target.name:
            raise answers.method_not_allowed()
        obj = await bodies.read_object(request)
        dry_run = bodies.is_dry_run(request.query)
        return object_response(await self._registry.create(target, obj, dry_run=dry_run), 201)

    async def _update(self, request: web.Request, target: Target) -> web.StreamResponse:
        obj = await bodies.read_object(request)
        dry_run = bodies.is_dry_run(request.query)
        return object_response(await self._registry.update(target, obj, dry_run=dry_run))

    async def _patch(self, request: web.Request, target: Target) -> web.StreamResponse:
        patch = await bodies.read_patch(request, target)
        dry_run = bodies.is_dry_run(request.query)
        return object_response(await self._registry.patch(target, patch, dry_run=dry_run))

    async def _delete(self, request: web.Request, target: Target) -> web.StreamResponse:
        if target.subresource:
            raise answers.method_not_allowed()
        options = await bodies.read_delete_options(request)
        return object_response(await self._registry.delete(target, options))

    async def _delete_collection(self, request: web.Request, target: Target) -> web.StreamResponse:
        options = await bodies.read_delete_options(request)
        selection = bodies.parse_selection(target, request.query)
        deleted = []
        for record in self._store.collection(target.kind).select(selection):
            one = Target(
                verb="delete", kind=target.kind, namespace=record.key[0], name=record.key[1]
            )
            deleted.append(await self._registry.delete(one, options))
        page = Page(records=deleted, version=self._store.version)
        return json_response(_encode_list(target.kind, page, selection))

    def _find_page(self, kind: Kind, selection: Selection, query: Mapping[str, str]) -> Page:
        collection = self._store.collection(kind)
        limit = bodies.parse_integer(query, "limit") or 0
        if token := query.get("continue"):
            return self._paging.next_page(token, limit=limit, horizon=collection.horizon)
        asked = bodies.parse_integer(query, "resourceVersion") or 0
        if asked > self._store.version:
            raise watching.too_large_version(asked, self._store.version)
        if query.get("resourceVersionMatch") == "Exact" and asked != self._store.version:
            raise answers.expired(f"the resource version {asked} is no longer available")
        records = collection.select(selection)
        return self._paging.first_page(records, version=self._store.version, limit=limit)

    def _parse_watch(self, target: Target, query: Mapping[str, str]) -> watching.Watch:
        version = bodies.parse_integer(query, "resourceVersion")
        sends_initial = is_true(query.get("sendInitialEvents"))
        wants_bookmarks = is_true(query.get("allowWatchBookmarks"))
        timeout = bodies.parse_integer(query, "timeoutSeconds")
        return watching.Watch(
            selection=bodies.parse_selection(target, query),
            version=None if sends_initial or not version else version,
            timeout_seconds=timeout or watching.DEFAULT_TIMEOUT_SECONDS,
            bookmark_seconds=self._bookmark_seconds if wants_bookmarks else None,
            ends_initial_events=sends_initial and wants_bookmarks,
        )


def json_response(body: bytes, status: int = 200) -> web.Response:
    """A response with an encoded JSON body."""
    return web.Response(body=body, status=status, content_type=bodies.JSON)


def object_response(record: Record, status: int = 200) -> web.Response:
    """A response that shows one object."""
    return json_response(record.encoded, status)


def _encode_list(kind: Kind, page: Page, selection: Selection) -> bytes:
    metadata: dict[str, Any] = {"resourceVersion": str(page.version)}
    if page.continue_token:
        metadata["continue"] = page.continue_token
        if not selection.is_narrowed:
            metadata["remainingItemCount"] = page.remaining
    head = {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": metadata}
    items = b",".join(untyped(kind, record) for record in page.records)
    return b'%s,"items":[%s]}' % (msgspec.json.encode(head)[:-1], items)
