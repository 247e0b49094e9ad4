"""The controller process: everything it is made of, in the order in which it starts.

Nested groups give the order of stopping, the reverse: take no more requests and finish those under
way, stop watching, send the last Events, close. A part that dies takes the process down with it.
This is wiring; no rule of the domain stands here.
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
import msgspec
from anyio.abc import TaskGroup, TaskStatus
from prometheus_client import CollectorRegistry, ProcessCollector

from hami import __version__, crashpoints, health
from hami.config import ControllerSettings, Settings
from hami.controllers import api, following, leadership, server
from hami.controllers import binder as binding
from hami.controllers import extender as extending
from hami.controllers import outcomes as undoing
from hami.controllers.binder import Binder
from hami.controllers.certificates import Certificates, pair_of
from hami.controllers.counters import ControllerCounters
from hami.controllers.echoes import Echoes
from hami.controllers.explain import Explainer
from hami.controllers.exporter import Exporter, LeadershipExporter, Watched
from hami.controllers.extender import Extender
from hami.controllers.gangs import Gangs
from hami.controllers.handlers import NodeHandler, PodHandler
from hami.controllers.handshake import Handshake
from hami.controllers.leftovers import Leftovers
from hami.controllers.nodelocks import NodeLocks
from hami.controllers.nominations import Nominations
from hami.controllers.nudger import Nudger
from hami.controllers.occupants import Occupants
from hami.controllers.outcomes import Outcomes
from hami.controllers.pending import PREEMPTION, PendingPods
from hami.controllers.podwriter import PodWriter
from hami.controllers.preemptor import Preemptor
from hami.controllers.preemptverb import PreemptVerb
from hami.controllers.quotahandler import QuotaHandler
from hami.controllers.roles import RoleLabel, own_pod
from hami.controllers.simulation import Simulation
from hami.controllers.succession import Succession
from hami.controllers.twins import Twins
from hami.controllers.whatif import WhatIfs
from hami.core.admission import Rules
from hami.core.cache import AllocationCache
from hami.core.objects import Node, Pod, PodDisruptionBudget, ResourceQuota
from hami.core.placement import Placer
from hami.core.request import read_request
from hami.errors import UnavailableError
from hami.kube.client import KubeClient, connect
from hami.kube.events import EventRecorder
from hami.kube.informer import Informer
from hami.kube.metrics import KubeMetrics
from hami.kube.reflector import Reflector
from hami.kube.resources import NODES, POD_DISRUPTION_BUDGETS, PODS, RESOURCE_QUOTAS
from hami.live import Live, Reloader, tell
from hami.loading import Loaded
from hami.logs import get_logger
from hami.site import CurrentVendors, check, node_selector, vendor_table

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
    crashpoints.arm(os.environ.get(crashpoints.ENV), known=CRASH_POINTS)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    loaded = start if isinstance(start, Loaded) else Loaded(settings=start)
    async with connect(loaded.settings.kube, metrics=KubeMetrics(registry)) as client:
        parts = _build(loaded, client, registry)
        log.info("controller_started", version=__version__, mode=parts.settings.mode)
        tell(loaded.notes)
        await _run(parts, task_status)
    log.info("controller_stopped")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What runs."""

    settings: ControllerSettings
    reloader: Reloader
    registry: CollectorRegistry
    counters: ControllerCounters
    cache: AllocationCache
    pods: Informer[Pod]
    nodes: Informer[Node]
    quotas: Informer[ResourceQuota]
    budgets: Informer[PodDisruptionBudget]
    recorder: EventRecorder
    outcomes: Outcomes
    handshake: Handshake
    locks: NodeLocks
    exporter: Exporter
    nudger: Nudger
    preemptor: Preemptor
    inquiry: api.Inquiry
    services: server.Services
    certificates: Certificates | None
    leadership: leadership.Leadership
    leftovers: Leftovers
    role: RoleLabel
    succession: Succession


