"""One HTTP extender: what kube-scheduler sends it and how it reads the answer.

Protocol: JSON by POST to ``<urlPrefix>/<verb>``; anything but 200, and an answer with ``Error``,
is an error. The keys are those of Go's fields without tags, read in any case.
"""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
import msgspec

from hami.errors import ConfigError, SandboxError
from hami.sandbox.scheduler.config import ExtenderConfig, TlsConfig
from hami.sandbox.scheduler.objects import Node, Pod

MAX_ANSWER_BYTES: Final = 256 * 2**20

T = TypeVar("T")


class ExtenderError(SandboxError):
    """The extender could not be asked, refused, or broke the protocol."""


class _Named(msgspec.Struct, frozen=True):
    name: str


class _Item(msgspec.Struct, frozen=True):
    metadata: _Named


class _Items(msgspec.Struct, frozen=True):
    items: list[_Item] | None = None


class _FilterResult(msgspec.Struct, frozen=True, rename="lower"):
    nodes: _Items | None = None
    node_names: list[str] | None = msgspec.field(default=None, name="nodenames")
    failed: dict[str, str] | None = msgspec.field(default=None, name="failednodes")
    unresolvable: dict[str, str] | None = msgspec.field(
        default=None, name="failedandunresolvablenodes"
    )
    error: str = ""


class _HostPriority(msgspec.Struct, frozen=True):
    host: str
    score: int = 0


class _BindingResult(msgspec.Struct, frozen=True):
    error: str = ""


class Filtered(msgspec.Struct, frozen=True):
    """An extender's answer to ``filter``."""

    nodes: list[str]
    failed: dict[str, str]
    """Why the others do not fit, where it said."""


class Extender:
    """One configured extender."""

    def __init__(self, config: ExtenderConfig, session: aiohttp.ClientSession) -> None:
        """Ask through ``session``, which the caller closes.

        Raises:
            ConfigError: Its certificates cannot be read.
        """
        self.config = config
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=config.timeout_seconds)
        self._managed = {resource.name for resource in config.managed_resources}
        self._ssl = ssl_context(config)

    @property
    def name(self) -> str:
        """How it is called in messages."""
        return self.config.url_prefix

    def is_interested(self, pod: Pod) -> bool:
        """Whether it manages anything that the pod asks for; without a list, everything."""
        return not self._managed or not self._managed.isdisjoint(pod.resource_names)

    async def filter(self, pod: Pod, nodes: Sequence[Node]) -> Filtered:
        """Which of the nodes can take the pod.

        Raises:
            ExtenderError: See the class; also where it names a node it was not asked about.
        """
        verb = self.config.filter_verb
        if not verb:
            return Filtered([node.name for node in nodes], {})
        result = await self._ask(verb, self._arguments(pod, nodes), _FilterResult)
        if result.error:
            raise ExtenderError(result.error)
        if self.config.node_cache_capable and result.node_names is not None:
            chosen = result.node_names
        else:
            items = (result.nodes.items if result.nodes else None) or []
            chosen = [item.metadata.name for item in items]
        asked = {node.name for node in nodes}
        for name in chosen:
            if name not in asked:
                raise ExtenderError(
                    f"extender {self.name!r} claims a filtered node {name!r} which is not found "
                    "in the input node list"
                )
        return Filtered(chosen, {**(result.failed or {}), **(result.unresolvable or {})})

    async def prioritize(self, pod: Pod, nodes: Sequence[Node]) -> dict[str, int]:
        """A score for each node, 0 to 10 by the protocol, not yet weighted.

        Raises:
            ExtenderError: See the class.
        """
        verb = self.config.prioritize_verb
        if not verb:
            return {}
        answer = await self._ask(verb, self._arguments(pod, nodes), list[_HostPriority])
        return {each.host: each.score for each in answer}

    async def bind(self, pod: Pod, node: str) -> None:
        """Have it bind the pod.

        Raises:
            ExtenderError: See the class.
        """
        arguments = {
            "PodName": pod.metadata.name,
            "PodNamespace": pod.metadata.namespace,
            "PodUID": pod.uid,
            "Node": node,
        }
        result = await self._ask(self.config.bind_verb, arguments, _BindingResult)
        if result.error:
            raise ExtenderError(result.error)

    def _arguments(self, pod: Pod, nodes: Sequence[Node]) -> dict[str, Any]:
        cached = self.config.node_cache_capable
        listed = {"metadata": {}, "items": [msgspec.Raw(node.raw) for node in nodes]}
        return {
            "Pod": msgspec.Raw(pod.raw),
            "Nodes": None if cached else listed,
            "NodeNames": [node.name for node in nodes] if cached else None,
        }

    async def _ask(self, verb: str, arguments: dict[str, Any], kind: type[T]) -> T:
        url = f"{self.config.url_prefix.rstrip('/')}/{verb}"
        tls = self.config.tls_config or TlsConfig()
        try:
            async with self._session.post(
                url,
                data=msgspec.json.encode(arguments),
                headers={"Content-Type": "application/json"},
                timeout=self._timeout,
                ssl=self._ssl,
                server_hostname=tls.server_name or None,
            ) as response:
                if response.status != 200:
                    raise ExtenderError(
                        f"failed {verb} with extender at URL {url}, code {response.status}"
                    )
                body = await response.content.read(MAX_ANSWER_BYTES)
        except TimeoutError as error:
            seconds = self.config.timeout_seconds
            raise ExtenderError(
                f'Post "{url}": context deadline exceeded after {seconds:g} s'
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ExtenderError(f'Post "{url}": {error}') from error
        try:
            return msgspec.convert(_lower(msgspec.json.decode(body)), kind)
        except msgspec.MsgspecError as error:
            raise ExtenderError(f"{verb} of extender {self.name!r}: {error}") from error


def ssl_context(config: ExtenderConfig) -> ssl.SSLContext | bool:
    """How to verify the extender; plain verification by this machine's authorities is True.

    As for kube-scheduler, ``enableHTTPS`` without an authority means no verification.

    Raises:
        ConfigError: A certificate or key cannot be read.
    """
    tls = config.tls_config or TlsConfig()
    has_authority = bool(tls.ca_file or tls.ca_data)
    if not config.enable_https and config.tls_config is None:
        return True
    try:
        context = ssl.create_default_context(
            cafile=tls.ca_file or None, cadata=tls.ca_data.decode("ascii") or None
        )
        if tls.insecure or (config.enable_https and not has_authority):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if tls.cert_file:
            context.load_cert_chain(tls.cert_file, tls.key_file)
        elif tls.cert_data:
            _load_pair(context, tls)
    except (OSError, ssl.SSLError, UnicodeDecodeError) as error:
        raise ConfigError(f"extender {config.url_prefix}: tlsConfig: {error}") from error
    return context


def _load_pair(context: ssl.SSLContext, tls: TlsConfig) -> None:
    """Python reads certificates from files only."""
    with tempfile.TemporaryDirectory(prefix="hami-") as directory:
        certificate, key = Path(directory) / "tls.crt", Path(directory) / "tls.key"
        certificate.write_bytes(tls.cert_data)
        key.write_bytes(tls.key_data)
        context.load_cert_chain(certificate, key)


def _lower(answer: object) -> object:
    """The keys of an answer, or of its entries, in lower case: Go reads them in any."""
    if isinstance(answer, list):
        return [_lower(entry) for entry in answer]
    if isinstance(answer, dict):
        return {str(key).lower(): value for key, value in answer.items()}
    return answer
