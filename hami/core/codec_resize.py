"""Annotations of live resize: what is asked for, what was decided, and what is in force.

One writer each: people ask (``RESIZE_KEY``), the controller decides (``RESIZE_STATUS_KEY``), and
the node's agent says what came of it (``RESIZE_APPLIED_KEY``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from hami.core import wire
from hami.core.quantity import MAX_INT32
from hami.errors import CodecError

RESIZE_KEY: Final = "hami.io/resize"
RESIZE_STATUS_KEY: Final = "hami.io/resize-status"
RESIZE_APPLIED_KEY: Final = "hami.io/resize-applied"
MAX_REQUEST: Final = 16 * 1024
"""Characters."""


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one container is to have of each of its devices; None leaves it as it is."""

    gpumem: Annotated[int, Meta(ge=1, le=MAX_INT32)] | None = None
    """MiB."""
    gpucores: Annotated[int, Meta(ge=0, le=100)] | None = None
    """Percent."""


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the controller made of a request."""

    request: str
    """Which one it answers: ``digest`` of its text."""
    state: Literal["accepted", "denied"]
    reason: str = ""
    number: int = 0
    """How many requests of the pod were accepted so far."""
    had: dict[str, tuple[int, ...]] = {}  # msgspec copies it for each
    """By container that shrinks, MiB of each of its devices until now: what it may still hold."""


class Applied(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is in force of one container."""

    gpumem: int
    gpucores: int
    number: int = 0
    """Of the decision that is in force."""
    blocked: int = 0
    """MiB in use beyond the limit, on the worst device: nothing more is granted until they go."""


_REQUEST: Final = msgspec.json.Decoder(dict[str, Wanted])
_DECISION: Final = msgspec.json.Decoder(Decision)
_APPLIED: Final = msgspec.json.Decoder(dict[str, Applied])


def digest(text: str) -> str:
    """A short name of a request's text."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


def decode_resize(text: str) -> dict[str, Wanted]:
    """The request, by container.

    Raises:
        CodecError: It is no JSON object of that form, or asks for nothing.
    """
    if len(text) > MAX_REQUEST:
        raise CodecError(f"{RESIZE_KEY}: expected at most {MAX_REQUEST} characters")
    try:
        wanted = _REQUEST.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        raise CodecError(f"{RESIZE_KEY}: {error}") from error
    if not wanted or any(w.gpumem is None and w.gpucores is None for w in wanted.values()):
        raise CodecError(f"{RESIZE_KEY}: expected gpumem or gpucores of a container, met neither")
    return wanted


def decode_decision(text: str) -> Decision | None:
    """The decision; None where there is none that can be read."""
    try:
        return _DECISION.decode(text) if text else None
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return None


def number_of(text: str) -> int:
    """How many requests were accepted, as a decision says; 0 where there is none."""
    decision = decode_decision(text)
    return decision.number if decision is not None else 0


def encode_decision(decision: Decision) -> str:
    """The same text for the same decision."""
    return wire.encode(decision)


def decode_applied(text: str) -> dict[str, Applied]:
    """What is in force, by container; empty where that cannot be read."""
    try:
        return _APPLIED.decode(text) if text else {}
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return {}


def encode_applied(applied: Mapping[str, Applied]) -> str:
    """By container; the same text for the same facts."""
    return wire.encode(dict(sorted(applied.items())))
