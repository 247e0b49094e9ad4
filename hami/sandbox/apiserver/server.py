"""The embedded API server: the socket, and what every request passes on its way.

Owns the lifetime of the HTTP server and the composition of its parts.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import ssl
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import anyio
import msgspec
import yaml
from aiohttp import web

from hami.errors import SandboxError
from hami.logs import get_logger
from hami.sandbox.apiserver import answers, bodies, discovery
from hami.sandbox.apiserver.admission import Admission
from hami.sandbox.apiserver.api import Api, Call, json_response
from hami.sandbox.apiserver.faults import ConnectionDroppedError, Drop, Fault, Faults
from hami.sandbox.apiserver.kinds import ENDPOINTS
from hami.sandbox.apiserver.pods import LogReader
from hami.sandbox.apiserver.registry import Registry
from hami.sandbox.apiserver.requests import Target, parse_target
from hami.sandbox.apiserver.reviews import ResolveService, Reviewer
from hami.sandbox.apiserver.store import Store
from hami.sandbox.apiserver.webhooks import Webhooks

_FINISH_SECONDS: Final = 1.0
"""How long requests in flight may take to end when the server stops."""
_STOP_SECONDS: Final = 5.0
_NAME: Final = "hami-sandbox"
_REVIEW_PATH: Final = f"/apis/{discovery.REVIEW.group}/v1/{discovery.REVIEW.plural}"
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """The files of a server that speaks TLS."""

    certificate: Path
    key: Path
    authority: Path
    """The certificates by which clients know the server."""
    client_authority: Path | None = None
    """The certificates by which the server knows clients; None to take no client certificates."""

    def to_context(self) -> ssl.SSLContext:
        """What the socket needs; raises SandboxError for files that are not what they should be."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_authority is not None:
                context.load_verify_locations(self.client_authority)
                context.verify_mode = ssl.CERT_OPTIONAL
        except OSError as error:
            raise SandboxError(
                f"the certificate {self.certificate} is unusable: {error}"
            ) from error
        return context


