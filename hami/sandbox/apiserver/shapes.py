"""The shapes of objects: which fields there are, and what JSON type they hold.

API servers refuse an object of the wrong shape before they look at any rule. The structs name
every field of the levels that they describe, so that a misspelt one can be told; deeper levels are
kept as they come.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from hami.sandbox.apiserver import answers
from hami.sandbox.apiserver.kinds import Kind
from hami.sandbox.apiserver.records import Object

_Map = dict[str, Any]
_Maps = list[dict[str, Any]]
_Quantities = dict[str, str | int | float]


class _Shape(msgspec.Struct, rename="camel"):
    pass


class _Metadata(_Shape):
    name: str | None = None
    generate_name: str | None = None
    namespace: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    generation: int | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    finalizers: list[str] | None = None
    owner_references: _Maps | None = None
    managed_fields: _Maps | None = None
    self_link: str | None = None


class _Resources(_Shape):
    limits: _Quantities | None = None
    requests: _Quantities | None = None
    claims: _Maps | None = None


class _Variable(_Shape):
    name: str | None = None
    value: str | None = None
    value_from: _Map | None = None


class _Mount(_Shape):
    name: str | None = None
    mount_path: str | None = None
    mount_propagation: str | None = None
    read_only: bool | None = None
    recursive_read_only: str | None = None
    sub_path: str | None = None
    sub_path_expr: str | None = None


class _Container(_Shape):
    name: str | None = None
    image: str | None = None
    image_pull_policy: str | None = None
    command: list[str] | None = None
    args: list[str] | None = None
    env: list[_Variable] | None = None
    env_from: _Maps | None = None
    lifecycle: _Map | None = None
    liveness_probe: _Map | None = None
    ports: _Maps | None = None
    readiness_probe: _Map | None = None
    resize_policy: _Maps | None = None
    resources: _Resources | None = None
    restart_policy: str | None = None
    restart_policy_rules: _Maps | None = None
    security_context: _Map | None = None
    startup_probe: _Map | None = None
    stdin: bool | None = None
    stdin_once: bool | None = None
    target_container_name: str | None = None
    termination_message_path: str | None = None
    termination_message_policy: str | None = None
    tty: bool | None = None
    volume_devices: _Maps | None = None
    volume_mounts: list[_Mount] | None = None
    working_dir: str | None = None


class _PodSpec(_Shape):
    active_deadline_seconds: int | None = None
    affinity: _Map | None = None
    automount_service_account_token: bool | None = None
    containers: list[_Container] | None = None
    dns_config: _Map | None = None
    dns_policy: str | None = None
    enable_service_links: bool | None = None
    ephemeral_containers: list[_Container] | None = None
    host_aliases: _Maps | None = None
    host_network: bool | None = None
    host_users: bool | None = None
    hostname: str | None = None
    hostname_override: str | None = None
    host_ipc: bool | None = msgspec.field(default=None, name="hostIPC")
    host_pid: bool | None = msgspec.field(default=None, name="hostPID")
    image_pull_secrets: _Maps | None = None
    init_containers: list[_Container] | None = None
    node_name: str | None = None
    node_selector: dict[str, str] | None = None
    os: _Map | None = None
    overhead: _Quantities | None = None
    preemption_policy: str | None = None
    priority: int | None = None
    priority_class_name: str | None = None
    readiness_gates: _Maps | None = None
    resource_claims: _Maps | None = None
    resources: _Resources | None = None
    restart_policy: str | None = None
    runtime_class_name: str | None = None
    scheduler_name: str | None = None
    scheduling_gates: _Maps | None = None
    scheduling_group: _Map | None = None
    security_context: _Map | None = None
    service_account: str | None = None
    service_account_name: str | None = None
    set_hostname_as_fqdn: bool | None = msgspec.field(default=None, name="setHostnameAsFQDN")
    share_process_namespace: bool | None = None
    subdomain: str | None = None
    termination_grace_period_seconds: int | None = None
    tolerations: _Maps | None = None
    topology_spread_constraints: _Maps | None = None
    volumes: _Maps | None = None
    workload_ref: _Map | None = None


class _Pod(_Shape):
    metadata: _Metadata
    kind: str | None = None
    api_version: str | None = None
    spec: _PodSpec | None = None
    status: _Map | None = None


class _Rule(_Shape):
    api_groups: list[str] | None = None
    api_versions: list[str] | None = None
    operations: list[str] | None = None
    resources: list[str] | None = None
    scope: str | None = None


class _Service(_Shape):
    name: str | None = None
    namespace: str | None = None
    path: str | None = None
    port: int | None = None


class _Client(_Shape):
    ca_bundle: str | None = None
    service: _Service | None = None
    url: str | None = None


class _Webhook(_Shape):
    name: str | None = None
    admission_review_versions: list[str] | None = None
    client_config: _Client | None = None
    failure_policy: str | None = None
    match_conditions: _Maps | None = None
    match_policy: str | None = None
    namespace_selector: _Map | None = None
    object_selector: _Map | None = None
    reinvocation_policy: str | None = None
    rules: list[_Rule] | None = None
    side_effects: str | None = None
    timeout_seconds: int | None = None


class _WebhookConfiguration(_Shape):
    metadata: _Metadata
    kind: str | None = None
    api_version: str | None = None
    webhooks: list[_Webhook] | None = None


class _Quota(_Shape):
    metadata: _Metadata
    kind: str | None = None
    api_version: str | None = None
    spec: _QuotaSpec | None = None
    status: _Map | None = None


class _QuotaSpec(_Shape):
    hard: _Quantities | None = None
    scope_selector: _Map | None = None
    scopes: list[str] | None = None


class _Specified(_Shape):
    """Any other kind: what can be said is that spec and status, where there are any, are maps."""

    metadata: _Metadata
    spec: _Map | None = None
    status: _Map | None = None


_OPEN: Final = frozenset((_Specified,))
_SHAPES: Final[Mapping[str, type[_Shape]]] = {
    "pods": _Pod,
    "resourcequotas": _Quota,
    "mutatingwebhookconfigurations": _WebhookConfiguration,
    "validatingwebhookconfigurations": _WebhookConfiguration,
}


def check_shape(kind: Kind, obj: Object) -> None:
    """Raise StatusError(400) if a field that this server looks at has the wrong type."""
    try:
        msgspec.convert(obj, _SHAPES.get(kind.plural, _Specified))
    except msgspec.ValidationError as error:
        message = (
            f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: {error}'
        )
        raise answers.bad_request(message) from error


def unknown_fields(kind: Kind, obj: Object) -> list[str]:
    """The paths of fields that the kind does not have, as far as its shape is described."""
    return list(_unknown(_SHAPES.get(kind.plural, _Specified), obj, ""))


def _unknown(shape: type[_Shape], value: Object, path: str) -> Iterator[str]:
    known = _fields(shape)
    for name, item in value.items():
        where = f"{path}.{name}" if path else name
        if name not in known:
            if shape not in _OPEN:
                yield where
            continue
        inner = known[name]
        if inner is None or item is None:
            continue
        if isinstance(item, list):
            for index, element in enumerate(item):
                yield from _unknown(inner, element, f"{where}[{index}]")
        else:
            yield from _unknown(inner, item, where)


@functools.cache
def _fields(shape: type[_Shape]) -> Mapping[str, type[_Shape] | None]:
    """The JSON names of a shape's fields, each with the shape within it, if there is one."""
    fields = msgspec.structs.fields(shape)
    return {field.encode_name: _inner_shape(field.type) for field in fields}


def _inner_shape(annotation: Any) -> type[_Shape] | None:  # noqa: ANN401 - a type expression
    """The shape within ``Shape | None`` or ``list[Shape] | None``; None where there is none."""
    if isinstance(annotation, type) and issubclass(annotation, _Shape):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _inner_shape(argument)) is not None:
            return found
    return None