def _build(loaded: Loaded, client: KubeClient, registry: CollectorRegistry) -> _Parts:
    """Make every part and connect them; nothing runs yet."""
    live = Live(loaded.settings)
    own, vendors = live.view(lambda now: now.controller), CurrentVendors(lambda: live.now)
    counters = ControllerCounters(registry)
    recorder = EventRecorder(client, component=own.scheduler_name or "hami")
    cache, twins = AllocationCache(), Twins(patience_seconds=own.allocate_timeout_seconds)
    pods = Informer(Reflector(client, PODS, decode=msgspec.json.Decoder(Pod).decode))
    nodes = Informer(Reflector(client, NODES, decode=msgspec.json.Decoder(Node).decode))
    quotas = Informer(
        Reflector(client, RESOURCE_QUOTAS, decode=msgspec.json.Decoder(ResourceQuota).decode)
    )
    budgets = Informer(
        Reflector(
            client,
            POD_DISRUPTION_BUDGETS,
            decode=msgspec.json.Decoder(PodDisruptionBudget).decode,
        )
    )
    pod_handler = PodHandler(cache, twins, vendors=vendors, recorder=recorder, counters=counters)
    node_handler = NodeHandler(
        cache,
        vendors=vendors,
        recorder=recorder,
        counters=counters,
        selector=live.view(node_selector),
    )
    quota_handler = QuotaHandler(
        cache.quotas, vendors=vendors, recorder=recorder, counters=counters
    )
    pods.add_handler(pod_handler.on_set, pod_handler.on_delete)
    nodes.add_handler(node_handler.on_set, node_handler.on_delete)
    quotas.add_handler(quota_handler.on_set, quota_handler.on_delete)
    occupants = Occupants(cache, counters=counters)
    pods.add_handler(occupants.on_pod_set, occupants.on_pod_delete)
    budgets.add_handler(occupants.on_budget_set, occupants.on_budget_delete)
    placer, leads = Placer(cache.table), leadership.make(own, client)
    defaults = live.view(following.defaults_of)
    echoes = Echoes(pods, counters.watch_seconds)
    writer = PodWriter(client, vendors=vendors, on_bound=echoes.wrote)
    locks = NodeLocks(
        client,
        nodes,
        pods,
        vendors=vendors,
        settings=own,
        counters=counters,
        guard=leads.require,
    )
    pending = PendingPods(
        cache.table,
        placer,
        vendors=vendors,
        defaults=defaults,
        settings=own,
        recorder=recorder,
    )
    pods.add_handler(pending.on_set, pending.on_delete)
    outcomes = Outcomes(writer, pods, cache=cache, twins=twins, vendors=vendors, settings=own)
    binder = Binder(
        writer,
        pods,
        cache=cache,
        placer=placer,
        twins=twins,
        locks=locks,
        outcomes=outcomes,
        vendors=vendors,
        defaults=defaults,
        settings=own,
        recorder=recorder,
        counters=counters,
        leadership=leads,
        on_failure=pending.bind_failed,
    )
    leftovers = Leftovers(
        client,
        pods,
        writer=writer,
        vendors=vendors,
        settings=own,
        counters=counters,
        is_binding=binder.is_binding,
    )
    pods.add_handler(leftovers.on_set, leftovers.on_delete)
    role = RoleLabel(client, own_pod(os.environ), leads)
    LeadershipExporter(leads, registry)
    gangs = Gangs(cache, placer, read=lambda pod: read_request(pod, vendors, defaults))
    pods.add_handler(gangs.on_set, gangs.on_delete)
    nudger = Nudger(
        client,
        cache,
        placer,
        pending,
        gangs,
        pods,
        settings=own,
        counters=counters,
        require_leadership=leads.require,
    )
    cache.on_room, cache.quotas.on_room = nudger.room_on, nudger.room_in
    gangs.on_held = nudger.place_for
    nominations = Nominations(
        cache,
        on_ready=nudger.place_for,
        last_seconds=lambda: own.hold_seconds,
        on_lost=lambda uid: pending.note(uid, PREEMPTION, ""),
    )
    pods.add_handler(nominations.on_set, nominations.on_delete)
    preemptor = Preemptor(
        client,
        pods,
        cache,
        placer,
        pending,
        occupants=occupants,
        nominations=nominations,
        settings=own,
        recorder=recorder,
        counters=counters,
        mandate=leads.mandate,
    )
    pending.on_refused = preemptor.consider
    extender = Extender(
        cache,
        placer,
        vendors=vendors,
        defaults=defaults,
        settings=own,
        pending=pending,
        gangs=gangs,
        twins=twins,
        nominations=nominations,
        is_binding=binder.is_binding,
    )
    rules = live.view(
        lambda now: Rules(
            vendors=vendors,
            defaults=defaults,
            scheduler_name=now.controller.scheduler_name,
            overwrite_default_scheduler=now.controller.overwrite_default_scheduler,
            lack=cache.lack,
        )
    )
    live.on_change += (
        partial(following.tell_parts, client, twins),
        partial(following.reread, nodes, node_handler.on_set, following.meaning_of_nodes),
        partial(following.reread, quotas, quota_handler.on_set, vendor_table),
        partial(following.reread, pods, pending.on_set, following.meaning_of_pods),
    )
    pair = pair_of(own)

    def recall() -> None:
        pending.recall()
        nudger.review()

    def is_synced() -> bool:
        return all(each.synced for each in (nodes, quotas, budgets, pods))

    return _Parts(
        settings=own,
        reloader=Reloader(live, loaded, results=counters.reloads, check=check),
        registry=registry,
        counters=counters,
        cache=cache,
        pods=pods,
        nodes=nodes,
        quotas=quotas,
        budgets=budgets,
        recorder=recorder,
        outcomes=outcomes,
        handshake=Handshake(
            client,
            nodes,
            handler=node_handler,
            vendors=vendors,
            settings=own,
            counters=counters,
            guard=leads.require,
        ),
        locks=locks,
        exporter=Exporter(
            cache,
            Watched(
                silent_seconds={
                    "pods": lambda: pods.last_event_age,
                    "nodes": lambda: nodes.last_event_age,
                    "resourcequotas": lambda: quotas.last_event_age,
                    "poddisruptionbudgets": lambda: budgets.last_event_age,
                },
                queues={
                    "binds": lambda: binder.under_way,
                    "twins": lambda: twins.waiting,
                    "flights": lambda: len(twins),
                    "requests": lambda: client.waiting,
                    "events": lambda: recorder.waiting,
                    "pending": lambda: len(pending),
                },
                echoes=echoes,
            ),
            vendors=vendors,
            legacy=own.legacy_metrics,
            registry=registry,
        ),
        nudger=nudger,
        preemptor=preemptor,
        inquiry=api.Inquiry(
            explainer=Explainer(pods, cache, pending),
            what_ifs=WhatIfs(cache, nodes, rules=rules),
            is_synced=is_synced,
            counters=counters,
        ),
        services=server.Services(
            extender=extender,
            simulation=Simulation(cache, placer, vendors=vendors, defaults=defaults),
            preempt=PreemptVerb(cache, occupants, nominations, vendors=vendors, defaults=defaults),
            binder=binder,
            rules=rules,
            settings=own,
            counters=counters,
            is_synced=is_synced,
            leadership=leads,
        ),
        certificates=None if pair is None else Certificates(pair, counters=counters),
        leadership=leads,
        leftovers=leftovers,
        role=role,
        succession=Succession(
            cache,
            pods,
            leadership=leads,
            leftovers=leftovers,
            outcomes=outcomes,
            role=role,
            forget=nominations.clear,
            recall=recall,
        ),
    )


