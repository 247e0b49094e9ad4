"""Create, update, patch and delete, with the rules that a kind puts between a client and the store.

Owns preconditions, the split between an object and its status, generations, finalizers and grace
periods. Knows no HTTP. What admits an object (defaults, webhooks, validation, quotas) is one
collaborator, ``Admission``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from hami.sandbox.apiserver import answers, names
from hami.sandbox.apiserver.admission import Admission
from hami.sandbox.apiserver.kinds import EVENT, NAMESPACE, POD, Kind
from hami.sandbox.apiserver.operation import Operation
from hami.sandbox.apiserver.records import Object, Record, build_record
from hami.sandbox.apiserver.requests import Target
from hami.sandbox.apiserver.shapes import check_shape, unknown_fields
from hami.sandbox.apiserver.store import Store, format_time

_PATCH_ATTEMPTS: Final = 5
_SERVER_OWNED: Final = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
)
_DEFAULT_GRACE_SECONDS: Final = 30
_MAX_GRACE_SECONDS: Final = 10**9
_MAX_EVENTS: Final = 20_000
"""Real servers forget Events after an hour; this one forgets the oldest."""

Patch = Callable[[Object], Object]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteOptions:
    """What a client says about a deletion."""

    grace_period_seconds: int | None = None
    uid: str | None = None
    resource_version: str | None = None


class Registry:
    """The rules of writing; everything that a client changes goes through here."""

    def __init__(self, store: Store, admission: Admission) -> None:
        self._store = store
        self._admission = admission

    async def create(self, operation: Operation, obj: Object) -> Record:
        """Admit and store a new object; raises StatusError."""
        kind, namespace = operation.target.kind, operation.target.namespace
        obj = _addressed(operation, obj)
        metadata = obj["metadata"]
        if metadata.get("resourceVersion"):
            message = "resourceVersion should not be set on objects to be created"
            raise answers.StatusError(500, "", message)
        if not metadata.get("name") and not metadata.get("generateName"):
            cause = names.required("metadata.name", "name or generateName is required")
            raise answers.invalid(kind.kind, "", [cause], group=kind.group)
        for name in _SERVER_OWNED:
            metadata.pop(name, None)
        self._require_namespace(kind, namespace, metadata.get("name") or "")
        obj = await self._admission.admit_create(operation, obj)
        if operation.dry_run:
            return build_record(kind, obj, version=self._store.version)
        if kind is EVENT:
            self._bound_events()
        return self._store.insert(kind, obj)

    async def update(self, operation: Operation, obj: Object) -> Record:
        """Admit and store the object's next version; raises StatusError."""
        target, kind = operation.target, operation.target.kind
        obj = _addressed(operation, obj)
        named = obj["metadata"].setdefault("name", target.name)
        if named != target.name:
            raise answers.bad_request(
                f"the name of the object ({named}) does not match the name on the URL "
                f"({target.name})"
            )
        before = self._store.get_record(kind, target.key)
        if not obj["metadata"].get("resourceVersion") and kind.update_needs_version:
            why = "must be specified for an update"
            cause = names.invalid_value("metadata.resourceVersion", 0, why)
            raise answers.invalid(kind.kind, target.name, [cause], group=kind.group)
        _check_identity(target, obj, before)
        return await self._store_next(operation, obj, before)

    async def patch(self, operation: Operation, patch: Patch) -> Record:
        """Apply the patch to the current version, again if somebody else wrote meanwhile.

        Raises StatusError; a resourceVersion or uid that the patch itself names is a precondition.
        """
        target = operation.target
        for _ in range(_PATCH_ATTEMPTS):
            before = self._store.get_record(target.kind, target.key)
            obj = patch(before.decode())
            _check_patched(operation, obj)
            _check_identity(target, obj, before)
            try:
                return await self._store_next(operation, obj, before)
            except answers.StatusError:
                if self._store.find_record(target.kind, target.key) is before:
                    raise
        raise answers.modified(target.kind.qualified, target.name)

    async def delete(self, operation: Operation, options: DeleteOptions) -> Record:
        """Delete the object, now or when its grace period and finalizers are done.

        Returns its state after this request; raises StatusError.
        """
        target, kind = operation.target, operation.target.kind
        before = self._store.get_record(kind, target.key)
        await self._admission.admit_delete(operation, before.decode())
        before = self._store.get_record(kind, target.key)
        _check_preconditions(target, before, options)
        if operation.dry_run:
            return before
        if kind is NAMESPACE:
            return self._delete_namespace(before)
        return self.delete_record(kind, before, options.grace_period_seconds)

    def delete_record(self, kind: Kind, before: Record, grace_seconds: int | None) -> Record:
        """Delete as far as the object allows; its state afterwards."""
        obj = before.decode()
        metadata = obj["metadata"]
        grace = _grace_seconds(kind, obj, grace_seconds)
        waits = grace > 0 or bool(metadata.get("finalizers"))
        if not waits:
            record = self._store.remove(kind, before)
            self._finish_namespace(before.key[0])
            return record
        pending = metadata.get("deletionGracePeriodSeconds")
        if pending is not None and pending <= grace:
            return before
        deadline = self._store.now() + timedelta(seconds=grace)
        metadata["deletionTimestamp"] = format_time(deadline)
        metadata["deletionGracePeriodSeconds"] = grace
        if kind.has_generation:
            metadata["generation"] = metadata.get("generation", 0) + 1
        return self._store.replace(kind, obj, before=before)

    async def _store_next(self, operation: Operation, obj: Object, before: Record) -> Record:
        kind = operation.target.kind
        old = before.decode()
        merged = _merge_halves(kind, obj, old, is_status=operation.target.subresource == "status")
        admitted = await self._admission.admit_update(operation, merged, old)
        _bump_generation(kind, admitted, old)
        if operation.dry_run:
            return build_record(kind, admitted, version=before.version)
        if _is_finished(admitted, old):
            record = self._store.remove(kind, before)
            self._finish_namespace(before.key[0])
            return record
        return self._store.replace(kind, admitted, before=before)

    def _bound_events(self) -> None:
        events = self._store.collection(EVENT).records
        if len(events) >= _MAX_EVENTS:
            self._store.remove(EVENT, next(iter(events.values())))

    def _require_namespace(self, kind: Kind, namespace: str, name: str) -> None:
        if not kind.namespaced:
            return
        record = self._store.get_record(NAMESPACE, ("", namespace))
        if record.fields["status.phase"] == "Terminating":
            why = (
                f"unable to create new content in namespace {namespace} because it is being "
                f"terminated"
            )
            raise answers.forbidden(kind.qualified, name, why)

    def _delete_namespace(self, before: Record) -> Record:
        name = before.key[1]
        if name in ("default", "kube-system", "kube-public"):
            raise answers.forbidden("namespaces", name, "this namespace may not be deleted")
        obj = before.decode()
        obj["metadata"].setdefault("deletionTimestamp", self._store.timestamp())
        obj["status"] = {**obj.get("status", {}), "phase": "Terminating"}
        record = self._store.replace(NAMESPACE, obj, before=before)
        for kind, content in self._store.records_in(name):
            self.delete_record(kind, content, None)
        self._finish_namespace(name)
        return self._store.find_record(NAMESPACE, before.key) or record

    def _finish_namespace(self, name: str) -> None:
        record = self._store.find_record(NAMESPACE, ("", name))
        if record is None or record.fields["status.phase"] != "Terminating":
            return
        if not self._store.records_in(name):
            self._store.remove(NAMESPACE, record)


