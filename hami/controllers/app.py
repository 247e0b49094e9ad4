"""The controller process: in which order its parts start and stop.

Nested groups give the order of stopping, the reverse: take no more requests and finish those under
way, stop watching, send the last Events, close. A part that dies takes the process down with it.
What the parts are is ``wiring``'s; no rule of the domain stands here.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn

import anyio
from anyio.abc import TaskGroup, TaskStatus
from prometheus_client import CollectorRegistry, ProcessCollector

from hami import __version__, crashpoints, health
from hami.config import Settings
from hami.controllers import api, resizer, server
from hami.controllers import binder as binding
from hami.controllers import extender as extending
from hami.controllers import outcomes as undoing
from hami.controllers.counters import ControllerCounters
from hami.controllers.wiring import Parts, build
from hami.core.cache import AllocationCache
from hami.errors import UnavailableError
from hami.kube.client import connect
from hami.kube.metrics import KubeMetrics
from hami.live import tell
from hami.loading import Loaded
from hami.logs import get_logger

log = get_logger(__name__)

EXPIRE_SECONDS: Final = 1.0
CRASH_POINTS: Final = (
    *extending.CRASH_POINTS,
    *binding.CRASH_POINTS,
    *binding.CONFLICT_POINTS,
    *undoing.CRASH_POINTS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where a running controller listens."""

    server: int
    health: int


async def run(
    start: Settings | Loaded, *, task_status: TaskStatus[Ports] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Run until SIGTERM or SIGINT; started once it listens, ready when ``/readyz`` says so.

    Args:
        start: The settings; those that were loaded from files follow the files.
        task_status: Of the task group that starts this.

    Raises:
        ConfigError: A setting cannot be used: an address, a certificate, the kubeconfig.
        UnavailableError: The API server did not show everything in time.
    """
    crashpoints.arm(os.environ.get(crashpoints.ENV), known=(*CRASH_POINTS, *resizer.CRASH_POINTS))
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    loaded = start if isinstance(start, Loaded) else Loaded(settings=start)
    async with connect(loaded.settings.kube, metrics=KubeMetrics(registry)) as client:
        parts = build(loaded, client, registry)
        log.info("controller_started", version=__version__, mode=parts.settings.mode)
        tell(loaded.notes)
        await _run(parts, task_status)
    log.info("controller_stopped")


async def _run(parts: Parts, task_status: TaskStatus[Ports]) -> None:
    """Start everything, in order; return when told to stop and everything has stopped.

    The server listens before the stores are full: admission needs none of them.
    """
    working = anyio.CancelScope()

    def missing() -> str | None:
        if working.cancel_called:
            return "stopping"
        if not parts.services.is_synced():
            return server.NOT_SYNCED
        return None if parts.leadership.is_ready else "taking over"

    async with anyio.create_task_group() as observed:
        health_port = await observed.start(partial(_serve_health, parts, missing), name="health")
        async with anyio.create_task_group() as speaking:
            await speaking.start(parts.recorder.run, name="events")
            async with anyio.create_task_group() as watching:
                watching.start_soon(_stop_on_signal, working, name="signals")
                watching.start_soon(parts.reloader.run, name="settings")
                with working:
                    async with anyio.create_task_group() as serving:
                        port = await serving.start(
                            server.serve, parts.services, parts.certificates, name="server"
                        )
                        task_status.started(Ports(server=port, health=health_port))
                        await _sync(parts, watching)
                        await _begin_to_lead(parts, watching)
                        watching.start_soon(_expire, parts.cache, parts.counters, name="expiry")
                        watching.start_soon(parts.outcomes.run, name="outcomes")
                        watching.start_soon(parts.handshake.run, name="handshake")
                        watching.start_soon(parts.locks.run, name="locks")
                        watching.start_soon(parts.nudger.run, name="nudger")
                        watching.start_soon(parts.preemptor.run, name="preemptor")
                        watching.start_soon(parts.resizer.run, name="resizer")
                watching.cancel_scope.cancel()
            speaking.cancel_scope.cancel()
        observed.cancel_scope.cancel()


async def _serve_health(
    parts: Parts,
    missing: Callable[[], str | None],
    *,
    task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED,
) -> NoReturn:
    await health.serve(
        host=parts.settings.health_host,
        port=parts.settings.health_port,
        ready=missing,
        registry=parts.registry,
        refresh=parts.exporter.refresh,
        text=parts.exporter.text,
        headers=lambda: {"X-Hami-Role": parts.leadership.role},
        routes=api.routes(parts.inquiry),
        task_status=task_status,
    )


async def _stop_on_signal(working: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("stop_requested", signal=signal.Signals(number).name)
            working.cancel()


async def _sync(parts: Parts, group: TaskGroup) -> None:
    """Fill the stores.

    Raises:
        UnavailableError: Not within the deadline.
    """
    started, seconds = time.monotonic(), parts.settings.sync_timeout_seconds
    try:
        with anyio.fail_after(seconds):
            await parts.stores.start(group)
    except TimeoutError as error:
        raise UnavailableError(
            f"no complete list of nodes, quotas, budgets and pods within {seconds:g} s"
        ) from error
    gc.collect()
    gc.freeze()  # what was read at start stays: no collection need look at it again
    log.info(
        "controller_synced",
        nodes=len(parts.stores.nodes.list()),
        pods=len(parts.stores.pods.list()),
        reservations=len(parts.cache),
        seconds=round(time.monotonic() - started, 3),
    )


async def _begin_to_lead(parts: Parts, group: TaskGroup) -> None:
    """Campaign, or lead at once where there is no election."""
    lead = partial(parts.leadership.run, parts.succession.take_over, parts.succession.resign)
    await group.start(lead, name="leadership")
    group.start_soon(parts.leftovers.run, parts.leadership, name="leftovers")
    group.start_soon(parts.role.run, name="role")


async def _expire(cache: AllocationCache, counters: ControllerCounters) -> NoReturn:
    """End holds and reservations that nobody came back for."""
    while True:
        await anyio.sleep(EXPIRE_SECONDS)
        for reservation in cache.expire(time.monotonic()):
            counters.expired.labels(reservation.state.value).inc()
            log.info(
                "reservation_expired",
                pod=reservation.allocation.pod,
                node=reservation.allocation.node,
                state=reservation.state.value,
            )
