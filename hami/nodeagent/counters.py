"""The node agent's live counters, made from the table's rows in the registry that is passed in."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from hami import metrics


class AgentMetrics:
    """What this agent did."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.allocations = metrics.counter(metrics.ALLOCATIONS, registry)
        self.allocate_seconds = metrics.histogram(metrics.ALLOCATE_SECONDS, registry)
        self.identity_checks = metrics.counter(metrics.IDENTITY_CHECKS, registry)
        self.kubelet_registrations = metrics.counter(metrics.KUBELET_REGISTRATIONS, registry)
        self.node_writes = metrics.counter(metrics.REGISTER_WRITES, registry)
        self.malformed_pods = metrics.counter(metrics.MALFORMED_PODS, registry)
        self.malformed_regions = metrics.counter(metrics.MALFORMED_REGIONS, registry)
        self.regions_removed = metrics.counter(metrics.REGIONS_REMOVED, registry)
