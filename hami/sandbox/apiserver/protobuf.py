"""Reads the protobuf bodies that kubectl's own commands send, such as ``kubectl create quota``.

Owns the envelope and the field numbers of the few messages concerned (from the ``generated.proto``
files of k8s.io/api and k8s.io/apimachinery). A kind or field that is not in the table is refused,
never dropped. Answers are always JSON, which these clients accept.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hami.sandbox.apiserver import answers

PROTOBUF: Final = "application/vnd.kubernetes.protobuf"
_MAGIC: Final = b"k8s\x00"
_MAX_DEPTH: Final = 16


@dataclass(frozen=True, slots=True)
class _Field:
    """How one field is called in JSON, and what it holds."""

    name: str
    holds: _Message | str = "text"
    """A message, or one of text, bytes, raw, integer, boolean, quantity, amount, ignored."""
    many: str = ""
    """Empty for one value, ``list`` or ``map``."""


_Message = Mapping[int, _Field]


def _texts(*names: str) -> dict[int, _Field]:
    return {number: _Field(name) for number, name in enumerate(names, start=1)}


_OWNER: Final = {
    1: _Field("kind"),
    3: _Field("name"),
    4: _Field("uid"),
    5: _Field("apiVersion"),
    6: _Field("controller", "boolean"),
    7: _Field("blockOwnerDeletion", "boolean"),
}
_METADATA: Final = {
    **_texts("name", "generateName", "namespace", "selfLink", "uid", "resourceVersion"),
    7: _Field("generation", "ignored"),
    8: _Field("creationTimestamp", "ignored"),
    11: _Field("labels", many="map"),
    12: _Field("annotations", many="map"),
    13: _Field("ownerReferences", _OWNER, many="list"),
    14: _Field("finalizers", many="list"),
    17: _Field("managedFields", "ignored"),
}
_HEAD: Final = {1: _Field("metadata", _METADATA)}
_REQUIREMENT: Final = {1: _Field("key"), 2: _Field("operator"), 3: _Field("values", many="list")}
_SELECTOR: Final = {
    1: _Field("matchLabels", many="map"),
    2: _Field("matchExpressions", _REQUIREMENT, many="list"),
}
_QUOTA: Final = {
    1: _Field("hard", "quantity", many="map"),
    2: _Field("scopes", many="list"),
    3: _Field("scopeSelector", {1: _Field("matchExpressions", {}, many="list")}),
}
_BUDGET: Final = {
    1: _Field("minAvailable", "amount"),
    2: _Field("selector", _SELECTOR),
    3: _Field("maxUnavailable", "amount"),
    4: _Field("unhealthyPodEvictionPolicy"),
}
_PRECONDITIONS: Final = {1: _Field("uid"), 2: _Field("resourceVersion")}
_DELETE_OPTIONS: Final = {
    1: _Field("gracePeriodSeconds", "integer"),
    2: _Field("preconditions", _PRECONDITIONS),
    3: _Field("orphanDependents", "boolean"),
    4: _Field("propagationPolicy"),
    5: _Field("dryRun", many="list"),
}
_POLICY_RULE: Final = {
    number: _Field(name, many="list")
    for number, name in enumerate(
        ("verbs", "apiGroups", "resources", "resourceNames", "nonResourceURLs"), start=1
    )
}
_ROLE: Final = {**_HEAD, 2: _Field("rules", _POLICY_RULE, many="list")}
_BINDING: Final = {
    **_HEAD,
    2: _Field("subjects", _texts("kind", "apiGroup", "name", "namespace"), many="list"),
    3: _Field("roleRef", _texts("apiGroup", "kind", "name")),
}
_MESSAGES: Final[Mapping[str, _Message]] = {
    "Namespace": {
        **_HEAD,
        2: _Field("spec", {1: _Field("finalizers", many="list")}),
        3: _Field("status", "ignored"),
    },
    "ConfigMap": {
        **_HEAD,
        2: _Field("data", many="map"),
        3: _Field("binaryData", "bytes", many="map"),
        4: _Field("immutable", "boolean"),
    },
    "Secret": {
        **_HEAD,
        2: _Field("data", "bytes", many="map"),
        3: _Field("type"),
        4: _Field("stringData", many="map"),
        5: _Field("immutable", "boolean"),
    },
    "ServiceAccount": _HEAD,
    "ResourceQuota": {**_HEAD, 2: _Field("spec", _QUOTA), 3: _Field("status", "ignored")},
    "PriorityClass": {
        **_HEAD,
        2: _Field("value", "integer"),
        3: _Field("globalDefault", "boolean"),
        4: _Field("description"),
        5: _Field("preemptionPolicy"),
    },
    "PodDisruptionBudget": {**_HEAD, 2: _Field("spec", _BUDGET), 3: _Field("status", "ignored")},
    "Role": _ROLE,
    "ClusterRole": _ROLE,
    "RoleBinding": _BINDING,
    "ClusterRoleBinding": _BINDING,
    "Eviction": {**_HEAD, 2: _Field("deleteOptions", _DELETE_OPTIONS)},
    "DeleteOptions": _DELETE_OPTIONS,
    "SelfSubjectAccessReview": {
        **_HEAD,
        2: _Field("spec", "ignored"),
        3: _Field("status", "ignored"),
    },
}


def decode_protobuf(body: bytes) -> dict[str, Any]:
    """The object in the body, as its JSON would be; raises StatusError(400 or 415)."""
    if not body.startswith(_MAGIC):
        raise answers.bad_request("the body has not the prefix of Kubernetes' protobuf")
    try:
        envelope = _decode(body[len(_MAGIC) :], _ENVELOPE, depth=0)
        named = envelope.get("typeMeta", {})
        message = _MESSAGES.get(named.get("kind", ""))
        if message is None:
            raise answers.not_implemented(f"protobuf bodies of kind {named.get('kind')!r}")
        obj = _decode(envelope.get("raw", b""), message, depth=0)
    except (IndexError, TypeError, ValueError) as error:
        raise answers.bad_request(f"the body is no protobuf message: {error}") from error
    if message is _DELETE_OPTIONS:
        return obj
    return {"kind": named["kind"], "apiVersion": named.get("apiVersion", ""), **obj}


_ENVELOPE: Final[_Message] = {
    1: _Field("typeMeta", {1: _Field("apiVersion"), 2: _Field("kind")}),
    2: _Field("raw", "raw"),
    3: _Field("contentEncoding"),
    4: _Field("contentType"),
}


def _decode(data: bytes, message: _Message, *, depth: int) -> dict[str, Any]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"messages are nested deeper than {_MAX_DEPTH}")
    obj: dict[str, Any] = {}
    for number, wire in _fields(data):
        field = message.get(number)
        if field is None:
            raise ValueError(f"field {number} is not one that this server reads")
        if field.holds == "ignored":
            continue
        if field.many == "map":
            entry = {1: _Field("key"), 2: _Field("value", field.holds)}
            pair = _decode(_as_bytes(wire), entry, depth=depth + 1)
            obj.setdefault(field.name, {})[pair.get("key", "")] = pair.get("value", "")
            continue
        value = _value(wire, field.holds, depth=depth)
        if field.many:
            obj.setdefault(field.name, []).append(value)
        elif value != "":
            obj[field.name] = value
    return obj


def _value(wire: int | bytes, holds: _Message | str, *, depth: int) -> Any:  # noqa: ANN401 - JSON
    match holds:
        case "text":
            return _as_bytes(wire).decode()
        case "bytes":
            return base64.b64encode(_as_bytes(wire)).decode()
        case "raw":
            return _as_bytes(wire)
        case "boolean":
            return bool(wire)
        case "integer":
            number = _as_integer(wire)
            return number - 2**64 if number >= 2**63 else number
        case "quantity":
            return _decode(_as_bytes(wire), {1: _Field("text")}, depth=depth + 1).get("text", "0")
        case "amount":
            return _amount(_as_bytes(wire))
        case str():
            raise AssertionError(f"the table holds no {holds}")
    return _decode(_as_bytes(wire), holds, depth=depth + 1)


def _amount(data: bytes) -> int | str:
    """An ``IntOrString``."""
    kinds = {1: _Field("type", "integer"), 2: _Field("int", "integer"), 3: _Field("text")}
    parts = _decode(data, kinds, depth=0)
    return str(parts.get("text", "")) if parts.get("type") else int(parts.get("int", 0))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and wire value of each field: an integer, or the bytes of a length-delimited one."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        match key & 7:
            case 0:
                value, position = _varint(data, position)
                yield key >> 3, value
            case 2:
                length, position = _varint(data, position)
                if length > len(data) - position:
                    raise ValueError("a field is longer than its message")
                yield key >> 3, data[position : position + length]
                position += length
            case wire_type:
                raise ValueError(f"wire type {wire_type} is not used by Kubernetes")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")


def _as_bytes(wire: int | bytes) -> bytes:
    if isinstance(wire, int):
        raise TypeError("expected bytes, met a number")
    return wire


def _as_integer(wire: int | bytes) -> int:
    if isinstance(wire, bytes):
        raise TypeError("expected a number, met bytes")
    return wire
