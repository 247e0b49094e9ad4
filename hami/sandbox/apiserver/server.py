"""The embedded API server: the socket, and what every request passes on its way.

Owns the lifetime of the HTTP server and the composition of its parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self

import anyio
import msgspec
import yaml
from aiohttp import web

from hami.errors import SandboxError
from hami.sandbox.apiserver import answers, bodies
from hami.sandbox.apiserver.admission import Admission
from hami.sandbox.apiserver.api import Api, json_response
from hami.sandbox.apiserver.registry import Registry
from hami.sandbox.apiserver.requests import parse_target
from hami.sandbox.apiserver.store import Store

_STOP_SECONDS: Final = 2.0


class ApiServer:
    """A Kubernetes API server in this process, with its objects in memory."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        store: Store | None = None,
        event_window: int = 10_000,
        bookmark_seconds: float = 60.0,
    ) -> None:
        self.store = store or Store(event_window=event_window)
        self.requests: Counter[tuple[str, str]] = Counter()
        """How many requests came in, by verb and resource, as in ``("patch", "pods/status")``."""
        self._host = host
        self._port = port
        registry = Registry(self.store, Admission(self.store))
        self._api = Api(self.store, registry, bookmark_seconds=bookmark_seconds)

    @property
    def url(self) -> str:
        """Where the server listens."""
        return f"http://{self._host}:{self._port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Serve requests until the block ends; raises SandboxError where the port is taken."""
        app = web.Application(client_max_size=bodies.MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(
            app,
            handle_signals=False,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=0.0,
        )
        await runner.setup()
        try:
            await self._listen(runner)
            yield self
        finally:
            with anyio.move_on_after(_STOP_SECONDS, shield=True):
                await runner.cleanup()

    def kubeconfig(self) -> str:
        """The YAML text of a kubeconfig for this server."""
        name = "hami-sandbox"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [{"name": name, "cluster": {"server": self.url}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "users": [{"name": name, "user": {}}],
        }
        return yaml.safe_dump(config, sort_keys=False)

    async def _listen(self, runner: web.AppRunner) -> None:
        site = web.TCPSite(runner, self._host, self._port)
        try:
            await site.start()
        except OSError as error:
            raise SandboxError(
                f"the API server cannot listen on {self._host}:{self._port}: {error}"
            ) from error
        self._port = runner.addresses[0][1]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except answers.StatusError as error:
            return refusal(error)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        target = parse_target(request.method, request.path, query=request.query)
        if target is None:
            raise answers.path_not_found()
        self.requests[target.verb, target.resource] += 1
        return await self._api.answer(request, target)


def refusal(error: answers.StatusError) -> web.Response:
    """The response that carries a refusal."""
    response = json_response(msgspec.json.encode(error.to_status()), error.code)
    if error.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(error.retry_after_seconds)
    return response
