"""A plain REST client of the sandbox's API server, for tests of what goes over the wire."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import anyio

from hami.sandbox.apiserver import ApiServer

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"


@dataclass(frozen=True, slots=True)
class Stream:
    """The events of one watch."""

    response: aiohttp.ClientResponse

    async def take(self, count: int) -> list[Any]:
        """The next so many events; fails if they do not come."""
        with anyio.fail_after(10):
            return [json.loads(await self._line()) for _ in range(count)]

    async def take_all(self) -> list[Any]:
        """The events until the server ends the stream."""
        with anyio.fail_after(10):
            return [json.loads(line) async for line in self.response.content]

    async def _line(self) -> bytes:
        line = await self.response.content.readline()
        assert line.endswith(b"\n"), f"the stream ended with {line!r}"
        return line


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """Sends requests and asserts their status."""

    server: ApiServer
    session: aiohttp.ClientSession

    @staticmethod
    @asynccontextmanager
    async def connect(server: ApiServer) -> AsyncIterator[Rest]:
        async with aiohttp.ClientSession(server.url) as session:
            yield Rest(server=server, session=session)

    async def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        content_type: str = "application/json",
        expect: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        sent = {"Content-Type": content_type, **(headers or {})}
        data = None if body is None else io.BytesIO(body)
        async with self.session.request(method, path, data=data, headers=sent) as response:
            answer = await response.json()
            wanted = (expect,) if expect else (200, 201)
            assert response.status in wanted, answer
            return answer

    @asynccontextmanager
    async def watch(self, path: str) -> AsyncIterator[Stream]:
        url = f"{path}{'&' if '?' in path else '?'}watch=1"
        async with self.session.get(url) as response:
            assert response.status == 200, await response.text()
            yield Stream(response)

    async def get(self, path: str, *, expect: int | None = None) -> Any:
        return await self.send("GET", path, expect=expect)

    async def post(self, path: str, obj: Any, *, expect: int | None = None) -> Any:
        return await self.send("POST", path, json.dumps(obj).encode(), expect=expect)

    async def put(self, path: str, obj: Any, *, expect: int | None = None) -> Any:
        return await self.send("PUT", path, json.dumps(obj).encode(), expect=expect)

    async def patch(
        self, path: str, patch: Any, content_type: str, *, expect: int | None = None
    ) -> Any:
        body = json.dumps(patch).encode()
        return await self.send("PATCH", path, body, content_type=content_type, expect=expect)

    async def delete(self, path: str, options: Any = None, *, expect: int | None = None) -> Any:
        body = None if options is None else json.dumps(options).encode()
        return await self.send("DELETE", path, body, expect=expect)


def make_pod(
    *,
    name: str = "web",
    node: str = "",
    labels: Mapping[str, str] | None = None,
    limits: Mapping[str, Any] | None = None,
    namespace: str = "default",
) -> dict[str, Any]:
    container: dict[str, Any] = {"name": "main", "image": "example.com/app:1"}
    if limits:
        container["resources"] = {"limits": dict(limits)}
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"labels": dict(labels or {})},
        "spec": {"containers": [container]},
    }
    if name:
        pod["metadata"]["name"] = name
    if namespace != "default":
        pod["metadata"]["namespace"] = namespace
    if node:
        pod["spec"]["nodeName"] = node
    return pod
