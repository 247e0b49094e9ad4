"""How the parts of the controller are made and connected.

Owns who knows whom. Starts nothing: in which order the parts run and stop is ``app``'s. No rule of
the domain stands here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry

from hami.config import ControllerSettings
from hami.controllers import api, following, leadership, server
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
from hami.controllers.resizer import Resizer
from hami.controllers.roles import RoleLabel, own_pod
from hami.controllers.simulation import Simulation
from hami.controllers.stores import Stores
from hami.controllers.succession import Succession
from hami.controllers.twins import Twins
from hami.controllers.whatif import WhatIfs
from hami.core.admission import Rules
from hami.core.cache import AllocationCache
from hami.core.placement import Placer
from hami.core.request import read_request
from hami.kube.client import KubeClient
from hami.kube.events import EventRecorder
from hami.live import Live, Reloader
from hami.loading import Loaded
from hami.site import CurrentVendors, check, node_selector, vendor_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What runs."""

    settings: ControllerSettings
    reloader: Reloader
    registry: CollectorRegistry
    counters: ControllerCounters
    cache: AllocationCache
    stores: Stores
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
    resizer: Resizer
    role: RoleLabel
    succession: Succession


def build(loaded: Loaded, client: KubeClient, registry: CollectorRegistry) -> Parts:
    """Make every part and connect them; nothing runs yet."""
    live = Live(loaded.settings)
    own, vendors = live.view(lambda now: now.controller), CurrentVendors(lambda: live.now)
    counters = ControllerCounters(registry)
    recorder = EventRecorder(client, component=own.scheduler_name or "hami")
    cache, twins = AllocationCache(), Twins(patience_seconds=own.allocate_timeout_seconds)
    stores = Stores(client)
    pods, nodes, quotas, budgets = stores.pods, stores.nodes, stores.quotas, stores.budgets
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
    resizer = Resizer(
        client,
        pods,
        cache,
        vendors=vendors,
        recorder=recorder,
        mandate=leads.mandate,
    )
    pods.add_handler(resizer.on_set, resizer.on_delete)
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

    def recall() -> None:
        pending.recall()
        nudger.review()

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
    return Parts(
        settings=own,
        reloader=Reloader(live, loaded, results=counters.reloads, check=check),
        registry=registry,
        counters=counters,
        cache=cache,
        stores=stores,
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
                silent_seconds=stores.silent_seconds(),
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
            is_synced=stores.are_synced,
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
            is_synced=stores.are_synced,
            leadership=leads,
        ),
        certificates=None if pair is None else Certificates(pair, counters=counters),
        leadership=leads,
        leftovers=leftovers,
        resizer=resizer,
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
