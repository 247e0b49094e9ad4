"""The HTTP edge: extender and webhook over HTTP or HTTPS.

A handler parses, calls one function and encodes; deadlines, sizes, request ids, timing and the one
log line of a request are here. The extender's protocol answers every error with 200 and a text, the
webhook's with a refusal; HTTP's own errors are left to unknown paths and wrong methods. Knows
nothing of devices.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn

import anyio
import structlog
from aiohttp import web
from anyio.abc import TaskStatus

from hami.config import ControllerSettings
from hami.controllers import webhook, wire
from hami.controllers.binder import Binder
from hami.controllers.bodies import read_body
from hami.controllers.certificates import Certificates
from hami.controllers.counters import ControllerCounters
from hami.controllers.extender import Extender
from hami.controllers.leadership import Leadership
from hami.controllers.preemptverb import PreemptVerb
from hami.controllers.simulation import Simulation
from hami.core.admission import Rules
from hami.errors import ConfigError, HamiError, UnavailableError
from hami.logs import get_logger

log = get_logger(__name__)

READ_SECONDS: Final = 60.0
"""A request's body must have arrived by then."""
READ_BYTES: Final = 1024 * 1024
"""Read ahead of a body; thousands of node names come in one go."""
CLEANUP_SECONDS: Final = 5.0
LOGGED_CHARACTERS: Final = 1000
"""Of a text from outside, in a log line."""
_REQUEST_ID: Final = re.compile(r"[-._A-Za-z0-9]{1,64}")
NOT_SYNCED: Final = "not synced with the API server yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the handlers call."""

    extender: Extender
    simulation: Simulation
    preempt: PreemptVerb
    binder: Binder
    rules: Rules
    settings: ControllerSettings
    counters: ControllerCounters
    is_synced: Callable[[], bool]
    leadership: Leadership
    decoder: wire.ArgsDecoder = field(default_factory=wire.ArgsDecoder)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What a handler leaves for the closing log line and the metrics."""

    body: bytes
    result: str
    pod: str = ""
    error: str = ""
    matters: bool = True
    """Whether the line is for everybody or for debugging."""


_Ask = Callable[[Services, bytes], Awaitable[_Outcome]]
SERVICES: Final = web.AppKey("services", Services)


async def serve(
    services: Services,
    certificates: Certificates | None,
    *,
    task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve until cancelled; started, with the port, once the socket listens.

    Cancelled, it takes no more requests and lets those under way finish, within a deadline.

    Raises:
        ConfigError: The address cannot be listened at.
    """
    settings = services.settings
    runner = web.AppRunner(
        application(services),
        handle_signals=False,
        access_log=None,
        shutdown_timeout=settings.stop_seconds,
        read_bufsize=READ_BYTES,
        auto_decompress=False,  # nobody compresses these requests, and a bound should bind
    )
    await runner.setup()
    try:
        site = web.TCPSite(
            runner,
            settings.host,
            settings.port,
            ssl_context=None if certificates is None else certificates.context,
            backlog=1024,
        )
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(
                f"controller.host {settings.host}, port {settings.port}: {error}"
            ) from error
        port: int = runner.addresses[0][1]
        log.info("server_started", host=settings.host, port=port, tls=certificates is not None)
        async with anyio.create_task_group() as tasks:
            if certificates is not None:
                tasks.start_soon(_watch, certificates, settings, name="certificates")
            task_status.started(port)
            await anyio.sleep_forever()
    finally:
        with anyio.move_on_after(settings.stop_seconds + CLEANUP_SECONDS, shield=True):
            await runner.cleanup()
        log.info("server_stopped")
    raise AssertionError("unreachable: sleeps until cancelled")


async def _watch(certificates: Certificates, settings: ControllerSettings) -> None:
    await certificates.watch(every_seconds=settings.cert_poll_seconds)


def application(services: Services) -> web.Application:
    """The routes."""
    app = web.Application(client_max_size=services.settings.max_body_bytes)
    app[SERVICES] = services
    app.router.add_post("/filter", _route("filter", _filter, wire.encode_filter_error))
    app.router.add_post("/prioritize", _route("prioritize", _prioritize, _no_priorities))
    preempt = _route("preempt", _preempt, _no_victims, refused_status=503)
    app.router.add_post("/preempt", preempt)
    app.router.add_post("/bind", _route("bind", _bind, wire.encode_bind))
    app.router.add_post("/webhook", _route("webhook", _review, _refuse))
    return app


