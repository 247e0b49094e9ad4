"""ResourceQuotas: what the pods of a namespace may ask for together.

Counts pods, requests and limits from the pods that are stored, at the moment a pod is created; of
extended resources only requests, so a key such as ``limits.example.com/gpu`` is stored and bounds
nothing here, as in a real API server.
Nothing keeps ``status.used`` up to date, and scopes are not looked at: a quota with scopes is
refused when it is created.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from hami.core.quantity import parse_quantity
from hami.sandbox.apiserver import answers
from hami.sandbox.apiserver.kinds import POD, RESOURCE_QUOTA
from hami.sandbox.apiserver.quantities import canonical_value
from hami.sandbox.apiserver.records import Object, Selection
from hami.sandbox.apiserver.store import Store

_BARE = ("cpu", "memory", "ephemeral-storage")


def check_quotas(store: Store, pod: Object) -> None:
    """Raise StatusError(403) if the new pod would exceed a quota of its namespace."""
    in_namespace = Selection(namespace=pod["metadata"]["namespace"])
    quotas = store.collection(RESOURCE_QUOTA).select(in_namespace)
    if not quotas:
        return
    asked = pod_usage(pod)
    used: Counter[str] = Counter()
    for record in store.collection(POD).select(in_namespace):
        if record.fields["status.phase"] not in ("Succeeded", "Failed"):
            used.update(pod_usage(record.decode()))
    for record in quotas:
        hard = (record.decode().get("spec") or {}).get("hard") or {}
        limits = {name: parse_quantity(value) for name, value in hard.items()}
        exceeded = [
            name
            for name, limit in sorted(limits.items())
            if asked[name] and used[name] + asked[name] > limit
        ]
        if exceeded:
            why = (
                f"exceeded quota: {record.key[1]}, requested: {_shown(exceeded, asked)}, "
                f"used: {_shown(exceeded, used)}, limited: {_shown(exceeded, limits)}"
            )
            raise answers.forbidden("pods", pod["metadata"]["name"], why)


def pod_usage(pod: Mapping[str, Any]) -> Counter[str]:
    """What a pod counts for, by the names that a quota's ``hard`` uses."""
    usage: Counter[str] = Counter({"pods": 1, "count/pods": 1})
    for prefix in ("requests", "limits"):
        for name, value in _pod_total(pod["spec"], prefix).items():
            if prefix == "requests" or name in _BARE:
                usage[f"{prefix}.{name}"] = value
            if prefix == "requests" and name in _BARE:
                usage[name] = value
    return usage


def _pod_total(spec: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The sum over containers, or one init container's need where that is more."""
    running: Counter[str] = Counter()
    for container in spec.get("containers") or ():
        running.update(_quantities(container, prefix))
    for container in spec.get("initContainers") or ():
        for name, value in _quantities(container, prefix).items():
            running[name] = max(running[name], value)
    return running


def _quantities(container: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    quantities = (container.get("resources") or {}).get(prefix) or {}
    return {name: parse_quantity(value) for name, value in quantities.items()}


def _shown(names: Iterable[str], amounts: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={canonical_value(Fraction(amounts[name]))}" for name in names)
