"""What clients send: objects, patches and options, read from bodies and queries.

Everything here is hostile until it is parsed; what cannot be read raises StatusError(400 or 415).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import msgspec
from aiohttp import web

from hami.sandbox.apiserver import answers, selectors
from hami.sandbox.apiserver.patching import (
    Json,
    PatchError,
    apply_json_patch,
    apply_merge_patch,
)
from hami.sandbox.apiserver.records import Object, Selection
from hami.sandbox.apiserver.registry import DeleteOptions, Patch
from hami.sandbox.apiserver.requests import Target
from hami.sandbox.apiserver.strategic import apply_strategic_patch

JSON: Final = "application/json"
MAX_BODY_BYTES: Final = 3 * 1024 * 1024
_NO_TYPE: Final = "application/octet-stream"
_PATCHES: Final[Mapping[str, Callable[[Target, Object, Json], Json]]] = {
    "application/json-patch+json": lambda _, document, patch: apply_json_patch(document, patch),
    "application/merge-patch+json": lambda _, document, patch: apply_merge_patch(document, patch),
    "application/strategic-merge-patch+json": lambda target, document, patch: apply_strategic_patch(
        document, patch, plural=target.kind.plural
    ),
}


async def read_object(request: web.Request) -> Object:
    """The object in the body."""
    if request.content_type not in (JSON, _NO_TYPE):
        raise answers.unsupported_media_type(request.content_type, supported=[JSON])
    return _decode_object(await _read(request))


async def read_patch(request: web.Request, target: Target) -> Patch:
    """The patch in the body, as a function that applies it."""
    apply = _PATCHES.get(request.content_type)
    if apply is None:
        raise answers.unsupported_media_type(request.content_type, supported=list(_PATCHES))
    try:
        patch = msgspec.json.decode(await _read(request))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise answers.bad_request(f"the body of the request is no JSON: {error}") from error
    return partial(_apply, partial(apply, target), patch)


async def read_delete_options(request: web.Request) -> DeleteOptions:
    """The options of a deletion, from the query or, with precedence, the body."""
    body = await _read(request)
    options = _decode_object(body) if body else {}
    preconditions = options.get("preconditions") or {}
    grace = options.get("gracePeriodSeconds")
    if grace is None:
        grace = parse_integer(request.query, "gracePeriodSeconds")
    if grace is not None and (not isinstance(grace, int) or grace < 0):
        raise answers.bad_request(f"gracePeriodSeconds is no number of seconds: {grace!r}")
    return DeleteOptions(
        grace_period_seconds=grace,
        uid=preconditions.get("uid"),
        resource_version=preconditions.get("resourceVersion"),
        dry_run=options.get("dryRun") == ["All"] or is_dry_run(request.query),
    )


def parse_selection(target: Target, query: Mapping[str, str]) -> Selection:
    """What the request lists or watches."""
    return Selection(
        namespace=target.namespace,
        labels=selectors.parse_labels(query.get("labelSelector", "")),
        fields=selectors.parse_fields(query.get("fieldSelector", ""), supported=target.kind.fields),
    )


def parse_integer(query: Mapping[str, str], name: str) -> int | None:
    """The number that the query gives by that name; None where it gives none."""
    text = query.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise answers.bad_request(f"invalid {name}: {text!r} is no number")
    return int(text)


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
    except PatchError as error:
        raise answers.StatusError(422, "Invalid", str(error)) from error
    if not isinstance(patched, dict):
        raise answers.bad_request("the patch leaves no object")
    return patched


def _decode_object(body: bytes) -> Object:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise answers.bad_request(f"the body of the request is no JSON object: {error}") from error
