"""How objects are shown: as they are, as the rows of a Table, or their metadata alone.

The client chooses by its Accept header. Owns the encoding of lists in each form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

import msgspec

from hami.sandbox.apiserver import answers
from hami.sandbox.apiserver.columns import columns_of
from hami.sandbox.apiserver.kinds import Kind
from hami.sandbox.apiserver.paging import Page
from hami.sandbox.apiserver.records import Object, untyped

JSON: Final = "application/json"
_META: Final = "meta.k8s.io/v1"
_ACCEPTED: Final = (JSON, "application/*", "*/*")


class View(Protocol):
    """One way to show objects of a kind."""

    @property
    def is_plain(self) -> bool:
        """Whether objects are shown as they are."""

    def show(self, encoded: bytes) -> bytes:
        """One object, given and returned in JSON."""

    def show_list(self, page: Page, *, metadata: Object) -> bytes:
        """One page of a list."""


@dataclass(frozen=True, slots=True)
class Plain:
    """Objects as they are stored."""

    kind: Kind

    @property
    def is_plain(self) -> bool:
        """Yes."""
        return True

    def show(self, encoded: bytes) -> bytes:
        """The object itself."""
        return encoded

    def show_list(self, page: Page, *, metadata: Object) -> bytes:
        """A ``PodList`` or its like, glued together from the objects' bytes."""
        kind = self.kind
        head = {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": metadata}
        items = b",".join(untyped(kind, record) for record in page.records)
        return b'%s,"items":[%s]}' % (msgspec.json.encode(head)[:-1], items)


@dataclass(frozen=True, slots=True)
class MetadataOnly:
    """Objects as ``PartialObjectMetadata``."""

    kind: Kind

    @property
    def is_plain(self) -> bool:
        """No."""
        return False

    def show(self, encoded: bytes) -> bytes:
        """The object's metadata."""
        return msgspec.json.encode(_partial(msgspec.json.decode(encoded)))

    def show_list(self, page: Page, *, metadata: Object) -> bytes:
        """A ``PartialObjectMetadataList``."""
        items = [_partial(record.decode()) for record in page.records]
        kind = "PartialObjectMetadataList"
        return msgspec.json.encode(
            {"kind": kind, "apiVersion": _META, "metadata": metadata, "items": items}
        )


@dataclass(frozen=True, slots=True)
class Table:
    """Objects as rows with the columns that ``kubectl get`` prints."""

    kind: Kind
    now: Callable[[], datetime]
    include: str = "Metadata"
    """What each row carries along: ``Metadata``, ``Object`` or ``None``."""

    @property
    def is_plain(self) -> bool:
        """No."""
        return False

    def show(self, encoded: bytes) -> bytes:
        """A table of one row; a bookmark's row shows its metadata."""
        obj = msgspec.json.decode(encoded)
        version = obj["metadata"].get("resourceVersion", "")
        return self._encode([obj], {"resourceVersion": version})

    def show_list(self, page: Page, *, metadata: Object) -> bytes:
        """A table of the page."""
        return self._encode([record.decode() for record in page.records], metadata)

    def _encode(self, objects: Sequence[Object], metadata: Object) -> bytes:
        columns = columns_of(self.kind.plural)
        now = self.now()
        rows = []
        for obj in objects:
            row: Object = {"cells": [column.show(obj, now) for column in columns]}
            if self.include != "None":
                row["object"] = obj if self.include == "Object" else _partial(obj)
            rows.append(row)
        return msgspec.json.encode(
            {
                "kind": "Table",
                "apiVersion": _META,
                "metadata": metadata,
                "columnDefinitions": [column.define() for column in columns],
                "rows": rows,
            }
        )


def choose_view(
    kind: Kind, accept: str, query: Mapping[str, str], *, now: Callable[[], datetime]
) -> View:
    """The first form of the Accept header that this server has; raises StatusError(406)."""
    for media_type, parameters in parse_accept(accept):
        if media_type not in _ACCEPTED:
            continue
        match parameters.get("as", ""), parameters.get("g"), parameters.get("v"):
            case "", _, _:
                return Plain(kind)
            case "Table", "meta.k8s.io", "v1":
                return Table(kind, now, query.get("includeObject", "Metadata"))
            case "PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1":
                return MetadataOnly(kind)
    message = f"only the following media types are accepted: {JSON}"
    raise answers.StatusError(406, "NotAcceptable", message)


def parse_accept(accept: str) -> list[tuple[str, dict[str, str]]]:
    """The media types of an Accept header with their parameters, in its order."""
    parsed = []
    for part in (accept or "*/*").split(","):
        media_type, *pairs = (piece.strip() for piece in part.split(";"))
        parameters = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        parsed.append((media_type, parameters))
    return parsed


def _partial(obj: Mapping[str, Any]) -> Object:
    return {"kind": "PartialObjectMetadata", "apiVersion": _META, "metadata": obj["metadata"]}
