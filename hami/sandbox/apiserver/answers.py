"""Refusals: the Status objects with which an API server says no.

Owns status codes, reasons and wording, which clients match on. The wording follows kube-apiserver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hami.errors import SandboxError


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldError:
    """One thing that is wrong with one field of an object."""

    reason: str
    """``FieldValueInvalid``, ``FieldValueRequired``, ``FieldValueForbidden``, ..."""
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class StatusError(SandboxError):
    """A request is refused: the HTTP status, the machine-readable reason and details."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: dict[str, Any] | None = None,
        *,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = dict(details or {})
        self.retry_after_seconds = retry_after_seconds

    def to_status(self) -> dict[str, Any]:
        """The ``v1 Status`` object that carries this refusal."""
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "code": self.code,
        }
        if self.reason:
            status["reason"] = self.reason
        details = dict(self.details)
        if self.retry_after_seconds is not None:
            details["retryAfterSeconds"] = self.retry_after_seconds
        if details:
            status["details"] = details
        return status


def success(*, details: dict[str, Any] | None = None, code: int = 200) -> dict[str, Any]:
    """The ``v1 Status`` object of a request that returns no object."""
    status: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}}
    status["status"] = "Success"
    if code != 200:
        status["code"] = code
    if details:
        status["details"] = details
    return status


def bad_request(message: str) -> StatusError:
    """400: the request makes no sense, whatever the state."""
    return StatusError(400, "BadRequest", message)


def forbidden(resource: str, name: str, why: str) -> StatusError:
    """403: an admission rule says no."""
    message = f'{resource} "{name}" is forbidden: {why}'
    return StatusError(403, "Forbidden", message, {"name": name, "kind": resource})


def path_not_found() -> StatusError:
    """404: no such path, so no such kind or sub-resource."""
    return StatusError(404, "NotFound", "the server could not find the requested resource")


def not_found(resource: str, name: str) -> StatusError:
    """404: the kind exists, the object does not."""
    details = {"name": name, "kind": resource}
    return StatusError(404, "NotFound", f'{resource} "{name}" not found', details)


def method_not_allowed() -> StatusError:
    """405: the path exists, this verb on it does not."""
    message = "the server does not allow this method on the requested resource"
    return StatusError(405, "MethodNotAllowed", message)


def already_exists(resource: str, name: str) -> StatusError:
    """409: a create met an object of that name."""
    details = {"name": name, "kind": resource}
    return StatusError(409, "AlreadyExists", f'{resource} "{name}" already exists', details)


def conflict(resource: str, name: str, why: str) -> StatusError:
    """409: the state is not what the request presumes."""
    message = f'Operation cannot be fulfilled on {resource} "{name}": {why}'
    return StatusError(409, "Conflict", message, {"name": name, "kind": resource})


def modified(resource: str, name: str) -> StatusError:
    """409: the resourceVersion presumed is not the current one."""
    why = (
        "the object has been modified; please apply your changes to the latest version "
        "and try again"
    )
    return conflict(resource, name, why)


def expired(message: str) -> StatusError:
    """410: the resourceVersion or continue token is too old."""
    return StatusError(410, "Expired", message)


def unsupported_media_type(given: str, *, supported: Sequence[str]) -> StatusError:
    """415: the body's content type is not one that this server reads."""
    message = (
        f"the body of the request was in an unknown format ({given or 'no content type'}) - "
        f"accepted media types include: {', '.join(supported)}"
    )
    return StatusError(415, "UnsupportedMediaType", message)


def invalid(kind: str, name: str, causes: Sequence[FieldError], *, group: str = "") -> StatusError:
    """422: the object breaks the rules of its kind."""
    listed = [str(cause) for cause in causes]
    text = listed[0] if len(listed) == 1 else f"[{', '.join(listed)}]"
    details: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "causes": [
            {"reason": cause.reason, "message": cause.message, "field": cause.field}
            for cause in causes
        ],
    }
    if group:
        details["group"] = group
    qualified = f"{kind}.{group}" if group else kind
    return StatusError(422, "Invalid", f'{qualified} "{name}" is invalid: {text}', details)


def not_implemented(what: str) -> StatusError:
    """501: real API servers do this, this one does not."""
    return StatusError(501, "NotImplemented", f"this server does not implement {what}")
