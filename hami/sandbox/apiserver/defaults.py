"""What an API server fills in where a client says nothing.

Functions on fresh objects of a checked shape, which they change in place; applying one twice
changes nothing more. Kinds without a row get no defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from hami.errors import QuantityError
from hami.sandbox.apiserver.kinds import Kind
from hami.sandbox.apiserver.quantities import canonical
from hami.sandbox.apiserver.records import Object

_EVICTION_SECONDS: Final = 300
_CONTAINER_LISTS: Final = ("initContainers", "containers", "ephemeralContainers")


def apply_defaults(kind: Kind, obj: Object) -> None:
    """Fill in what the kind's type defines."""
    if (fill := _DEFAULTS.get(kind.plural)) is not None:
        fill(obj)


def begin_life(kind: Kind, obj: Object) -> None:
    """Give a new object the status that it starts with; clients have no say in it."""
    if kind.plural == "pods":
        obj["status"] = {"phase": "Pending", "qosClass": _qos_class(obj["spec"])}
    elif kind.plural == "namespaces":
        obj["status"] = {"phase": "Active"}
        obj.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
    elif kind.plural != "nodes" and "status" in kind.subresources:
        obj["status"] = {}


def admit_pod(spec: Object) -> None:
    """What the built-in admission plug-ins add to a new pod: an account and tolerations."""
    name = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
    spec["serviceAccountName"] = spec["serviceAccount"] = name
    tolerations = spec.get("tolerations") or []
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        if not any(_tolerates(toleration, key) for toleration in tolerations):
            toleration = {"key": key, "operator": "Exists", "effect": "NoExecute"}
            tolerations.append({**toleration, "tolerationSeconds": _EVICTION_SECONDS})
    spec["tolerations"] = tolerations


def containers_of(spec: Mapping[str, Any]) -> Iterator[tuple[str, Object]]:
    """Every container of a pod with its path, such as ``spec.containers[0]``."""
    for name in _CONTAINER_LISTS:
        for index, container in enumerate(spec.get(name) or ()):
            yield f"spec.{name}[{index}]", container


def _default_pod(pod: Object) -> None:
    spec = pod["spec"] = pod.get("spec") or {}
    _set(spec, "restartPolicy", "Always")
    _set(spec, "terminationGracePeriodSeconds", 30)
    _set(spec, "dnsPolicy", "ClusterFirst")
    _set(spec, "securityContext", {})
    _set(spec, "schedulerName", "default-scheduler")
    _set(spec, "enableServiceLinks", True)
    for _, container in containers_of(spec):
        _default_container(container)


def _default_container(container: Object) -> None:
    _set(container, "terminationMessagePath", "/dev/termination-log")
    _set(container, "terminationMessagePolicy", "File")
    _set(container, "imagePullPolicy", _pull_policy(container.get("image") or ""))
    _set(container, "resources", {})
    for port in container.get("ports") or ():
        _set(port, "protocol", "TCP")
    resources = container["resources"]
    for name in ("limits", "requests"):
        if resources.get(name):
            resources[name] = _canonical_quantities(resources[name])
    if resources.get("limits"):
        resources["requests"] = {**resources["limits"], **(resources.get("requests") or {})}


def _default_namespace(namespace: Object) -> None:
    metadata = namespace["metadata"]
    labels = metadata["labels"] = metadata.get("labels") or {}
    if "name" in metadata:
        labels["kubernetes.io/metadata.name"] = metadata["name"]


def _default_quota(quota: Object) -> None:
    spec = quota.get("spec") or {}
    if spec.get("hard"):
        spec["hard"] = _canonical_quantities(spec["hard"])


def _default_node(node: Object) -> None:
    status = node.get("status") or {}
    for name in ("capacity", "allocatable"):
        if isinstance(status.get(name), dict):
            status[name] = _canonical_quantities(status[name])


def _default_secret(secret: Object) -> None:
    _set(secret, "type", "Opaque")


def _default_priority_class(priority_class: Object) -> None:
    _set(priority_class, "preemptionPolicy", "PreemptLowerPriority")


def _default_mutating(configuration: Object) -> None:
    _default_validating(configuration)
    for webhook in configuration.get("webhooks") or ():
        _set(webhook, "reinvocationPolicy", "Never")


def _default_validating(configuration: Object) -> None:
    for webhook in configuration.get("webhooks") or ():
        _set(webhook, "failurePolicy", "Fail")
        _set(webhook, "matchPolicy", "Equivalent")
        _set(webhook, "namespaceSelector", {})
        _set(webhook, "objectSelector", {})
        _set(webhook, "timeoutSeconds", 10)
        for rule in webhook.get("rules") or ():
            _set(rule, "scope", "*")
        service = (webhook.get("clientConfig") or {}).get("service")
        if isinstance(service, dict):
            _set(service, "port", 443)


_DEFAULTS: Final[Mapping[str, Callable[[Object], None]]] = {
    "pods": _default_pod,
    "namespaces": _default_namespace,
    "resourcequotas": _default_quota,
    "nodes": _default_node,
    "secrets": _default_secret,
    "priorityclasses": _default_priority_class,
    "mutatingwebhookconfigurations": _default_mutating,
    "validatingwebhookconfigurations": _default_validating,
}


def _set(obj: Object, name: str, value: object) -> None:
    if obj.get(name) is None:
        obj[name] = value


def _canonical_quantities(quantities: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _canonical_or_as_is(value) for name, value in quantities.items()}


def _canonical_or_as_is(value: object) -> object:
    """The canonical text; what is no quantity is left for validation to name."""
    try:
        return canonical(value)
    except QuantityError:
        return value


def _pull_policy(image: str) -> str:
    last = image.rsplit("/", 1)[-1]
    is_latest = last.endswith(":latest") or (":" not in last and "@" not in last)
    return "Always" if is_latest else "IfNotPresent"


def _tolerates(toleration: Mapping[str, Any], key: str) -> bool:
    return toleration.get("key") in (None, "", key) and toleration.get("effect") in (
        None,
        "",
        "NoExecute",
    )


def _qos_class(spec: Mapping[str, Any]) -> str:
    """Guaranteed, Burstable or BestEffort, from cpu and memory alone, as kubelets evict by it."""
    named, guaranteed = False, True
    for _, container in containers_of(spec):
        resources = container.get("resources") or {}
        limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
        for name in ("cpu", "memory"):
            named = named or name in limits or name in requests
            guaranteed = guaranteed and name in limits and limits[name] == requests.get(name)
    if not named:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"
