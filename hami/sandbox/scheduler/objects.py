"""Pods and nodes as the scheduler reads them, each with the bytes that extenders are sent.

Plain data. Amounts are whole numbers of the smallest unit: cpu in thousandths, everything else in
ones, rounded up as Kubernetes rounds them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from hami.core.objects import ObjectMeta
from hami.core.quantity import parse_quantity
from hami.errors import CodecError, QuantityError

Amounts = dict[str, int]

NONZERO: Final[Mapping[str, int]] = {"cpu": 100, "memory": 200 * 2**20}
"""What a container that asks for none of it is thought to use, when nodes are scored."""


class _Object(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """camelCase on the wire, absent fields take their default."""


class _Resources(_Object, frozen=True, kw_only=True):
    limits: dict[str, str | int | float] | None = None
    requests: dict[str, str | int | float] | None = None


class _Container(_Object, frozen=True, kw_only=True):
    resources: _Resources = _Resources()
    restart_policy: str | None = None

    @property
    def names(self) -> set[str]:
        return {*(self.resources.limits or ()), *(self.resources.requests or ())}

    @property
    def requests(self) -> Amounts:
        return amounts(self.resources.requests or {})


class Toleration(_Object, frozen=True, kw_only=True):
    """Which taints a pod puts up with."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""


class Taint(_Object, frozen=True, kw_only=True):
    """Which pods a node keeps away."""

    key: str
    value: str = ""
    effect: str = ""

    def __str__(self) -> str:
        """As kube-scheduler writes it."""
        return f"{{{self.key}: {self.value}}}"


class _Gate(_Object, frozen=True, kw_only=True):
    name: str = ""


class _PodSpec(_Object, frozen=True, kw_only=True):
    node_name: str | None = None
    scheduler_name: str = "default-scheduler"
    priority: int | None = None
    node_selector: dict[str, str] | None = None
    affinity: Any = None
    tolerations: list[Toleration] | None = None
    scheduling_gates: list[_Gate] | None = None
    init_containers: list[_Container] | None = None
    containers: list[_Container] | None = None


class Condition(_Object, frozen=True, kw_only=True):
    """A condition of a pod or node."""

    type: str = ""
    status: str = ""
    reason: str | None = None
    message: str | None = None


class _PodStatus(_Object, frozen=True, kw_only=True):
    phase: str = ""
    conditions: list[Condition] | None = None


class _PodObject(_Object, frozen=True, kw_only=True):
    metadata: ObjectMeta
    spec: _PodSpec
    status: _PodStatus = _PodStatus()


class _NodeSpec(_Object, frozen=True, kw_only=True):
    unschedulable: bool = False
    taints: list[Taint] | None = None


class _NodeStatus(_Object, frozen=True, kw_only=True):
    allocatable: dict[str, str | int | float] | None = None
    conditions: list[Condition] | None = None


