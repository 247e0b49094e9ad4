"""The controller's live counters, made from the table in ``hami.metrics``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from hami import metrics


class ControllerCounters:
    """What the controller did; one for each process, passed to whoever counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = metrics.histogram(metrics.EXTENDER_SECONDS, registry)
        self.admissions = metrics.counter(metrics.ADMISSIONS, registry)
        self.binds = metrics.counter(metrics.BINDS, registry)
        self.conflicts = metrics.counter(metrics.BIND_CONFLICTS, registry)
        self.twin_seconds = metrics.histogram(metrics.TWIN_SECONDS, registry)
        self.watch_seconds = metrics.histogram(metrics.WATCH_SECONDS, registry)
        self.expired = metrics.counter(metrics.EXPIRED, registry)
        self.nudges = metrics.counter(metrics.NUDGES, registry)
        self.preemptions = metrics.counter(metrics.PREEMPTIONS, registry)
        self.victims = metrics.counter(metrics.PREEMPTION_VICTIMS, registry)
        self.malformed = metrics.counter(metrics.MALFORMED_ANNOTATIONS, registry)
        self.orphans = metrics.counter(metrics.ORPHANS, registry)
        self.handshakes = metrics.counter(metrics.HANDSHAKES, registry)
        self.node_locks = metrics.counter(metrics.NODE_LOCKS, registry)
        self.certificates = metrics.counter(metrics.CERTIFICATE_LOADS, registry)
        self.reloads = metrics.counter(metrics.CONFIG_RELOADS, registry)
