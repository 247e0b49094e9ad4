"""The metrics of this package, in one table. The registry is passed in; units are in the names."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_LATENCY_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0)


class KubeMetrics:
    """What this process asks of the API server, and how that goes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "hami_kube_requests",
            "Requests to the API server; code is 0 where there was no answer.",
            ("verb", "resource", "code"),
            registry=registry,
        )
        self.request_seconds = Histogram(
            "hami_kube_request_seconds",
            "Time of a request, the wait for its turn included.",
            ("verb", "resource"),
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        )
        self.throttled = Counter(
            "hami_kube_throttled",
            "Requests that the API server answered with 429, which slow their lane down.",
            ("lane",),
            registry=registry,
        )
        self.watch_events = Counter(
            "hami_kube_watch_events",
            "Watch events received.",
            ("resource", "type"),
            registry=registry,
        )
        self.lists = Counter(
            "hami_kube_lists",
            "Complete lists made by reflectors.",
            ("resource",),
            registry=registry,
        )
        self.watch_restarts = Counter(
            "hami_kube_watch_restarts",
            "Watches begun again, by what ended the one before.",
            ("resource", "reason"),
            registry=registry,
        )
        self.malformed = Counter(
            "hami_kube_malformed_objects",
            "Objects or watch lines that could not be decoded.",
            ("resource",),
            registry=registry,
        )
        self.handler_errors = Counter(
            "hami_kube_handler_errors",
            "Objects that an informer's handler refused.",
            ("resource",),
            registry=registry,
        )
        self.events_sent = Counter(
            "hami_kube_events_sent",
            "Events written, by how: created, or counted up.",
            ("how",),
            registry=registry,
        )
        self.events_dropped = Counter(
            "hami_kube_events_dropped",
            "Events not written: queue full, object too talkative, or refused.",
            ("reason",),
            registry=registry,
        )
        self.leader_changes = Counter(
            "hami_kube_leader_changes",
            "Leaderships begun or ended by this process.",
            ("lease", "change"),
            registry=registry,
        )
