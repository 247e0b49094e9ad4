"""From the API server's refusal to this project's error tree. Pure.

The input is a ``Status`` object (or whatever an intermediary put in its place) with an HTTP status.
"""

from __future__ import annotations

from typing import Final

import msgspec

from hami.errors import (
    ConflictError,
    GoneError,
    KubeError,
    NotFoundError,
    ThrottledError,
    UnavailableError,
)

MAX_QUOTED: Final = 500
"""Characters of a foreign body that an error message quotes."""


class _Cause(msgspec.Struct, frozen=True):
    field: str = ""


class _Details(msgspec.Struct, frozen=True, rename="camel"):
    retry_after_seconds: float | None = None
    causes: tuple[_Cause, ...] | None = None


class Status(msgspec.Struct, frozen=True):
    """The part of a Kubernetes ``Status`` that decides what a caller can do."""

    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None


def parse_status(body: bytes | msgspec.Raw) -> Status:
    """The Status in a body; one made of the body's text where it is something else."""
    try:
        return msgspec.json.decode(body, type=Status)
    except msgspec.MsgspecError:
        return Status(message=bytes(body)[:MAX_QUOTED].decode(errors="replace").strip())


def error_from(
    status: Status, *, code: int, what: str, retry_after: str | None = None, testing: bool = False
) -> KubeError:
    """The error for a refused request.

    Args:
        status: What the server said.
        code: The HTTP status; for an ERROR event of a watch, the Status' own.
        what: The request, for the message.
        retry_after: The header of that name.
        testing: The request was a JSON patch, whose failed ``test`` operations the server answers
            with a 422 that has no causes: somebody else wrote first.
    """
    message = f"{what}: {code} {status.reason}: {status.message or 'no message'}"
    details = status.details or _Details()
    fields = {cause.field for cause in details.causes or ()}
    match code:
        case 404:
            return NotFoundError(message, status=code)
        case 409:
            return ConflictError(message, status=code)
        case 410:
            return GoneError(message, status=code)
        case 422 if "metadata.uid" in fields or (testing and not fields):
            return ConflictError(message, status=code)
        case 429:
            seconds = _seconds(retry_after)
            if seconds is None:
                seconds = details.retry_after_seconds
            return ThrottledError(message, status=code, retry_after_seconds=seconds)
        case _ if code >= 500:
            return UnavailableError(message, status=code)
        case _:
            return KubeError(message, status=code)


def _seconds(header: str | None) -> float | None:
    """The header's seconds; None where it is absent, negative or a date (which nobody sends)."""
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None
