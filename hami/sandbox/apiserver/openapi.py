"""``/openapi/v2``, as much of it as kubectl needs to create a ``kind: List``.

For lists kubectl does not trust the server's own field checks: it looks each kind up in this
document and checks the fields itself. So there is one definition for every kind, without a schema,
which lets everything pass; the server checks as for any other object.

kubectl reads it as protobuf alone: the message ``openapi.v2.Document`` of gnostic. Of it: 1
swagger, 2 info (1 title, 2 version), 9 definitions (1 repeated: 1 name, 2 schema), in a schema 31
the extensions (1 name, 2 value: 2 as YAML).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from hami import __version__
from hami.sandbox.apiserver.kinds import Kind

CONTENT_TYPE: Final = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
_EXTENSION: Final = "x-kubernetes-group-version-kind"


def document(kinds: Iterable[Kind]) -> bytes:
    """The document for these kinds."""
    info = _field(1, "hami sandbox") + _field(2, __version__)
    definitions = b"".join(_field(1, _definition(kind)) for kind in kinds)
    return _field(1, "2.0") + _field(2, info) + _field(9, definitions)


def _definition(kind: Kind) -> bytes:
    what = [{"group": kind.group, "version": kind.version, "kind": kind.kind}]
    value = _field(2, json.dumps(what))
    schema = _field(31, _field(1, _EXTENSION) + _field(2, value))
    return _field(1, f"{kind.group or 'core'}.{kind.version}.{kind.kind}") + _field(2, schema)


def _field(number: int, content: str | bytes) -> bytes:
    """A field of the wire type that has a length."""
    body = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
