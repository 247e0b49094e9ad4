"""A server of one resource that plays what a test wrote for it: lists, and the bytes of watches."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from aiohttp import web

from hami.config import KubeSettings
from hami.kube.client import KubeClient, connect
from tests.support.scripted import scripted, write_kubeconfig

Play = Callable[[web.Request], Awaitable[web.StreamResponse]]


def raw_pod(name: str, version: int, **fields: Any) -> dict[str, Any]:
    """A pod's JSON as a server sends it."""
    meta = {"name": name, "namespace": "ns", "uid": f"u-{name}", "resourceVersion": str(version)}
    return {"metadata": meta, **fields}


def event(kind: str, obj: dict[str, Any]) -> bytes:
    """A line of a watch."""
    return json.dumps({"type": kind, "object": obj}).encode() + b"\n"


def status(code: int, reason: str = "") -> dict[str, Any]:
    """What a refusal's body, or an ERROR event, holds."""
    return {"kind": "Status", "code": code, "reason": reason, "message": "so it is"}


def refuse(code: int) -> Play:
    """Answer with a Status."""

    async def play(_: web.Request) -> web.StreamResponse:
        return web.json_response(status(code), status=code)

    return play


def listing(version: int, *objects: dict[str, Any], next_token: str = "") -> Play:
    """Answer with a page of a list."""

    async def play(_: web.Request) -> web.StreamResponse:
        meta = {"resourceVersion": str(version), "continue": next_token}
        return web.json_response({"metadata": meta, "items": objects})

    return play


def sending(*pieces: bytes) -> Play:
    """Send the pieces, then end the stream as a server does whose time-out has come."""

    async def play(request: web.Request) -> web.StreamResponse:
        return await _send(request, pieces)

    return play


def breaking(*pieces: bytes) -> Play:
    """Send the pieces, then break the connection."""

    async def play(request: web.Request) -> web.StreamResponse:
        response = await _send(request, pieces)
        assert request.transport is not None
        request.transport.abort()
        return response

    return play


def silent(*pieces: bytes) -> Play:
    """Send the pieces, then nothing, for ever."""

    async def play(request: web.Request) -> web.StreamResponse:
        response = await _send(request, pieces)
        await anyio.sleep_forever()
        return response

    return play


def chattering() -> Play:
    """Send blank lines for ever."""

    async def play(request: web.Request) -> web.StreamResponse:
        response = await _send(request, ())
        while True:
            await response.write(b"\n")
            await anyio.sleep(0.01)

    return play


class Player:
    """Plays the lists and watches it was given, in order; what comes after them stays silent."""

    def __init__(self, *, lists: list[Play], watches: list[Play]) -> None:
        self._lists = lists
        self._watches = watches
        self.listed: list[dict[str, str]] = []
        """The query of each list so far."""
        self.watched: list[str] = []
        """The version that each watch so far went on from."""

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            self.watched.append(request.query["resourceVersion"])
            return await (self._watches.pop(0) if self._watches else silent())(request)
        self.listed.append(dict(request.query))
        return await (self._lists.pop(0) if len(self._lists) > 1 else self._lists[0])(request)

    @asynccontextmanager
    async def client(self, directory: Path) -> AsyncIterator[KubeClient]:
        """A client of this player."""
        async with scripted(self) as address:
            path = write_kubeconfig(directory / "config", address)
            async with connect(KubeSettings(kubeconfig=path)) as client:
                yield client


async def _send(request: web.Request, pieces: tuple[bytes, ...]) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for piece in pieces:
        await response.write(piece)
    return response
