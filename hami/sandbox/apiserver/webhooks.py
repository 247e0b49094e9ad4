"""Calls admission webhooks, as the stored configurations say.

Owns which webhooks a write concerns, the AdmissionReview exchange over TLS, and what follows from
an answer or from none. What a webhook answers is not trusted: it is an answer to this very request
or it is a failure. matchPolicy makes no difference here, since no kind has two versions.
"""

from __future__ import annotations

import base64
import binascii
import ssl
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import msgspec

from hami.errors import SandboxError
from hami.logs import get_logger
from hami.sandbox.apiserver import answers, selectors
from hami.sandbox.apiserver.kinds import MUTATING_WEBHOOKS, NAMESPACE, VALIDATING_WEBHOOKS, Kind
from hami.sandbox.apiserver.operation import Operation
from hami.sandbox.apiserver.patching import Json, PatchError, apply_json_patch
from hami.sandbox.apiserver.records import Object, Selection
from hami.sandbox.apiserver.store import Store

_MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
_log = get_logger(__name__)

ResolveService = Callable[[str, str, int], tuple[str, int] | None]
"""From (namespace, name, port) of a Service to the host and port to connect to, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """One webhook of a stored configuration, compiled."""

    name: str
    client: Mapping[str, Any]
    rules: tuple[Mapping[str, Any], ...]
    namespaces: tuple[selectors.Requirement, ...]
    objects: tuple[selectors.Requirement, ...]
    versions: tuple[str, ...]
    ignores_failure: bool
    timeout_seconds: float
    reinvokes: bool = False


class _Answer(msgspec.Struct, rename="camel"):
    uid: str
    allowed: bool
    patch: str | None = None
    patch_type: str | None = None
    status: dict[str, Any] | None = None
    warnings: list[str] = msgspec.field(default_factory=list)


class _Review(msgspec.Struct, rename="camel"):
    kind: str
    api_version: str
    response: _Answer


class _CallError(SandboxError):
    """The webhook gave no usable answer."""


@dataclass(slots=True)
class _Compiled:
    version: int = -1
    webhooks: tuple[Webhook, ...] = field(default_factory=tuple)


class WebhookCaller:
    """Asks the webhooks that a write concerns; use it as a context manager for its connections."""

    def __init__(self, store: Store, *, resolve_service: ResolveService) -> None:
        self._store = store
        self._resolve_service = resolve_service
        self._compiled = {kind: _Compiled() for kind in (MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS)}
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> WebhookCaller:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=256))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def mutate(self, operation: Operation, obj: Object, old: Object | None) -> Object:
        """The object as the mutating webhooks want it; raises StatusError if one denies it.

        A webhook with ``reinvocationPolicy: IfNeeded`` is asked once more if a later one changed
        the object after it.
        """
        asked: list[Webhook] = []
        again: list[Webhook] = []
        for webhook in self._matching(MUTATING_WEBHOOKS, operation, obj, old):
            changed = await self._ask_to_change(webhook, operation, obj, old)
            if changed != obj:
                again = [earlier for earlier in asked if earlier.reinvokes]
            obj = changed
            asked.append(webhook)
        for webhook in again:
            obj = await self._ask_to_change(webhook, operation, obj, old)
        return obj

    async def validate(self, operation: Operation, obj: Object | None, old: Object | None) -> None:
        """Ask the validating webhooks; raises StatusError if one denies the write.

        A deletion is put before the mutating ones too: they have nothing to change, but may deny.
        """
        if obj is None:
            for webhook in self._matching(MUTATING_WEBHOOKS, operation, obj, old):
                await self._ask(webhook, operation, obj, old)
        for webhook in self._matching(VALIDATING_WEBHOOKS, operation, obj, old):
            await self._ask(webhook, operation, obj, old)

    def _matching(
        self, kind: Kind, operation: Operation, obj: Object | None, old: Object | None
    ) -> list[Webhook]:
        if operation.target.kind in (MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS):
            return []
        namespace_labels = self._namespace_labels(operation, obj)
        labels = [_labels(one) for one in (obj, old) if one is not None]
        return [
            webhook
            for webhook in self._webhooks(kind)
            if any(_covers(rule, operation) for rule in webhook.rules)
            and (
                namespace_labels is None
                or selectors.matches_labels(webhook.namespaces, namespace_labels)
            )
            and any(selectors.matches_labels(webhook.objects, one) for one in labels)
        ]

    def _webhooks(self, kind: Kind) -> tuple[Webhook, ...]:
        """The webhooks of all configurations, in the order of their names; compiled once."""
        compiled = self._compiled[kind]
        collection = self._store.collection(kind)
        if compiled.version != collection.end:
            compiled.version = collection.end
            compiled.webhooks = tuple(
                _compile(webhook)
                for record in collection.select(Selection())
                for webhook in record.decode().get("webhooks") or ()
            )
        return compiled.webhooks

    def _namespace_labels(
        self, operation: Operation, obj: Object | None
    ) -> Mapping[str, str] | None:
        """The labels that a namespaceSelector looks at; None where it does not apply."""
        kind = operation.target.kind
        if kind is NAMESPACE and obj is not None:
            return _labels(obj)
        if not kind.namespaced:
            return None
        record = self._store.find_record(NAMESPACE, ("", operation.target.namespace))
        return record.labels if record else {}

    async def _ask_to_change(
        self, webhook: Webhook, operation: Operation, obj: Object, old: Object | None
    ) -> Object:
        answer = await self._ask(webhook, operation, obj, old)
        if answer is None or not answer.patch:
            return obj
        try:
            patched = _patched(obj, answer)
        except _CallError as error:
            if webhook.ignores_failure:
                return obj
            raise _failed(webhook, error) from error
        return patched

    async def _ask(
        self, webhook: Webhook, operation: Operation, obj: Object | None, old: Object | None
    ) -> _Answer | None:
        """The answer of a webhook that allows; None of one whose failure is ignored."""
        try:
            answer = await self._call(webhook, operation, obj, old)
        except _CallError as error:
            _log.warning("webhook_failed", webhook=webhook.name, error=str(error))
            if webhook.ignores_failure:
                return None
            raise _failed(webhook, error) from error
        operation.warnings.extend(answer.warnings)
        if not answer.allowed:
            raise _denied(webhook, answer.status or {})
        return answer

    async def _call(
        self, webhook: Webhook, operation: Operation, obj: Object | None, old: Object | None
    ) -> _Answer:
        version = next(one for one in webhook.versions if one in ("v1", "v1beta1"))
        review = _build_review(operation, obj, old, version=version)
        body = await self._post(webhook, msgspec.json.encode(review))
        try:
            answered = msgspec.json.decode(body, type=_Review)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _CallError(f"the answer is no AdmissionReview: {error}") from error
        sent, met = review["apiVersion"], answered.api_version
        if (answered.kind, met) != ("AdmissionReview", sent):
            raise _CallError(f"expected AdmissionReview in {sent}, met {answered.kind} in {met}")
        if answered.response.uid != review["request"]["uid"]:
            raise _CallError(
                f"expected response.uid={review['request']['uid']!r}, met {answered.response.uid!r}"
            )
        return answered.response

    async def _post(self, webhook: Webhook, body: bytes) -> bytes:
        url, server_name = self._address(webhook.client)
        if self._session is None:
            raise _CallError("the server is not running")
        try:
            async with self._session.post(
                url,
                data=body,
                headers={"Content-Type": "application/json", "Accept": "application/json"},
                ssl=self._context(webhook.client.get("caBundle") or ""),
                server_hostname=server_name,
                timeout=aiohttp.ClientTimeout(total=webhook.timeout_seconds),
                allow_redirects=False,
            ) as response:
                answer = await _read_bounded(response)
        except TimeoutError as error:
            raise _CallError(f'Post "{url}": context deadline exceeded') from error
        except (aiohttp.ClientError, OSError) as error:
            raise _CallError(f'Post "{url}": {error}') from error
        if response.status != 200:
            text = answer[:200].decode(errors="replace")
            raise _CallError(f'Post "{url}": the server answered {response.status}: {text}')
        return answer

    def _address(self, client: Mapping[str, Any]) -> tuple[str, str | None]:
        """The URL to call, and the name on the certificate where the URL does not say it."""
        if client.get("url"):
            return str(client["url"]), None
        service = client["service"]
        namespace, name = service["namespace"], service["name"]
        address = self._resolve_service(namespace, name, service.get("port") or 443)
        if address is None:
            raise _CallError(f'service "{name}" in namespace "{namespace}" has no endpoint')
        path = (service.get("path") or "").lstrip("/")
        return f"https://{address[0]}:{address[1]}/{path}", f"{name}.{namespace}.svc"

    def _context(self, bundle: str) -> ssl.SSLContext:
        context = self._contexts.get(bundle)
        if context is None:
            try:
                pem = base64.b64decode(bundle).decode("ascii")
                context = ssl.create_default_context(cadata=pem or None)
            except (binascii.Error, UnicodeDecodeError, ssl.SSLError) as error:
                raise _CallError(f"the caBundle holds no certificates: {error}") from error
            self._contexts = {bundle: context}
        return context


def _compile(webhook: Object) -> Webhook:
    return Webhook(
        name=webhook["name"],
        client=webhook["clientConfig"],
        rules=tuple(webhook.get("rules") or ()),
        namespaces=selectors.from_object(webhook.get("namespaceSelector")),
        objects=selectors.from_object(webhook.get("objectSelector")),
        versions=tuple(webhook["admissionReviewVersions"]),
        ignores_failure=webhook.get("failurePolicy") == "Ignore",
        timeout_seconds=float(webhook.get("timeoutSeconds") or 10),
        reinvokes=webhook.get("reinvocationPolicy") == "IfNeeded",
    )


def _covers(rule: Mapping[str, Any], operation: Operation) -> bool:
    target = operation.target
    scope = rule.get("scope") or "*"
    return (
        _lists(rule, "operations", operation.verb)
        and _lists(rule, "apiGroups", target.kind.group)
        and _lists(rule, "apiVersions", target.kind.version)
        and scope in ("*", "Namespaced" if target.kind.namespaced else "Cluster")
        and any(_names(resource, operation) for resource in rule.get("resources") or ())
    )


def _lists(rule: Mapping[str, Any], name: str, value: str) -> bool:
    return any(item in ("*", value) for item in rule.get(name) or ())


def _names(resource: str, operation: Operation) -> bool:
    """Whether ``pods``, ``pods/status``, ``pods/*``, ``*/status``, ``*`` or ``*/*`` fits."""
    plural, _, subresource = resource.partition("/")
    if plural not in ("*", operation.target.kind.plural):
        return False
    return subresource in (operation.target.subresource, "*")


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
            raise _CallError(f"the answer has more than {_MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def _patched(obj: Object, answer: _Answer) -> Object:
    if answer.patch_type != "JSONPatch":
        raise _CallError(f"expected patchType JSONPatch, met {answer.patch_type!r}")
    try:
        operations: Json = msgspec.json.decode(base64.b64decode(answer.patch or ""))
        copied = msgspec.json.decode(msgspec.json.encode(obj))
        patched = apply_json_patch(copied, operations)
    except (binascii.Error, ValueError, msgspec.DecodeError, PatchError) as error:
        raise _CallError(f"the patch cannot be applied: {error}") from error
    if not isinstance(patched, dict) or not isinstance(patched.get("metadata"), dict):
        raise _CallError("the patch leaves no object")
    return patched


def _denied(webhook: Webhook, status: Mapping[str, Any]) -> answers.StatusError:
    said = str(status.get("message") or status.get("reason") or "")
    text = f'admission webhook "{webhook.name}" denied the request'
    code = status.get("code")
    code = code if isinstance(code, int) and 400 <= code < 600 else 400
    message = f"{text}: {said}" if said else f"{text} without explanation"
    return answers.StatusError(code, str(status.get("reason") or ""), message)


def _failed(webhook: Webhook, error: SandboxError) -> answers.StatusError:
    message = (
        f'Internal error occurred: failed calling webhook "{webhook.name}": '
        f"failed to call webhook: {error}"
    )
    return answers.StatusError(500, "InternalError", message)


def _labels(obj: Mapping[str, Any]) -> Mapping[str, str]:
    return (obj.get("metadata") or {}).get("labels") or {}