class _NodeObject(_Object, frozen=True, kw_only=True):
    metadata: ObjectMeta
    spec: _NodeSpec = _NodeSpec()
    status: _NodeStatus = _NodeStatus()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod to be scheduled, or one that holds what it was given."""

    metadata: ObjectMeta
    spec: _PodSpec
    status: _PodStatus
    raw: bytes
    """Its JSON."""
    requests: Amounts
    """What it needs at once."""
    used: Amounts
    """Its cpu and memory for scoring, with a guess where it asks for none."""

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def uid(self) -> str:
        """Which life of that name."""
        return self.metadata.uid

    @property
    def finished(self) -> bool:
        """Whether it holds nothing any more."""
        return self.status.phase in {"Succeeded", "Failed"}

    @property
    def gated(self) -> bool:
        """Whether somebody still has to let it through."""
        return bool(self.spec.scheduling_gates)

    @property
    def resource_names(self) -> set[str]:
        """Every resource that a container asks for or is limited in."""
        containers = [*(self.spec.init_containers or ()), *(self.spec.containers or ())]
        return {name for container in containers for name in container.names}

    def differs(self, other: Pod) -> bool:
        """Whether more than its status and version changed."""
        mine, its = self.metadata, other.metadata
        return (
            self.spec != other.spec
            or (mine.labels, mine.annotations, mine.owner_references, mine.deletion_timestamp)
            != (its.labels, its.annotations, its.owner_references, its.deletion_timestamp)
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node that pods may be given to."""

    metadata: ObjectMeta
    spec: _NodeSpec
    status: _NodeStatus
    raw: bytes
    """Its JSON."""
    allocatable: Amounts

    @property
    def name(self) -> str:
        """Its name."""
        return self.metadata.name

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels."""
        return self.metadata.labels or {}

    @property
    def taints(self) -> list[Taint]:
        """Its taints; a node that is not ready has one, which a real cluster's controller adds."""
        taints = list(self.spec.taints or ())
        ready = {each.status for each in self.status.conditions or () if each.type == "Ready"}
        for status, key in (
            ("False", "node.kubernetes.io/not-ready"),
            ("Unknown", "node.kubernetes.io/unreachable"),
        ):
            if status in ready and key not in {taint.key for taint in taints}:
                taints.append(Taint(key=key, effect="NoSchedule"))
        return taints

    def differs(self, other: Node) -> bool:
        """Whether a pod that did not fit before might fit now, or the other way round."""
        conditions = [
            {each.type: each.status for each in node.status.conditions or ()}
            for node in (self, other)
        ]
        return (
            self.spec != other.spec
            or self.allocatable != other.allocatable
            or self.metadata.labels != other.metadata.labels
            or self.metadata.annotations != other.metadata.annotations
            or conditions[0] != conditions[1]
        )


_POD: Final = msgspec.json.Decoder(_PodObject)
_NODE: Final = msgspec.json.Decoder(_NodeObject)


def decode_pod(raw: msgspec.Raw) -> Pod:
    """A pod from its JSON.

    Raises:
        CodecError: It asks for what is no quantity.
    """
    pod = _POD.decode(raw)
    try:
        requests, used = _needs(pod.spec)
    except QuantityError as error:
        raise CodecError(f"pod {pod.metadata.name}: {error}") from error
    return Pod(
        metadata=pod.metadata,
        spec=pod.spec,
        status=pod.status,
        raw=bytes(raw),
        requests=requests,
        used=used,
    )


def decode_node(raw: msgspec.Raw) -> Node:
    """A node from its JSON.

    Raises:
        CodecError: It says it has what is no quantity.
    """
    node = _NODE.decode(raw)
    try:
        allocatable = amounts(node.status.allocatable or {})
    except QuantityError as error:
        raise CodecError(f"node {node.metadata.name}: {error}") from error
    return Node(
        metadata=node.metadata,
        spec=node.spec,
        status=node.status,
        raw=bytes(raw),
        allocatable=allocatable,
    )


def amounts(quantities: Mapping[str, str | int | float]) -> Amounts:
    """Quantities in whole numbers of the smallest unit.

    Raises:
        QuantityError: One of them is none.
    """
    return {
        name: math.ceil(parse_quantity(value) * (1000 if name == "cpu" else 1))
        for name, value in quantities.items()
    }


def add(left: Mapping[str, int], right: Mapping[str, int], *, sign: int = 1) -> Amounts:
    """The sum, or with ``sign=-1`` the difference."""
    return {name: left.get(name, 0) + sign * right.get(name, 0) for name in {**left, **right}}


def _needs(spec: _PodSpec) -> tuple[Amounts, Amounts]:
    """What the pod needs at once; and the same of cpu and memory, guessing where it is silent."""
    plain = _peak(spec, lambda container: container.requests)
    guessed = _peak(
        spec,
        lambda container: {
            name: container.requests.get(name, least) for name, least in NONZERO.items()
        },
    )
    return plain, guessed


def _peak(spec: _PodSpec, of: Callable[[_Container], Amounts]) -> Amounts:
    beside: Amounts = {}
    peak: Amounts = {}
    for init in spec.init_containers or ():
        if init.restart_policy == "Always":
            beside = add(beside, of(init))
            peak = _most((peak, beside))
        else:
            peak = _most((peak, add(beside, of(init))))
    running = beside
    for container in spec.containers or ():
        running = add(running, of(container))
    return _most((peak, running))


def _most(many: Iterable[Amounts]) -> Amounts:
    result: Amounts = {}
    for each in many:
        for name, amount in each.items():
            result[name] = max(result.get(name, 0), amount)
    return result
