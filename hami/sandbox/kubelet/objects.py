"""The pods as the kubelet reads them: the core's structs, and the fields that only a kubelet needs.

Decoded from the API server's bytes; names are the API's in snake case. Plain data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from hami.core import objects


class _Object(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, gc=False
):
    """camelCase on the wire, absent fields take their default."""


class ObjectMeta(objects.ObjectMeta, frozen=True, kw_only=True):
    """Identity, with what is known of a deletion under way."""

    deletion_grace_period_seconds: int | None = None


class FieldRef(_Object, frozen=True, kw_only=True):
    """Names a field of the pod."""

    field_path: str = ""


class EnvVarSource(_Object, frozen=True, kw_only=True):
    """Where a variable's value comes from; at most one is set."""

    field_ref: FieldRef | None = None
    resource_field_ref: Any = None
    config_map_key_ref: Any = None
    secret_key_ref: Any = None


class EnvVar(_Object, frozen=True, kw_only=True):
    """One variable of a container."""

    name: str = ""
    value: str = ""
    value_from: EnvVarSource | None = None


class VolumeMount(_Object, frozen=True, kw_only=True):
    """Where a container sees a volume of its pod."""

    name: str = ""
    mount_path: str = ""
    sub_path: str = ""
    read_only: bool = False


class HostPath(_Object, frozen=True, kw_only=True):
    """A path of the node."""

    path: str = ""


class Volume(_Object, frozen=True, kw_only=True):
    """A volume of a pod; neither of the two known kinds where both are None."""

    name: str = ""
    empty_dir: Any = None
    host_path: HostPath | None = None


class Container(_Object, frozen=True, kw_only=True):
    """One container: what to run and what it asks for."""

    name: str = ""
    image: str = ""
    command: list[str] | None = None
    args: list[str] | None = None
    working_dir: str = ""
    env: list[EnvVar] | None = None
    env_from: list[Any] | None = None
    volume_mounts: list[VolumeMount] | None = None
    resources: objects.ResourceRequirements | None = None
    restart_policy: str | None = None
    security_context: objects.SecurityContext | None = None

    @property
    def is_sidecar(self) -> bool:
        """Among init containers: one that goes on running beside the others."""
        return self.restart_policy == "Always"

    @property
    def limits(self) -> dict[str, str | int | float]:
        """What it may use at most, by resource."""
        return (self.resources.limits if self.resources else None) or {}

    @property
    def requests(self) -> dict[str, str | int | float]:
        """What it must have: what it says, and its limits where it says nothing."""
        return {**self.limits, **((self.resources.requests if self.resources else None) or {})}


class PodSpec(_Object, frozen=True, kw_only=True):
    """What the pod runs, and how."""

    node_name: str | None = None
    restart_policy: str = "Always"
    termination_grace_period_seconds: int | None = None
    service_account_name: str = ""
    node_selector: dict[str, str] | None = None
    init_containers: list[Container] | None = None
    containers: list[Container] | None = None
    volumes: list[Volume] | None = None


class Condition(_Object, frozen=True, kw_only=True):
    """One condition, with when it last changed."""

    type: str = ""
    status: str = ""
    reason: str | None = None
    message: str | None = None
    last_transition_time: str | None = None


class PodStatus(_Object, frozen=True, kw_only=True):
    """What was last reported of the pod."""

    phase: str = ""
    reason: str | None = None
    message: str | None = None
    qos_class: str | None = None
    start_time: str | None = None
    conditions: list[Condition] | None = None


class Pod(_Object, frozen=True, kw_only=True):
    """A pod that is bound to this node."""

    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

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
        """Whether it was reported to have ended for good."""
        return self.status.phase in {"Succeeded", "Failed"}

    def containers(self) -> Iterator[Container]:
        """Every container, init containers first: the order of admission."""
        yield from self.spec.init_containers or ()
        yield from self.spec.containers or ()


DECODER = msgspec.json.Decoder(Pod)