class ApiServer:
    """A Kubernetes API server in this process, with its objects in memory.

    ``store`` seeds and inspects; ``faults`` makes requests fail; ``requests`` counts them.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tls: ServerTls | None = None,
        tokens: Mapping[str, str] | None = None,
        store: Store | None = None,
        event_window: int = 10_000,
        bookmark_seconds: float = 60.0,
        resolve_service: ResolveService | None = None,
        fault_seed: int = 0,
    ) -> None:
        self.store = store or Store(event_window=event_window)
        self.faults = Faults(seed=fault_seed, forget_changes=self.store.forget_changes)
        self.requests: Counter[tuple[str, str]] = Counter()
        """How many requests came in, by verb and resource, as in ``("patch", "pods/status")``."""
        self._host = host
        self._port = port
        self._tls = tls
        self._tokens = dict(tokens or {})
        self._reviewer = Reviewer(resolve_service=resolve_service or self._find_endpoint)
        admission = Admission(self.store, Webhooks(self.store, self._reviewer))
        registry = Registry(self.store, admission)
        self._api = Api(self.store, registry, faults=self.faults, bookmark_seconds=bookmark_seconds)

    @property
    def url(self) -> str:
        """Where the server listens; the port is known once it runs."""
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{self._host}:{self._port}"

    @property
    def log_reader(self) -> LogReader | None:
        """Who knows the logs of containers; with None, ``pods/log`` answers 404."""
        return self._api.log_reader

    @log_reader.setter
    def log_reader(self, reader: LogReader | None) -> None:
        self._api.log_reader = reader

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Self, None]:
        """Serve requests until the block ends.

        Raises SandboxError where the port is taken or a certificate unusable. The port stays the
        same when the server runs a second time.
        """
        app = web.Application(client_max_size=bodies.MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(
            app,
            handle_signals=False,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=_FINISH_SECONDS,
        )
        async with self._reviewer:
            await runner.setup()
            try:
                await self._listen(runner)
                yield self
            finally:
                self.faults.drop_streams()
                with anyio.move_on_after(_STOP_SECONDS, shield=True):
                    await runner.cleanup()

    def kubeconfig(self, *, token: str = "") -> str:
        """The YAML text of a kubeconfig; with the first token where none is given."""
        cluster: dict[str, Any] = {"server": self.url}
        if self._tls:
            authority = self._tls.authority.read_bytes()
            cluster["certificate-authority-data"] = base64.b64encode(authority).decode()
        token = token or next(iter(self._tokens), "")
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": _NAME,
            "clusters": [{"name": _NAME, "cluster": cluster}],
            "contexts": [{"name": _NAME, "context": {"cluster": _NAME, "user": _NAME}}],
            "users": [{"name": _NAME, "user": {"token": token} if token else {}}],
        }
        return yaml.safe_dump(config, sort_keys=False)

    async def _listen(self, runner: web.AppRunner) -> None:
        context = self._tls.to_context() if self._tls else None
        site = web.TCPSite(runner, self._host, self._port, ssl_context=context)
        try:
            await site.start()
        except OSError as error:
            raise SandboxError(
                f"the API server cannot listen on {self._host}:{self._port}: {error}"
            ) from error
        self._port = runner.addresses[0][1]
        _log.info("api_server_started", url=self.url)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except answers.StatusError as error:
            return _refusal(error)
        except ConnectionDroppedError:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.faults.is_down():
            raise ConnectionDroppedError("the server is down")
        accept = request.headers.get("Accept", "")
        if request.method == "GET" and (found := discovery.describe(request.path, accept)):
            return web.Response(body=found[1], headers={"Content-Type": found[0]})
        user = self._authenticate(request)
        if request.method == "POST" and request.path == _REVIEW_PATH:
            return await _review_access(request)
        target = parse_target(request.method, request.path, query=request.query)
        if target is None:
            raise answers.path_not_found()
        self.requests[target.verb, target.resource] += 1
        fault = self.faults.find(target)
        if fault is not None and fault.drop is Drop.EARLY:
            await _outlive_client(request)
        await _fail_before(target, fault)
        call = Call(request=request, target=target, user=user, fault=fault)
        response = await self._api.answer(call)
        if fault is not None and fault.drop in (Drop.AFTER, Drop.EARLY):
            raise ConnectionDroppedError("an injected fault cut the connection")
        return response

    def _authenticate(self, request: web.Request) -> str:
        """The user's name; raises StatusError(401) if it must be known and is not."""
        certificate = request.get_extra_info("peercert") if self._tls else None
        for relative in (certificate or {}).get("subject", ()):
            for attribute, value in relative:
                if attribute == "commonName":
                    return str(value)
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        for token, user in self._tokens.items():
            if hmac.compare_digest(given, token.encode()):
                return user
        if self._tokens or (self._tls and self._tls.client_authority):
            raise answers.StatusError(401, "Unauthorized", "Unauthorized")
        return "system:admin"

    def _find_endpoint(self, namespace: str, name: str, _port: int) -> tuple[str, int] | None:
        """The first address of the Service's Endpoints, as a cluster's network would find it."""
        record = self.store.find_record(ENDPOINTS, (namespace, name))
        for subset in (record.decode().get("subsets") or ()) if record else ():
            addresses, ports = subset.get("addresses"), subset.get("ports")
            if addresses and ports:
                return addresses[0]["ip"], ports[0]["port"]
        return None


async def _outlive_client(request: web.Request) -> None:
    """Cut the connection and go on: that the client has gone is told as one cancellation."""
    await request.read()
    task = asyncio.current_task()
    if request.transport is None or task is None:
        return
    request.transport.abort()
    try:
        await anyio.sleep(_FINISH_SECONDS)
    except asyncio.CancelledError:
        task.uncancel()


async def _fail_before(target: Target, fault: Fault | None) -> None:
    if fault is None:
        return
    if target.verb != "watch":
        await anyio.sleep(fault.delay_seconds)
    if fault.drop is Drop.BEFORE:
        raise ConnectionDroppedError("an injected fault cut the connection")
    if fault.status:
        raise fault.refusal()


async def _review_access(request: web.Request) -> web.Response:
    """Everybody may do everything here, and that is what the review says."""
    review = await bodies.read_object(request)
    reason = "this server has no authorizer"
    review["status"] = {"allowed": True, "reason": reason}
    return json_response(msgspec.json.encode(review), 201)


def _refusal(error: answers.StatusError) -> web.Response:
    response = json_response(msgspec.json.encode(error.to_status()), error.code)
    if error.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(error.retry_after_seconds)
    return response
