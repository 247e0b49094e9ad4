"""What every write passes before it is stored: the order of defaults, webhooks and checks.

The order is kube-apiserver's: shape, defaults, built-in mutation, mutating webhooks, defaults
again, validation, validating webhooks, quotas. Nothing awaits between the quota check and storing.
"""

from __future__ import annotations

from typing import Final

from hami.sandbox.apiserver import answers
from hami.sandbox.apiserver.defaults import admit_pod, apply_defaults, begin_life
from hami.sandbox.apiserver.kinds import POD, PRIORITY_CLASS, Kind
from hami.sandbox.apiserver.operation import Operation
from hami.sandbox.apiserver.quota import check_quotas
from hami.sandbox.apiserver.records import Object
from hami.sandbox.apiserver.shapes import check_shape
from hami.sandbox.apiserver.store import Store
from hami.sandbox.apiserver.validation import validate
from hami.sandbox.apiserver.webhooks import Webhooks

_SYSTEM_PRIORITIES: Final = {
    "system-cluster-critical": 2_000_000_000,
    "system-node-critical": 2_000_001_000,
}


class Admission:
    """The chain that admits, changes or refuses a write."""

    def __init__(self, store: Store, webhooks: Webhooks) -> None:
        self._store = store
        self._webhooks = webhooks

    async def admit_create(self, operation: Operation, obj: Object) -> Object:
        """The new object as it is to be stored; raises StatusError.

        Mutating webhooks see it before it has a uid and, with generateName, a name.
        """
        kind = operation.target.kind
        apply_defaults(kind, obj)
        begin_life(kind, obj)
        if kind is POD:
            admit_pod(obj["spec"])
            self._set_priority(obj)
        obj = await self._mutate(operation, obj, None)
        obj["metadata"] = self._store.complete_metadata(kind, obj)
        apply_defaults(kind, obj)
        _check(kind, obj, None)
        await self._webhooks.validate(operation, obj, None)
        if kind is POD:
            check_quotas(self._store, obj)
        return obj

    async def admit_update(self, operation: Operation, obj: Object, old: Object) -> Object:
        """The next version as it is to be stored; raises StatusError.

        ``old`` gets the defaults too: it may have been stored without this chain.
        """
        kind = operation.target.kind
        apply_defaults(kind, obj)
        apply_defaults(kind, old)
        obj = await self._mutate(operation, obj, old)
        _check(kind, obj, old)
        await self._webhooks.validate(operation, obj, old)
        return obj

    async def admit_delete(self, operation: Operation, old: Object) -> None:
        """Ask whether the object may be deleted; raises StatusError."""
        await self._webhooks.validate(operation, None, old)

    async def _mutate(self, operation: Operation, obj: Object, old: Object | None) -> Object:
        changed = await self._webhooks.mutate(operation, obj, old)
        if changed is obj:
            return obj
        kind, target = operation.target.kind, operation.target
        check_shape(kind, changed)
        apply_defaults(kind, changed)
        metadata = changed["metadata"]
        if metadata.get("namespace", "") != target.namespace or (
            old is not None and metadata.get("name") != target.name
        ):
            raise answers.bad_request("a webhook changed the name or namespace of the object")
        return changed

    def _set_priority(self, pod: Object) -> None:
        spec = pod["spec"]
        name = spec.get("priorityClassName")
        priority, policy = _SYSTEM_PRIORITIES.get(name, 0), "PreemptLowerPriority"
        if name and name not in _SYSTEM_PRIORITIES:
            record = self._store.find_record(PRIORITY_CLASS, ("", name))
            if record is None:
                pod_name = pod["metadata"].get("name", "")
                why = f"no PriorityClass with name {name} was found"
                raise answers.forbidden("pods", pod_name, why)
            priority_class = record.decode()
            priority = priority_class.get("value", 0)
            policy = priority_class.get("preemptionPolicy", policy)
        spec["priority"] = priority
        spec.setdefault("preemptionPolicy", policy)


def _check(kind: Kind, obj: Object, old: Object | None) -> None:
    if errors := validate(kind, obj, old):
        raise answers.invalid(kind.kind, obj["metadata"]["name"], errors, group=kind.group)