async def _run(parts: _Parts, task_status: TaskStatus[Ports]) -> None:
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
                watching.cancel_scope.cancel()
            speaking.cancel_scope.cancel()
        observed.cancel_scope.cancel()


async def _serve_health(
    parts: _Parts,
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


async def _sync(parts: _Parts, group: TaskGroup) -> None:
    """Fill the stores, pods last so that they find their devices.

    Raises:
        UnavailableError: Not within the deadline.
    """
    started, seconds = time.monotonic(), parts.settings.sync_timeout_seconds
    try:
        with anyio.fail_after(seconds):
            await group.start(parts.nodes.run, name="nodes")
            await group.start(parts.quotas.run, name="quotas")
            await group.start(parts.budgets.run, name="budgets")
            await group.start(parts.pods.run, name="pods")
    except TimeoutError as error:
        raise UnavailableError(
            f"no complete list of nodes, quotas, budgets and pods within {seconds:g} s"
        ) from error
    gc.collect()
    gc.freeze()  # what was read at start stays: no collection need look at it again
    log.info(
        "controller_synced",
        nodes=len(parts.nodes.list()),
        pods=len(parts.pods.list()),
        reservations=len(parts.cache),
        seconds=round(time.monotonic() - started, 3),
    )


async def _begin_to_lead(parts: _Parts, group: TaskGroup) -> None:
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
