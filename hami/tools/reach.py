"""How a command reaches the controller's read-only endpoints, and what came back.

In this order: the address that was given (``--server``, ``$HAMI_SERVER``), a sandbox that runs on
this machine (unless ``$KUBECONFIG`` names another cluster), the API server's proxy to the
controller's Service. Knows HTTP and nothing of what is asked.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar
from urllib.parse import quote, urlsplit

import aiohttp
import anyio
import msgspec

from hami.config import KubeSettings
from hami.controllers.answers import Problem
from hami.errors import CodecError, ConfigError, InquiryError, SandboxError, UnavailableError
from hami.kube import client as kube_client
from hami.kube.client import KubeClient
from hami.kube.status import parse_status
from hami.sandbox import lifecycle

SERVER_ENV: Final = "HAMI_SERVER"
SERVICE_ENV: Final = "HAMI_SERVICE"
SERVICE: Final = "hami-system/hami-controller:9395"
ANSWER_SECONDS: Final = 60.0
CONNECT_SECONDS: Final = 5.0
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024

_SERVICE: Final = re.compile(r"([-a-z0-9]{1,63})/([-a-z0-9]{1,63}):([-a-z0-9]{1,63})")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the user says the controller is; None and empty mean to find it."""

    server: str | None = None
    service: str | None = None
    kubeconfig: Path | None = None
    sandbox: Path | None = None
    """State directory of the sandbox to look for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    body: bytes

    def decode(self, shape: type[T]) -> T:
        """The answer itself.

        Raises:
            InquiryError: The controller refused, in its own words.
            UnavailableError: Something in between did.
        """
        if self.status == 200:
            try:
                return msgspec.json.decode(self.body, type=shape)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise CodecError(f"the controller's answer: {error}") from error
        problem = self.problem()
        if problem is None:
            status = parse_status(self.body)
            raise UnavailableError(
                f"no controller answered: {self.status} {status.message or status.reason}",
                status=self.status,
            )
        raise InquiryError(problem.error)

    def problem(self) -> Problem | None:
        """The controller's refusal, if it is one."""
        try:
            return msgspec.json.decode(self.body, type=Problem)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None


class Controller(Protocol):
    """A controller that can be asked."""

    async def ask(self, path: str, body: bytes | None = None) -> Answer:
        """GET the path, or POST the body to it.

        Raises:
            UnavailableError: Nobody answered.
        """


@asynccontextmanager
async def reach(
    target: Target, environment: Mapping[str, str] = os.environ
) -> AsyncIterator[Controller]:
    """The controller, found as the module says; nothing is sent yet.

    Raises:
        ConfigError: An address is none, or there is no way to the API server.
    """
    server = target.server or environment.get(SERVER_ENV) or _sandbox(target, environment)
    if server:
        async with aiohttp.ClientSession(trust_env=False) as session:
            yield _Direct(session=session, url=_checked(server))
        return
    path = _proxy_path(target.service or environment.get(SERVICE_ENV) or SERVICE)
    kubeconfig = None if target.kubeconfig is None else str(target.kubeconfig)
    settings = KubeSettings(kubeconfig=kubeconfig, request_timeout_seconds=ANSWER_SECONDS)
    async with kube_client.connect(settings, environment=environment) as client:
        yield _Proxied(client=client, prefix=path)


def _sandbox(target: Target, environment: Mapping[str, str]) -> str:
    """The address of a running sandbox's controller; empty where none runs, or another is meant."""
    if target.service or target.kubeconfig:
        return ""
    try:
        facts = lifecycle.facts(lifecycle.directory(target.sandbox))
    except SandboxError:
        if target.sandbox is None:
            return ""
        raise
    chosen = environment.get("KUBECONFIG")
    if chosen and target.sandbox is None and Path(chosen) != Path(facts["kubeconfig"]):
        return ""
    return facts.get("health", "")


def _checked(server: str) -> str:
    try:
        parts = urlsplit(server)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"--server {server[:200]}: expected a URL such as http://10.0.0.7:9395")
    return server.rstrip("/")


def _proxy_path(service: str) -> str:
    parts = _SERVICE.fullmatch(service)
    if parts is None:
        raise ConfigError(f"--service {service[:200]}: expected NAMESPACE/NAME:PORT")
    namespace, name, port = (quote(part, safe="") for part in parts.groups())
    return f"/api/v1/namespaces/{namespace}/services/http:{name}:{port}/proxy"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Direct:
    """By its own address."""

    session: aiohttp.ClientSession
    url: str

    async def ask(self, path: str, body: bytes | None = None) -> Answer:
        """See ``Controller``."""
        timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS)
        try:
            with anyio.fail_after(ANSWER_SECONDS):
                async with self.session.request(
                    "GET" if body is None else "POST",
                    self.url + path,
                    data=body,
                    headers={"Content-Type": "application/json"},
                    timeout=timeout,
                ) as response:
                    return Answer(status=response.status, body=await _bounded(response))
        except TimeoutError as error:
            raise UnavailableError(f"controller at {self.url}: no answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UnavailableError(f"controller at {self.url}: no answer: {error}") from error


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := await response.content.readany():
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise CodecError(f"the controller's answer: more than {MAX_ANSWER_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proxied:
    """Through the API server, with the user's own rights."""

    client: KubeClient
    prefix: str

    async def ask(self, path: str, body: bytes | None = None) -> Answer:
        """See ``Controller``."""
        verb = "GET" if body is None else "POST"
        status, text = await self.client.ask(verb, self.prefix + path, body)
        answer = Answer(status=status, body=text)
        if status != 200 and answer.problem() is None:
            told = parse_status(text)
            raise UnavailableError(
                f"no controller behind {self.client.host}{self.prefix}: {status} "
                f"{told.message or told.reason or 'no reason'}; "
                "say where it is with --server URL or --service NAMESPACE/NAME:PORT",
                status=status,
            )
        return answer