def _route(
    verb: str, ask: _Ask, refuse: Callable[[str], bytes], *, refused_status: int = 200
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler: bounded reading, one call, one closing line, in the words of the protocol.

    Where the answer has a place for an error, refusals are answers too, and their status is 200.
    """

    async def handle(request: web.Request) -> web.Response:
        services = request.app[SERVICES]
        started, status = time.perf_counter(), refused_status
        request_id = _request_id(request)
        with structlog.contextvars.bound_contextvars(request=request_id):
            try:
                outcome = await ask(services, await _body(request, services.settings, verb))
                status = 200
            except HamiError as error:
                outcome = _Outcome(body=refuse(str(error)), result="error", error=str(error))
            except Exception as error:
                log.exception("request_broke", verb=verb)
                text = f"{verb}: internal error: {type(error).__name__}"
                outcome = _Outcome(body=refuse(text), result="broken", error=text)
            seconds = time.perf_counter() - started
            services.counters.requests.labels(verb, outcome.result).observe(seconds)
            _say(verb, outcome, seconds)
        return web.Response(
            status=status,
            body=outcome.body,
            content_type="application/json",
            headers={"X-Request-Id": request_id},
        )

    return handle


def _request_id(request: web.Request) -> str:
    """The caller's own id where it is one, else a new one."""
    given = request.headers.get("X-Request-Id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex[:12]


def _say(verb: str, outcome: _Outcome, seconds: float) -> None:
    level = log.info if outcome.matters else log.debug
    details = {"pod": outcome.pod, "error": outcome.error}
    level(
        "request_answered",
        verb=verb,
        result=outcome.result,
        seconds=round(seconds, 6),
        **{key: value[:LOGGED_CHARACTERS] for key, value in details.items() if value},
    )


async def _filter(services: Services, body: bytes) -> _Outcome:
    args = services.decoder.decode(body)
    if args.objects is not None:
        _require_sync(services)
        found = await services.simulation.filter(args.pod, args.objects)
    else:
        _require_turn(services)
        found = services.extender.filter(args.pod, args.names)
    return _Outcome(
        body=wire.encode_filter(args, found.nodes, found.failed),
        result="unasked" if found.failed is None else "fit" if found.nodes else "unfit",
        pod=args.pod.key,
        matters=found.failed is not None,
    )


async def _prioritize(services: Services, body: bytes) -> _Outcome:
    args = services.decoder.decode(body)
    _require_turn(services)
    scores = services.extender.prioritize(args.pod, args.names)
    return _Outcome(
        body=wire.encode_priorities(scores), result="scored", pod=args.pod.key, matters=False
    )


async def _preempt(services: Services, body: bytes) -> _Outcome:
    args = wire.decode_preempt(body)
    _require_turn(services)
    victims = services.preempt.answer(args)
    return _Outcome(
        body=wire.encode_preempt(victims),
        result="possible" if victims else "impossible",
        pod=args.pod.key,
    )


async def _bind(services: Services, body: bytes) -> _Outcome:
    args = wire.decode_bind(body)
    _require_turn(services)
    await services.binder.bind(args)
    return _Outcome(body=wire.encode_bind(""), result="bound", pod=args.pod)


async def _review(services: Services, body: bytes) -> _Outcome:
    answer = webhook.review(body, services.rules)
    services.counters.admissions.labels(answer.result).inc()
    return _Outcome(
        body=answer.body,
        result=answer.result,
        pod=answer.pod,
        error=answer.message,
        matters=answer.result != "unchanged",
    )


def _require_turn(services: Services) -> None:
    """Refuse what is not for this process to decide, or not yet."""
    _require_sync(services)
    services.leadership.require()


def _require_sync(services: Services) -> None:
    if not services.is_synced():
        raise UnavailableError(NOT_SYNCED)


def _no_priorities(_: str) -> bytes:
    """Prioritize has no place for an error; the scheduler goes on without our scores."""
    return wire.encode_priorities({})


def _no_victims(message: str) -> bytes:
    """Preempt has no place for an error either; the status says that this is no answer."""
    return wire.encode_bind(message)


def _refuse(message: str) -> bytes:
    return webhook.refuse(None, 400, message).body


async def _body(request: web.Request, settings: ControllerSettings, verb: str) -> bytes:
    limit = settings.max_review_bytes if verb == "webhook" else settings.max_body_bytes
    return await read_body(request, max_bytes=limit, within_seconds=READ_SECONDS)
