"""The wire format of lists and watches: lines, events, and what to believe of a broken one. Pure.

An event that names its object but holds one we cannot read concerns that object alone; a line that
names nothing means that the stream can no longer be trusted (``CodecError``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import msgspec

from hami.errors import CodecError, KubeError
from hami.kube.resources import HasMetadata
from hami.kube.status import error_from, parse_status

T = TypeVar("T", bound=HasMetadata)
Decode: TypeAlias = Callable[[msgspec.Raw], T]
"""From one object's JSON; raises ``msgspec.MsgspecError`` or ``CodecError``."""


class Key(NamedTuple):
    """What identifies an object among those of its resource; the namespace may be empty."""

    namespace: str
    name: str

    def __str__(self) -> str:
        """``namespace/name``, for messages and logs."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """This object exists, but what was sent of it cannot be decoded: keep what you know of it."""

    key: Key
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed(Generic[T]):
    """Everything there is, as of one version."""

    objects: tuple[T, ...]
    unreadable: tuple[Unreadable, ...]
    resource_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Added(Generic[T]):
    """The object appeared, or began to match the selectors."""

    object: T


@dataclass(frozen=True, slots=True, kw_only=True)
class Modified(Generic[T]):
    """The object changed."""

    object: T


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted:
    """The object is gone, or no longer matches the selectors."""

    key: Key
    resource_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bookmark:
    """Nothing changed up to this version."""

    resource_version: str


Event: TypeAlias = Listed[T] | Added[T] | Modified[T] | Deleted | Bookmark | Unreadable


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""


class _Anything(msgspec.Struct, frozen=True):
    metadata: _Meta


class _Line(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


_LINE = msgspec.json.Decoder(_Line)
_ANYTHING = msgspec.json.Decoder(_Anything)


class LineSplitter:
    """Cuts a stream into lines of bounded length."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that ``chunk`` completes, without their ends; blank ones are left out.

        Raises:
            CodecError: A line is longer than the bound.
        """
        *complete, rest = chunk.split(b"\n")
        if complete:
            complete[0] = b"".join((*self._parts, complete[0]))
            self._parts, self._size = [], 0
        self._parts.append(rest)
        self._size += len(rest)
        longest = max(self._size, max(map(len, complete), default=0))
        if longest > self._max_bytes:
            raise CodecError(
                f"watch line: expected at most {self._max_bytes} bytes, met {longest} or more"
            )
        return [line for line in complete if line and not line.isspace()]


def decode_object(raw: msgspec.Raw, decode: Decode[T]) -> T | Unreadable:
    """The object, or the fact that it cannot be read.

    Raises:
        CodecError: Not even its name can be read.
    """
    try:
        obj = decode(raw)
        if obj.metadata.name:
            return obj
        error = "expected an object with a name, met none"
    except (msgspec.MsgspecError, CodecError) as caught:
        error = str(caught)
    try:
        meta = _identify(raw)
    except CodecError:
        raise CodecError(error) from None
    return Unreadable(key=Key(meta.namespace, meta.name), error=error)


def decode_line(line: bytes, decode: Decode[T]) -> tuple[Event[T], str]:
    """The event in a line of a watch, and the version that the stream has reached with it.

    Raises:
        CodecError: The line is no event, or does not say what it is about.
        GoneError: The version watched from is too old: list again.
        KubeError: The server gives the watch up for another reason.
    """
    try:
        entry = _LINE.decode(line)
    except msgspec.MsgspecError as error:
        raise CodecError(f"watch line: expected an event, met {line[:200]!r}: {error}") from error
    if entry.type == "ERROR":
        raise _given_up(entry.object)
    meta = _identify(entry.object, nameless=entry.type == "BOOKMARK")
    version = meta.resource_version
    match entry.type:
        case "ADDED" | "MODIFIED":
            obj = decode_object(entry.object, decode)
            if isinstance(obj, Unreadable):
                return obj, version
            return (Added(object=obj) if entry.type == "ADDED" else Modified(object=obj)), version
        case "DELETED":
            return Deleted(key=Key(meta.namespace, meta.name), resource_version=version), version
        case "BOOKMARK":
            return Bookmark(resource_version=version), version
        case unknown:
            raise CodecError(f"watch line: expected a known type of event, met {unknown[:40]!r}")


def _identify(raw: msgspec.Raw, *, nameless: bool = False) -> _Meta:
    try:
        meta = _ANYTHING.decode(raw).metadata
    except msgspec.MsgspecError as error:
        raise CodecError(f"object: expected metadata, met {bytes(raw)[:200]!r}: {error}") from error
    if not meta.resource_version or not (meta.name or nameless):
        raise CodecError(f"object: expected a name and a resourceVersion, met {meta}")
    return meta


def _given_up(raw: msgspec.Raw) -> KubeError:
    status = parse_status(raw)
    return error_from(status, code=status.code or 500, what="watch")
