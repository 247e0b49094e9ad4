"""One AdmissionReview: the question, the call over TLS, and the check of the answer.

What a webhook answers is not trusted: it is an answer to this very request, or it is a CallError.
Knows nothing of rules and policies.
"""

from __future__ import annotations

import base64
import binascii
import ssl
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import aiohttp
import msgspec

from hami.errors import SandboxError
from hami.sandbox.apiserver.operation import Operation
from hami.sandbox.apiserver.patching import Json, PatchError, apply_json_patch
from hami.sandbox.apiserver.records import Object

_MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
_MAX_CONNECTIONS: Final = 256
_MAX_CONTEXTS: Final = 64

ResolveService = Callable[[str, str, int], tuple[str, int] | None]
"""From (namespace, name, port) of a Service to the host and port to connect to, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a webhook listens and what it speaks."""

    client: Mapping[str, Any]
    """A ``clientConfig``."""
    version: str
    """``v1`` or ``v1beta1``."""
    timeout_seconds: float


class Answer(msgspec.Struct, rename="camel"):
    """The ``response`` of an AdmissionReview."""

    uid: str
    allowed: bool
    patch: str | None = None
    patch_type: str | None = None
    status: dict[str, Any] | None = None
    warnings: list[str] = msgspec.field(default_factory=list)


class _Review(msgspec.Struct, rename="camel"):
    kind: str
    api_version: str
    response: Answer


class CallError(SandboxError):
    """The webhook gave no usable answer."""


class Reviewer:
    """Puts reviews to webhooks; use it as a context manager for its connections."""

    def __init__(self, *, resolve_service: ResolveService) -> None:
        self._resolve_service = resolve_service
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_MAX_CONNECTIONS)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def review(
        self, endpoint: Endpoint, operation: Operation, obj: Object | None, old: Object | None
    ) -> Answer:
        """What the webhook answers; raises CallError."""
        review = _build_review(operation, obj, old, version=endpoint.version)
        body = await self._post(endpoint, msgspec.json.encode(review))
        try:
            answered = msgspec.json.decode(body, type=_Review)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CallError(f"the answer is no AdmissionReview: {error}") from error
        sent, met = review["apiVersion"], answered.api_version
        if (answered.kind, met) != ("AdmissionReview", sent):
            raise CallError(f"expected AdmissionReview in {sent}, met {answered.kind} in {met}")
        asked, answer = review["request"]["uid"], answered.response
        if answer.uid != asked:
            raise CallError(f"expected response.uid={asked!r}, met {answer.uid!r}")
        return answer

    async def _post(self, endpoint: Endpoint, body: bytes) -> bytes:
        url, server_name = self._address(endpoint.client)
        if self._session is None:
            raise CallError("the server is not running")
        try:
            async with self._session.post(
                url,
                data=body,
                headers={"Content-Type": "application/json", "Accept": "application/json"},
                ssl=self._context(endpoint.client.get("caBundle") or ""),
                server_hostname=server_name,
                timeout=aiohttp.ClientTimeout(total=endpoint.timeout_seconds),
                allow_redirects=False,
            ) as response:
                answer = await _read_bounded(response)
        except TimeoutError as error:
            raise CallError(f'Post "{url}": context deadline exceeded') from error
        except (aiohttp.ClientError, OSError) as error:
            raise CallError(f'Post "{url}": {error}') from error
        if response.status != 200:
            text = answer[:200].decode(errors="replace")
            raise CallError(f'Post "{url}": the server answered {response.status}: {text}')
        return answer

    def _address(self, client: Mapping[str, Any]) -> tuple[str, str | None]:
        """The URL to call, and the name on the certificate where the URL does not say it."""
        if client.get("url"):
            return str(client["url"]), None
        service = client["service"]
        namespace, name = service["namespace"], service["name"]
        address = self._resolve_service(namespace, name, service.get("port") or 443)
        if address is None:
            raise CallError(f'service "{name}" in namespace "{namespace}" has no endpoint')
        path = (service.get("path") or "").lstrip("/")
        return f"https://{address[0]}:{address[1]}/{path}", f"{name}.{namespace}.svc"

    def _context(self, bundle: str) -> ssl.SSLContext:
        context = self._contexts.get(bundle)
        if context is None:
            try:
                pem = base64.b64decode(bundle).decode("ascii")
                context = ssl.create_default_context(cadata=pem or None)
            except (binascii.Error, UnicodeDecodeError, ssl.SSLError) as error:
                raise CallError(f"the caBundle holds no certificates: {error}") from error
            if len(self._contexts) >= _MAX_CONTEXTS:
                self._contexts.clear()
            self._contexts[bundle] = context
        return context


def patched(obj: Object, answer: Answer) -> Object:
    """A copy of the object as the answer wants it; raises CallError if its patch does not fit."""
    if answer.patch_type != "JSONPatch":
        raise CallError(f"expected patchType JSONPatch, met {answer.patch_type!r}")
    try:
        operations: Json = msgspec.json.decode(base64.b64decode(answer.patch or ""))
        copied = msgspec.json.decode(msgspec.json.encode(obj))
        changed = apply_json_patch(copied, operations)
    except (binascii.Error, ValueError, msgspec.DecodeError, PatchError) as error:
        raise CallError(f"the patch cannot be applied: {error}") from error
    if not isinstance(changed, dict) or not isinstance(changed.get("metadata"), dict):
        raise CallError("the patch leaves no object")
    return changed


def _build_review(
    operation: Operation, obj: Object | None, old: Object | None, *, version: str
) -> Object:
    target = operation.target
    kind = target.kind
    group_kind = {"group": kind.group, "version": kind.version, "kind": kind.kind}
    resource = {"group": kind.group, "version": kind.version, "resource": kind.plural}
    request: Object = {
        "uid": str(uuid.uuid4()),
        "kind": group_kind,
        "resource": resource,
        "requestKind": group_kind,
        "requestResource": resource,
        "name": target.name or ((obj or {}).get("metadata") or {}).get("name", ""),
        "operation": operation.verb,
        "userInfo": {"username": operation.user, "groups": ["system:authenticated"]},
        "object": obj,
        "oldObject": old,
        "dryRun": operation.dry_run,
        "options": None,
    }
    if target.namespace:
        request["namespace"] = target.namespace
    if target.subresource:
        request["subResource"] = request["requestSubResource"] = target.subresource
    api_version = f"admission.k8s.io/{version}"
    return {"kind": "AdmissionReview", "apiVersion": api_version, "request": request}


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(65536):
        body += chunk
        if len(body) > _MAX_ANSWER_BYTES:
            raise CallError(f"the answer has more than {_MAX_ANSWER_BYTES} bytes")
    return bytes(body)
