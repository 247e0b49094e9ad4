"""What clients send: objects, patches and options, read from bodies and queries.

Everything here is hostile until it is parsed; what cannot be read raises StatusError(400 or 415).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar, cast, get_args

import msgspec
from aiohttp import web

from hami.sandbox.apiserver import answers, selectors
from hami.sandbox.apiserver.operation import FieldValidation
from hami.sandbox.apiserver.patching import (
    Json,
    PatchError,
    apply_json_patch,
    apply_merge_patch,
)
from hami.sandbox.apiserver.protobuf import PROTOBUF, decode_protobuf
from hami.sandbox.apiserver.records import Object, Selection
from hami.sandbox.apiserver.registry import DeleteOptions, Patch
from hami.sandbox.apiserver.requests import Target, is_true
from hami.sandbox.apiserver.strategic import apply_strategic_patch
from hami.sandbox.apiserver.views import JSON

MAX_BODY_BYTES: Final = 3 * 1024 * 1024
_NO_TYPE: Final = "application/octet-stream"
_PATCHES: Final[Mapping[str, Callable[[Target, Object, Json], Json]]] = {
    "application/json-patch+json": lambda _, document, patch: apply_json_patch(document, patch),
    "application/merge-patch+json": lambda _, document, patch: apply_merge_patch(document, patch),
    "application/strategic-merge-patch+json": lambda target, document, patch: apply_strategic_patch(
        document, patch, plural=target.kind.plural
    ),
}


_Decoded = TypeVar("_Decoded")


class Preconditions(msgspec.Struct, rename="camel"):
    """What must be true of the object that is deleted."""

    uid: str | None = None
    resource_version: str | None = None


class DeleteBody(msgspec.Struct, rename="camel"):
    """The ``DeleteOptions`` that a client sends."""

    grace_period_seconds: int | None = None
    preconditions: Preconditions | None = None
    dry_run: list[str] | None = None


class Eviction(msgspec.Struct, rename="camel"):
    """The body of ``POST .../eviction``."""

    delete_options: DeleteBody = msgspec.field(default_factory=DeleteBody)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """Which part of a container's log a client wants."""

    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    since_seconds: int | None = None
    limit_bytes: int | None = None


async def read_object(request: web.Request) -> Object:
    """The object in the body."""
    return await read_body(request, dict[str, Any])


async def read_body(request: web.Request, shape: type[_Decoded]) -> _Decoded:
    """The body as a value of that shape."""
    body = await _read(request)
    if request.content_type == PROTOBUF:
        return _convert(decode_protobuf(body), shape)
    if request.content_type not in (JSON, _NO_TYPE):
        raise answers.unsupported_media_type(request.content_type, supported=[JSON])
    return _decode(body, shape)


async def read_patch(request: web.Request, target: Target) -> Patch:
    """The patch in the body, as a function that applies it."""
    apply = _PATCHES.get(request.content_type)
    if apply is None:
        raise answers.unsupported_media_type(request.content_type, supported=list(_PATCHES))
    patch = _decode(await _read(request), object)
    return partial(_apply, partial(apply, target), patch)


async def read_delete_options(request: web.Request) -> tuple[DeleteOptions, bool]:
    """The options of a deletion from body and query (the body counts), and if it is a dry run."""
    has_body = request.can_read_body and await _read(request)
    options = await read_body(request, DeleteBody) if has_body else DeleteBody()
    return parse_delete_options(options, request.query)


def parse_delete_options(
    options: DeleteBody, query: Mapping[str, str]
) -> tuple[DeleteOptions, bool]:
    """The same from a decoded body, such as an Eviction brings along."""
    grace = options.grace_period_seconds
    if grace is None:
        grace = parse_integer(query, "gracePeriodSeconds")
    if grace is not None and grace < 0:
        raise answers.bad_request(f"gracePeriodSeconds is negative: {grace}")
    preconditions = options.preconditions or Preconditions()
    parsed = DeleteOptions(
        grace_period_seconds=grace,
        uid=preconditions.uid,
        resource_version=preconditions.resource_version,
    )
    return parsed, options.dry_run == ["All"] or is_dry_run(query)


def parse_selection(target: Target, query: Mapping[str, str]) -> Selection:
    """What the request lists or watches; the object that its URL names, if it names one."""
    fields = selectors.parse_fields(query.get("fieldSelector", ""), supported=target.kind.fields)
    if target.name:
        fields += (selectors.FieldTerm(path="metadata.name", value=target.name),)
    return Selection(
        namespace=target.namespace,
        labels=selectors.parse_labels(query.get("labelSelector", "")),
        fields=fields,
    )


def parse_integer(query: Mapping[str, str], name: str) -> int | None:
    """The number that the query gives by that name; None where it gives none."""
    text = query.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise answers.bad_request(f"invalid {name}: {text!r} is no number")
    return int(text)


def parse_log_query(query: Mapping[str, str]) -> LogQuery:
    """Which part of a log the query asks for."""
    return LogQuery(
        follow=is_true(query.get("follow")),
        previous=is_true(query.get("previous")),
        timestamps=is_true(query.get("timestamps")),
        tail_lines=parse_integer(query, "tailLines"),
        since_seconds=parse_integer(query, "sinceSeconds"),
        limit_bytes=parse_integer(query, "limitBytes"),
    )


def parse_field_validation(query: Mapping[str, str]) -> FieldValidation:
    """What to do about unknown fields."""
    value = query.get("fieldValidation") or "Warn"
    if value not in get_args(FieldValidation):
        raise answers.bad_request(f"fieldValidation: Unsupported value: {value!r}")
    return cast(FieldValidation, value)


def is_dry_run(query: Mapping[str, str]) -> bool:
    """Whether the request must leave no trace."""
    value = query.get("dryRun")
    if value not in (None, "All"):
        raise answers.bad_request(f'dryRun: Unsupported value: {value!r}: supported values: "All"')
    return value == "All"


async def _read(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        message = f"Request entity too large: limit is {MAX_BODY_BYTES}"
        raise answers.StatusError(413, "RequestEntityTooLarge", message) from error


def _apply(function: Callable[[Object, Json], Json], patch: Json, document: Object) -> Object:
    try:
        patched = function(document, patch)
    except (PatchError, RecursionError) as error:
        raise answers.StatusError(422, "Invalid", str(error)) from error
    if not isinstance(patched, dict):
        raise answers.bad_request("the patch leaves no object")
    return patched


def _decode(body: bytes, shape: type[_Decoded]) -> _Decoded:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        message = f"the body of the request is not what it should be: {error}"
        raise answers.bad_request(message) from error


def _convert(obj: Object, shape: type[_Decoded]) -> _Decoded:
    try:
        return msgspec.convert(obj, shape)
    except msgspec.ValidationError as error:
        message = f"the body of the request is not what it should be: {error}"
        raise answers.bad_request(message) from error