def _addressed(operation: Operation, obj: Object) -> Object:
    """A copy of the object that says what the URL says; StatusError(400) where they differ."""
    kind, namespace = operation.target.kind, operation.target.namespace
    named = (obj.get("kind", kind.kind), obj.get("apiVersion", kind.api_version))
    if named != (kind.kind, kind.api_version):
        raise answers.bad_request(
            f"{named[0]} in version {named[1]!r} cannot be handled as a {kind.kind}"
        )
    _check_fields(operation, obj)
    metadata = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
    if metadata.get("namespace") not in (None, "", namespace):
        raise answers.bad_request(
            f"the namespace of the provided object does not match the namespace sent on the "
            f"request ({metadata['namespace']} instead of {namespace})"
        )
    if namespace:
        metadata["namespace"] = namespace
    return {**obj, "kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata}


def _check_patched(operation: Operation, obj: Object) -> None:
    target, kind = operation.target, operation.target.kind
    _check_fields(operation, obj)
    metadata = obj["metadata"]
    for what, wanted, met in (
        ("kind", kind.kind, obj.get("kind")),
        ("apiVersion", kind.api_version, obj.get("apiVersion")),
        ("name", target.name, metadata.get("name")),
        ("namespace", target.namespace, metadata.get("namespace", "")),
    ):
        if wanted != met:
            raise answers.bad_request(f"the {what} of an object cannot be patched")


def _check_fields(operation: Operation, obj: Object) -> None:
    kind = operation.target.kind
    check_shape(kind, obj)
    if operation.field_validation == "Ignore":
        return
    unknown = [f'unknown field "{path}"' for path in unknown_fields(kind, obj)]
    if unknown and operation.field_validation == "Strict":
        raise answers.bad_request(f"strict decoding error: {', '.join(unknown)}")
    operation.warnings.extend(unknown)


def _check_identity(target: Target, obj: Object, before: Record) -> None:
    metadata = obj["metadata"]
    resource, name = target.kind.qualified, target.name
    uid = metadata.get("uid") or before.uid
    if uid != before.uid:
        why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {before.uid}"
        raise answers.conflict(resource, name, why)
    if (metadata.get("resourceVersion") or str(before.version)) != str(before.version):
        raise answers.modified(resource, name)


def _check_preconditions(target: Target, before: Record, options: DeleteOptions) -> None:
    for what, wanted, met in (
        ("UID", options.uid, before.uid),
        ("ResourceVersion", options.resource_version, str(before.version)),
    ):
        if wanted is not None and wanted != met:
            why = (
                f"Precondition failed: {what} in precondition: {wanted}, "
                f"{what} in object meta: {met}"
            )
            raise answers.conflict(target.kind.qualified, target.name, why)


def _merge_halves(kind: Kind, obj: Object, old: Object, *, is_status: bool) -> Object:
    """The next version: what this request may write from it, all else as it was."""
    metadata = {k: v for k, v in obj["metadata"].items() if k not in _SERVER_OWNED}
    metadata |= {k: v for k, v in old["metadata"].items() if k in _SERVER_OWNED}
    if is_status:
        metadata.pop("ownerReferences", None)
        if "ownerReferences" in old["metadata"]:
            metadata["ownerReferences"] = old["metadata"]["ownerReferences"]
        return {**old, "metadata": metadata, "status": obj.get("status", {})}
    merged = {**obj, "metadata": metadata}
    if "status" in kind.subresources:
        merged.pop("status", None)
        if "status" in old:
            merged["status"] = old["status"]
    return merged


def _bump_generation(kind: Kind, obj: Object, old: Object) -> None:
    if kind.has_generation and _specified(obj) != _specified(old):
        obj["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1


def _specified(obj: Object) -> Object:
    return {name: value for name, value in obj.items() if name not in ("metadata", "status")}


def _is_finished(obj: Object, old: Object) -> bool:
    """Whether this write took the last finalizer of an object whose grace period is over."""
    metadata = obj["metadata"]
    return (
        "deletionTimestamp" in metadata
        and not metadata.get("deletionGracePeriodSeconds")
        and not metadata.get("finalizers")
        and bool(old["metadata"].get("finalizers"))
    )


def _grace_seconds(kind: Kind, obj: Object, asked: int | None) -> int:
    """How long a kubelet has to stop the pod; 0 for all else and where no kubelet is concerned."""
    if kind is not POD:
        return 0
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    if not spec.get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
        return 0
    grace = asked if asked is not None else spec.get("terminationGracePeriodSeconds")
    return _DEFAULT_GRACE_SECONDS if grace is None else min(max(0, grace), _MAX_GRACE_SECONDS)
