"""The Kubernetes objects this project reads, as structs that name only the fields it uses.

Decoded by ``msgspec`` straight from the API server's bytes; unknown fields are skipped while
parsing and cost nothing. Plain data: no rule lives here. Field names are the API's, in snake case.

Quantities stay as the text or number they came as; ``hami.core.quantity`` gives them meaning, so
that one malformed quantity never makes a whole object unreadable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec


class _Object(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, gc=False
):
    """Base of all structs here: camelCase on the wire, absent fields take their default."""


class OwnerReference(_Object, frozen=True, kw_only=True):
    """Who created the object."""

    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None


class ObjectMeta(_Object, frozen=True, kw_only=True):
    """Identity, version and the free-form maps."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generate_name: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    owner_references: list[OwnerReference] | None = None


class EnvVar(_Object, frozen=True, kw_only=True):
    """One variable of a container; ``value`` is None where it comes from a reference."""

    name: str = ""
    value: str | None = None


class EnvFrom(_Object, frozen=True, kw_only=True):
    """Variables from elsewhere: their names are not known here."""


class ResourceRequirements(_Object, frozen=True, kw_only=True):
    """What a container asks for."""

    limits: dict[str, str | int | float] | None = None
    requests: dict[str, str | int | float] | None = None


class SecurityContext(_Object, frozen=True, kw_only=True):
    """The part of a container's security context that isolation depends on."""

    privileged: bool | None = None


class VolumeMount(_Object, frozen=True, kw_only=True):
    """Where a container sees a volume."""

    mount_path: str = ""


class Container(_Object, frozen=True, kw_only=True):
    """One container of a pod's spec."""

    name: str = ""
    resources: ResourceRequirements | None = None
    env: list[EnvVar] | None = None
    env_from: list[EnvFrom] | None = None
    restart_policy: str | None = None
    security_context: SecurityContext | None = None
    volume_mounts: list[VolumeMount] | None = None


class SchedulingGroup(_Object, frozen=True, kw_only=True):
    """The group that a pod is scheduled with."""

    pod_group_name: str | None = None


class PodSpec(_Object, frozen=True, kw_only=True):
    """Where the pod runs and what its containers ask for."""

    node_name: str | None = None
    scheduler_name: str | None = None
    runtime_class_name: str | None = None
    scheduling_group: SchedulingGroup | None = None
    priority: int | None = None
    preemption_policy: str | None = None
    termination_grace_period_seconds: int | None = None
    init_containers: list[Container] | None = None
    containers: list[Container] | None = None


class ContainerStateTerminated(_Object, frozen=True, kw_only=True):
    """How a container ended."""

    exit_code: int = 0


class ContainerState(_Object, frozen=True, kw_only=True):
    """Which of its states a container is in."""

    terminated: ContainerStateTerminated | None = None


class ContainerStatus(_Object, frozen=True, kw_only=True):
    """One container as its kubelet reports it."""

    name: str = ""
    state: ContainerState | None = None


class PodCondition(_Object, frozen=True, kw_only=True):
    """One condition of a pod or node."""

    type: str = ""
    status: str = ""
    reason: str | None = None


class PodStatus(_Object, frozen=True, kw_only=True):
    """How far the pod has come."""

    phase: str = ""
    reason: str | None = None
    start_time: str | None = None
    nominated_node_name: str | None = None
    conditions: list[PodCondition] | None = None
    init_container_statuses: list[ContainerStatus] | None = None


class Pod(_Object, frozen=True, kw_only=True):
    """A pod."""

    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def annotations(self) -> Mapping[str, str]:
        """The annotations, empty where there are none."""
        return self.metadata.annotations or {}

    @property
    def finished(self) -> bool:
        """Whether every container has ended for good, so that nothing is held any more."""
        return self.status.phase in {"Succeeded", "Failed"}

    def containers(self) -> Iterator[tuple[Container, bool]]:
        """Every container in the order of the allocation annotation: init first, then the rest.

        Yields:
            The container, and whether it stands among the init containers.
        """
        for container in self.spec.init_containers or ():
            yield container, True
        for container in self.spec.containers or ():
            yield container, False


class NodeStatus(_Object, frozen=True, kw_only=True):
    """What the kubelet says the node has."""

    capacity: dict[str, str | int | float] | None = None
    allocatable: dict[str, str | int | float] | None = None


class ResourceQuotaSpec(_Object, frozen=True, kw_only=True):
    """What the quota allows."""

    hard: dict[str, str | int | float] | None = None


class ResourceQuota(_Object, frozen=True, kw_only=True):
    """What the pods of a namespace may have together."""

    metadata: ObjectMeta = ObjectMeta()
    spec: ResourceQuotaSpec = ResourceQuotaSpec()


class LabelSelectorRequirement(_Object, frozen=True, kw_only=True):
    """What one label must be: ``In``, ``NotIn``, ``Exists`` or ``DoesNotExist``."""

    key: str = ""
    operator: str = ""
    values: list[str] | None = None


class LabelSelector(_Object, frozen=True, kw_only=True):
    """Labels that objects are chosen by; without any, all are."""

    match_labels: dict[str, str] | None = None
    match_expressions: list[LabelSelectorRequirement] | None = None


class PodDisruptionBudgetSpec(_Object, frozen=True, kw_only=True):
    """Whose disruptions are counted; without a selector, nobody's."""

    selector: LabelSelector | None = None


class PodDisruptionBudgetStatus(_Object, frozen=True, kw_only=True):
    """What the budget allows at the moment."""

    disruptions_allowed: int = 0


class PodDisruptionBudget(_Object, frozen=True, kw_only=True):
    """How many of some pods may be disrupted at the same time."""

    metadata: ObjectMeta = ObjectMeta()
    spec: PodDisruptionBudgetSpec = PodDisruptionBudgetSpec()
    status: PodDisruptionBudgetStatus = PodDisruptionBudgetStatus()


class Node(_Object, frozen=True, kw_only=True):
    """A node."""

    metadata: ObjectMeta = ObjectMeta()
    status: NodeStatus = NodeStatus()

    @property
    def name(self) -> str:
        """The node's name."""
        return self.metadata.name

    @property
    def annotations(self) -> Mapping[str, str]:
        """The annotations, empty where there are none."""
        return self.metadata.annotations or {}
