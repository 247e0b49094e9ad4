"""A scripted scheduler extender: answers as it is told, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from aiohttp import web

from hami.kube.client import KubeClient

Answer = Callable[[dict[str, Any]], object]


class ScriptedExtender:
    """Passes every node and binds through the API server, unless told otherwise."""

    def __init__(self, client: KubeClient) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.filter: Answer = lambda asked: {"NodeNames": asked["NodeNames"], "Error": ""}
        self.prioritize: Answer = lambda asked: []
        self.bind: Callable[[dict[str, Any]], Any] | None = None
        self.status = 200
        self.hold: anyio.Event | None = None
        self.url = ""
        self._client = client

    def asked(self, verb: str) -> list[dict[str, Any]]:
        return [body for name, body in self.calls if name == verb]

    @asynccontextmanager
    async def serving(self, **site: Any) -> AsyncIterator[ScriptedExtender]:
        app = web.Application(client_max_size=2**30)
        app.router.add_post("/{verb}", self._handle)
        runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, **site).start()
            scheme = "https" if site.get("ssl_context") else "http"
            self.url = f"{scheme}://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            with anyio.CancelScope(shield=True):
                await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        verb = request.match_info["verb"]
        body = await request.json()
        self.calls.append((verb, body))
        if self.hold is not None:
            await self.hold.wait()
        if self.status != 200:
            return web.Response(status=self.status)
        if verb == "bind":
            return web.json_response(await self._bind(body))
        answer = self.filter if verb == "filter" else self.prioritize
        return web.json_response(answer(body))

    async def _bind(self, body: dict[str, Any]) -> object:
        if self.bind is not None:
            return self.bind(body)
        namespace, name = body["PodNamespace"], body["PodName"]
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace, "uid": body["PodUID"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": body["Node"]},
        }
        await self._client.post(f"/api/v1/namespaces/{namespace}/pods/{name}/binding", binding)
        return {"Error": ""}
