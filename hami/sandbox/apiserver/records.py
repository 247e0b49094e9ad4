"""Versions of objects, selections of them, and changes from one version to the next.

An object is kept as the bytes of one version and decoded for whoever needs more than its labels
and selectable fields: readers share the bytes, and nobody can change it behind the store's back.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from hami.sandbox.apiserver import selectors
from hami.sandbox.apiserver.kinds import Kind

Object = dict[str, Any]
Key = tuple[str, str]
"""Namespace (empty where the kind has none) and name."""


@dataclass(frozen=True, slots=True)
class Record:
    """One version of one object."""

    key: Key
    version: int
    uid: str
    labels: Mapping[str, str]
    fields: Mapping[str, str]
    encoded: bytes

    def decode(self) -> Object:
        """A fresh copy of the object."""
        obj: Object = msgspec.json.decode(self.encoded)
        return obj


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which records of a kind a list or a watch is about."""

    namespace: str = ""
    """Empty for all namespaces, and for kinds that have none."""
    labels: tuple[selectors.Requirement, ...] = ()
    fields: tuple[selectors.FieldTerm, ...] = ()

    def matches(self, record: Record) -> bool:
        """Whether the record belongs to the selection."""
        if self.namespace and record.key[0] != self.namespace:
            return False
        return selectors.matches_labels(self.labels, record.labels) and selectors.matches_fields(
            self.fields, record.fields
        )

    @property
    def is_narrowed(self) -> bool:
        """Whether selectors leave out a part of the namespace."""
        return bool(self.labels or self.fields)


class Change:
    """One entry of a kind's log: an object was added, modified or deleted.

    The lines that watches send are encoded once, whoever asks first.
    """

    __slots__ = ("_lines", "before", "deleted", "record")

    def __init__(self, before: Record | None, record: Record, *, deleted: bool = False) -> None:
        self.before = before
        self.record = record
        """The state after the change; of a deletion the last state, with the deletion's version."""
        self.deleted = deleted
        self._lines: dict[str, bytes] = {}

    @property
    def version(self) -> int:
        """The resource version that the change produced."""
        return self.record.version

    def type_for(self, selection: Selection) -> str | None:
        """What a watch of the selection calls the change; None where it does not concern it."""
        was_in = self.before is not None and selection.matches(self.before)
        is_in = not self.deleted and selection.matches(self.record)
        if is_in:
            return "MODIFIED" if was_in else "ADDED"
        return "DELETED" if was_in else None

    def object_for(self, event_type: str) -> bytes:
        """The encoded object of that event; one that left the selection is shown as it was."""
        if event_type != "DELETED" or self.deleted or self.before is None:
            return self.record.encoded
        return msgspec.json.encode(with_version(self.before.decode(), self.version))

    def line(self, event_type: str) -> bytes:
        """The line that a watch sends for it."""
        line = self._lines.get(event_type)
        if line is None:
            line = watch_line(event_type, self.object_for(event_type))
            self._lines[event_type] = line
        return line


def build_record(kind: Kind, obj: Object, *, version: int) -> Record:
    """The record of an object whose metadata is complete, as that version."""
    metadata = obj["metadata"]
    namespace, name = metadata.get("namespace", ""), metadata["name"]
    fields = {path: _field(obj, path) or absent for path, absent in kind.fields.items()}
    fields["metadata.name"], fields["metadata.namespace"] = name, namespace
    typed = {"kind": kind.kind, "apiVersion": kind.api_version}
    rest = {key: value for key, value in obj.items() if key not in typed}
    return Record(
        key=(namespace, name),
        version=version,
        uid=metadata.get("uid", ""),
        labels=dict(metadata.get("labels") or {}),
        fields=fields,
        encoded=msgspec.json.encode(with_version({**typed, **rest}, version)),
    )


def untyped(kind: Kind, record: Record) -> bytes:
    """The encoded object without kind and apiVersion, as the items of a list are sent."""
    return b"{" + record.encoded[len(_type_prefix(kind)) :]


@functools.cache
def _type_prefix(kind: Kind) -> bytes:
    return b'{"kind":"%s","apiVersion":"%s",' % (kind.kind.encode(), kind.api_version.encode())


def with_version(obj: Object, version: int) -> Object:
    """A shallow copy that carries the version."""
    return {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(version)}}


def watch_line(event_type: str, encoded: bytes) -> bytes:
    """One line of a watch."""
    return b'{"type":"%s","object":%s}\n' % (event_type.encode(), encoded)


def _field(obj: Object, path: str) -> str:
    value: Any = obj
    for part in path.split("."):
        if not isinstance(value, dict):
            return ""
        value = value.get(part)
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
