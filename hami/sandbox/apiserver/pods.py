"""The sub-resources that only pods have: binding, eviction and log."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from hami.sandbox.apiserver import answers, selectors
from hami.sandbox.apiserver.bodies import LogQuery
from hami.sandbox.apiserver.kinds import POD, POD_DISRUPTION_BUDGET
from hami.sandbox.apiserver.operation import Operation
from hami.sandbox.apiserver.records import Object, Record, Selection
from hami.sandbox.apiserver.registry import DeleteOptions, Registry
from hami.sandbox.apiserver.requests import Target
from hami.sandbox.apiserver.store import Store


class BindingMetadata(msgspec.Struct, rename="camel"):
    """Whom a Binding is about, and what it adds to the pod."""

    name: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    annotations: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class BindingTarget(msgspec.Struct, rename="camel"):
    """Where to."""

    kind: str = ""
    name: str = ""


class Binding(msgspec.Struct, rename="camel"):
    """The body of ``POST .../binding``."""

    target: BindingTarget
    metadata: BindingMetadata = msgspec.field(default_factory=BindingMetadata)


LogReader = Callable[[str, str, str, LogQuery], Awaitable[AsyncGenerator[bytes, None]]]
"""From (namespace, pod, container, query) to the log's bytes; raises StatusError where there is
none. With ``follow`` the iterator goes on until the container ends."""


def bind(store: Store, target: Target, binding: Binding) -> Record:
    """Put the pod on a node; raises StatusError(409) unless it waits for one and is the one meant.

    The binding's annotations and labels are copied to the pod.
    """
    if binding.target.kind not in ("", "Node") or not binding.target.name:
        raise answers.bad_request("a binding's target is a Node and has a name")
    before = store.get_record(POD, target.key)
    pod = before.decode()
    if why := _unbindable(binding, before, pod):
        raise answers.conflict("pods/binding", target.name, why)
    metadata, spec, status = pod["metadata"], pod["spec"], pod.setdefault("status", {})
    spec["nodeName"] = binding.target.name
    for name in ("annotations", "labels"):
        if added := getattr(binding.metadata, name):
            metadata[name] = {**(metadata.get(name) or {}), **added}
    scheduled = {"type": "PodScheduled", "status": "True", "lastProbeTime": None}
    scheduled["lastTransitionTime"] = store.timestamp()
    others = [one for one in status.get("conditions") or () if one.get("type") != "PodScheduled"]
    status["conditions"] = [*others, scheduled]
    return store.replace(POD, pod, before=before)


def _unbindable(binding: Binding, before: Record, pod: Object) -> str:
    meant = binding.metadata
    if meant.uid is not None and meant.uid != before.uid:
        return (
            f"Precondition failed: UID in precondition: {meant.uid}, "
            f"UID in object meta: {before.uid}"
        )
    if meant.resource_version not in (None, "", str(before.version)):
        return (
            f"Precondition failed: ResourceVersion in precondition: {meant.resource_version}, "
            f"ResourceVersion in object meta: {before.version}"
        )
    name = before.key[1]
    if "deletionTimestamp" in pod["metadata"]:
        return f"pod {name} is being deleted, cannot be assigned to a host"
    if node := pod["spec"].get("nodeName"):
        return f'pod {name} is already assigned to node "{node}"'
    if pod["spec"].get("schedulingGates"):
        return f"pod {name} has non-empty .spec.schedulingGates"
    return ""


async def evict(
    store: Store, registry: Registry, operation: Operation, options: DeleteOptions
) -> None:
    """Delete the pod if its disruption budgets allow; raises StatusError(429) if they do not."""
    target = operation.target
    record = store.get_record(POD, target.key)
    if record.fields["status.phase"] not in ("Succeeded", "Failed", "Pending"):
        for budget in _budgets_of(store, record):
            _require_disruption_allowed(store, target, budget)
    deletion = replace(operation, target=replace(target, verb="delete", subresource=""))
    await registry.delete(deletion, options)


def _budgets_of(store: Store, pod: Record) -> list[Object]:
    selection = Selection(namespace=pod.key[0])
    budgets = [one.decode() for one in store.collection(POD_DISRUPTION_BUDGET).select(selection)]
    return [
        one
        for one in budgets
        if (one.get("spec") or {}).get("selector") is not None
        and selectors.matches_labels(_selector(one), pod.labels)
    ]


def _require_disruption_allowed(store: Store, target: Target, budget: Object) -> None:
    selection = Selection(namespace=target.namespace, labels=_selector(budget))
    pods = [record.decode() for record in store.collection(POD).select(selection)]
    healthy = sum(map(_is_ready, pods))
    spec = budget["spec"]
    if spec.get("maxUnavailable") is not None:
        desired = len(pods) - _share(spec["maxUnavailable"], len(pods))
    else:
        desired = _share(spec.get("minAvailable", 1), len(pods))
    if healthy > desired:
        return
    name = budget["metadata"]["name"]
    message = "Cannot evict pod as it would violate the pod's disruption budget."
    cause = {
        "reason": "DisruptionBudget",
        "message": f"The disruption budget {name} needs {desired} healthy pods "
        f"and has {healthy} currently",
    }
    raise answers.StatusError(429, "TooManyRequests", message, {"causes": [cause]})


def _selector(budget: Object) -> tuple[selectors.Requirement, ...]:
    return selectors.from_object((budget.get("spec") or {}).get("selector"))


def _share(amount: object, total: int) -> int:
    """A number of pods, or a percentage of them rounded up."""
    text = str(amount)
    if text.endswith("%") and text[:-1].isdecimal():
        return -(-total * int(text[:-1]) // 100)
    return int(text) if text.isdecimal() else total


def _is_ready(pod: Mapping[str, Any]) -> bool:
    return any(
        condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in (pod.get("status") or {}).get("conditions") or ()
    )


def choose_container(pod: Object, asked: str) -> str:
    """The container whose log is meant; raises StatusError(400) where that is not clear."""
    spec = pod["spec"]
    lists = ("containers", "initContainers", "ephemeralContainers")
    names = [one.get("name", "") for name in lists for one in spec.get(name) or ()]
    pod_name = pod["metadata"]["name"]
    if not asked:
        running = [one.get("name", "") for one in spec.get("containers") or ()]
        if len(running) == 1:
            return str(running[0])
        raise answers.bad_request(
            f"a container name must be specified for pod {pod_name}, "
            f"choose one of: [{' '.join(running)}]"
        )
    if asked not in names:
        raise answers.bad_request(f"container {asked} is not valid for pod {pod_name}")
    return asked
