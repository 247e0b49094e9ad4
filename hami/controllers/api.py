"""The read-only JSON endpoints under ``/v1``: explain and what-if, on every replica.

Served on the health address. A handler parses, calls one function and encodes; every refusal is
JSON with words in ``error`` and one of HTTP's statuses, which says whose fault it is. Nothing here
changes anything.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import msgspec
from aiohttp import web

from hami.controllers.answers import Problem
from hami.controllers.bodies import read_body
from hami.controllers.counters import ControllerCounters
from hami.controllers.explain import Explainer
from hami.controllers.whatif import WhatIfs
from hami.errors import AdmissionError, CodecError, HamiError, UnavailableError
from hami.logs import get_logger

log = get_logger(__name__)

MAX_BODY_BYTES: Final = 3 * 1024 * 1024
"""Of a question; the API server takes no larger objects."""
READ_SECONDS: Final = 30.0
MAX_NAME: Final = 253
NOT_SYNCED: Final = "not synced with the API server yet"

_ENCODER = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """What the endpoints call."""

    explainer: Explainer
    what_ifs: WhatIfs
    is_synced: Callable[[], bool]
    counters: ControllerCounters


def routes(inquiry: Inquiry) -> list[web.RouteDef]:
    """The endpoints."""

    async def explain_all(_: web.Request) -> msgspec.Struct:
        return await inquiry.explainer.all()

    async def explain_one(request: web.Request) -> msgspec.Struct:
        namespace, name = (request.match_info[key] for key in ("namespace", "pod"))
        if max(len(namespace), len(name)) > MAX_NAME:
            raise CodecError("explain: expected the names of a namespace and a pod")
        return await inquiry.explainer.one(namespace, name)

    async def what_if(request: web.Request) -> msgspec.Struct:
        body = await read_body(request, max_bytes=MAX_BODY_BYTES, within_seconds=READ_SECONDS)
        return await inquiry.what_ifs.answer(body)

    return [
        web.get("/v1/explain", _handler("explain", inquiry, explain_all)),
        web.get("/v1/explain/{namespace}/{pod}", _handler("explain", inquiry, explain_one)),
        web.post("/v1/what-if", _handler("what-if", inquiry, what_if)),
    ]


def _handler(
    verb: str, inquiry: Inquiry, answer: Callable[[web.Request], Awaitable[msgspec.Struct]]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        started = time.perf_counter()
        status, found = await _guarded(verb, inquiry, request, answer)
        result = "answered" if status == web.HTTPOk.status_code else "error"
        seconds = time.perf_counter() - started
        inquiry.counters.requests.labels(verb, result).observe(seconds)
        log.debug("inquiry_answered", verb=verb, status=status, seconds=round(seconds, 6))
        return web.Response(
            status=status, body=_ENCODER.encode(found), content_type="application/json"
        )

    return handle


async def _guarded(
    verb: str,
    inquiry: Inquiry,
    request: web.Request,
    answer: Callable[[web.Request], Awaitable[msgspec.Struct]],
) -> tuple[int, msgspec.Struct]:
    """Status and answer; whatever happens, words."""
    try:
        _require_sync(inquiry)
        found = await answer(request)
    except HamiError as error:
        return _status_of(error), Problem(error=str(error))
    except Exception as error:
        log.exception("inquiry_broke", verb=verb)
        return 500, Problem(error=f"{verb}: internal error: {type(error).__name__}")
    return (404 if isinstance(found, Problem) else 200), found


def _require_sync(inquiry: Inquiry) -> None:
    if not inquiry.is_synced():
        raise UnavailableError(NOT_SYNCED)


def _status_of(error: HamiError) -> int:
    match error:
        case AdmissionError():
            return 422
        case CodecError():
            return 400
        case _:
            return 503
