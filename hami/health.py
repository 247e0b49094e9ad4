"""``/healthz``, ``/readyz`` and ``/metrics`` of a process, and what else it adds, over plain HTTP.

Alive is: the event loop answers. Ready is what the process says; its reason is the body of a 503.
Metrics are gathered in a worker thread, after whatever the process refreshes for a scrape. Knows
nothing of what the process does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import NoReturn

import anyio
import anyio.to_thread
from aiohttp import web
from anyio.abc import TaskStatus
from prometheus_client import CollectorRegistry, generate_latest

from hami.errors import ConfigError
from hami.logs import get_logger

log = get_logger(__name__)

STOP_SECONDS = 5.0
REFRESH_SECONDS = 8.0
"""Below Prometheus' own scrape deadline of 10 s; later than that it gets what there is."""

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


async def _nothing_to_refresh() -> None:
    """For processes whose metrics are always up to date."""


def _nothing_to_say() -> Mapping[str, str]:
    return {}


async def serve(
    *,
    host: str,
    port: int,
    ready: Callable[[], str | None],
    registry: CollectorRegistry,
    refresh: Callable[[], Awaitable[None]] = _nothing_to_refresh,
    headers: Callable[[], Mapping[str, str]] = _nothing_to_say,
    text: Callable[[], Iterable[bytes]] = tuple,
    routes: Iterable[web.RouteDef] = (),
    task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve until cancelled; started, with the port, once the socket listens.

    Args:
        host: Address to listen at.
        port: Port; 0 picks a free one, which is logged.
        ready: None when ready, else what is missing.
        registry: Whose metrics to serve.
        refresh: Awaited before each scrape, for a bounded time.
        text: What else a scrape gets, in Prometheus' text format; asked in the worker thread.
        headers: What else ``/readyz`` tells, whatever its answer.
        routes: What else the process answers here.
        task_status: Of the task group that starts this.

    Raises:
        ConfigError: The address cannot be listened at.
    """
    app = web.Application()
    app.router.add_get("/healthz", _alive)
    app.router.add_get("/readyz", partial(_readiness, ready, headers))
    app.router.add_get("/metrics", partial(_metrics, registry, refresh, text))
    app.router.add_routes(routes)
    runner = web.AppRunner(
        app, handle_signals=False, access_log=None, shutdown_timeout=STOP_SECONDS
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(f"health server at {host}:{port}: {error}") from error
        chosen: int = runner.addresses[0][1]
        log.info("health_server_started", host=host, port=chosen)
        task_status.started(chosen)
        await anyio.sleep_forever()
    finally:
        with anyio.move_on_after(STOP_SECONDS, shield=True):
            await runner.cleanup()
    raise AssertionError("unreachable: sleeps until cancelled")


async def _alive(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def _readiness(
    ready: Callable[[], str | None], headers: Callable[[], Mapping[str, str]], _: web.Request
) -> web.Response:
    missing = ready()
    if missing is None:
        return web.Response(text="ok\n", headers=headers())
    return web.Response(status=503, text=f"not ready: {missing}\n", headers=headers())


async def _metrics(
    registry: CollectorRegistry,
    refresh: Callable[[], Awaitable[None]],
    text: Callable[[], Iterable[bytes]],
    request: web.Request,
) -> web.StreamResponse:
    with anyio.move_on_after(REFRESH_SECONDS) as patience:
        await refresh()
    if patience.cancelled_caught:
        log.warning("scrape_served_stale", seconds=REFRESH_SECONDS)
    pieces = await anyio.to_thread.run_sync(lambda: [generate_latest(registry), *text()])
    response = web.StreamResponse(headers={"Content-Type": TEXT_FORMAT})
    response.content_length = sum(map(len, pieces))
    await response.prepare(request)
    for piece in pieces:  # in the whole they may be large, and nothing else runs while bytes move
        await response.write(piece)
    return response
