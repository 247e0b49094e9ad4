"""Admission webhooks: which of them a write concerns, and what follows from their answers.

Input comes from the stored webhook configurations, compiled once per change of them. matchPolicy
makes no difference here, since no kind has two versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hami.errors import SandboxError
from hami.logs import get_logger
from hami.sandbox.apiserver import answers, selectors
from hami.sandbox.apiserver.kinds import MUTATING_WEBHOOKS, NAMESPACE, VALIDATING_WEBHOOKS, Kind
from hami.sandbox.apiserver.operation import Operation
from hami.sandbox.apiserver.records import Object, Selection
from hami.sandbox.apiserver.reviews import Answer, CallError, Endpoint, Reviewer, patched
from hami.sandbox.apiserver.store import Store

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """One webhook of a stored configuration, compiled."""

    name: str
    endpoint: Endpoint
    rules: tuple[Mapping[str, Any], ...]
    namespaces: tuple[selectors.Requirement, ...]
    objects: tuple[selectors.Requirement, ...]
    ignores_failure: bool
    reinvokes: bool


@dataclass(frozen=True, slots=True)
class _Compiled:
    position: int
    """Where the configurations' log ended when they were compiled."""
    webhooks: tuple[Webhook, ...]


class Webhooks:
    """Puts each write before the webhooks that it concerns."""

    def __init__(self, store: Store, reviewer: Reviewer) -> None:
        self._store = store
        self._reviewer = reviewer
        self._compiled: dict[Kind, _Compiled] = {}

    async def mutate(self, operation: Operation, obj: Object, old: Object | None) -> Object:
        """The object as the mutating webhooks want it; raises StatusError if one denies it.

        A webhook with ``reinvocationPolicy: IfNeeded`` is asked once more if a later one changed
        the object after it.
        """
        asked: list[Webhook] = []
        again: list[Webhook] = []
        for webhook in self._webhooks(MUTATING_WEBHOOKS):
            if not self._concerns(webhook, operation, obj, old):
                continue
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
        kinds = [VALIDATING_WEBHOOKS] if obj else [MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS]
        for webhook in (one for kind in kinds for one in self._webhooks(kind)):
            if self._concerns(webhook, operation, obj, old):
                await self._ask(webhook, operation, obj, old)

    def _concerns(
        self, webhook: Webhook, operation: Operation, obj: Object | None, old: Object | None
    ) -> bool:
        if operation.target.kind in (MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS):
            return False
        if not any(_covers(rule, operation) for rule in webhook.rules):
            return False
        namespace = self._namespace_labels(operation, obj)
        if namespace is not None and not selectors.matches_labels(webhook.namespaces, namespace):
            return False
        versions = (one for one in (obj, old) if one is not None)
        return any(selectors.matches_labels(webhook.objects, _labels(one)) for one in versions)

    def _webhooks(self, kind: Kind) -> tuple[Webhook, ...]:
        """The webhooks of all configurations, in the order of their names; compiled once."""
        collection = self._store.collection(kind)
        compiled = self._compiled.get(kind)
        if compiled is None or compiled.position != collection.end:
            webhooks = tuple(
                _compile(webhook)
                for record in collection.select(Selection())
                for webhook in record.decode().get("webhooks") or ()
            )
            compiled = self._compiled[kind] = _Compiled(collection.end, webhooks)
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
            return patched(obj, answer)
        except CallError as error:
            if webhook.ignores_failure:
                return obj
            raise _failed(webhook, error) from error

    async def _ask(
        self, webhook: Webhook, operation: Operation, obj: Object | None, old: Object | None
    ) -> Answer | None:
        """The answer of a webhook that allows; None of one whose failure is ignored."""
        try:
            answer = await self._reviewer.review(webhook.endpoint, operation, obj, old)
        except CallError as error:
            _log.warning("webhook_failed", webhook=webhook.name, error=str(error))
            if webhook.ignores_failure:
                return None
            raise _failed(webhook, error) from error
        operation.warnings.extend(answer.warnings)
        if not answer.allowed:
            raise _denied(webhook, answer.status or {})
        return answer


def _compile(webhook: Object) -> Webhook:
    versions = webhook["admissionReviewVersions"]
    endpoint = Endpoint(
        client=webhook["clientConfig"],
        version=next(one for one in versions if one in ("v1", "v1beta1")),
        timeout_seconds=float(webhook.get("timeoutSeconds") or 10),
    )
    return Webhook(
        name=webhook["name"],
        endpoint=endpoint,
        rules=tuple(webhook.get("rules") or ()),
        namespaces=selectors.from_object(webhook.get("namespaceSelector")),
        objects=selectors.from_object(webhook.get("objectSelector")),
        ignores_failure=webhook.get("failurePolicy") == "Ignore",
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
