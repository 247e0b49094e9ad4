"""The table of this project's own metrics: one row each, with name, kind, labels and help.

Rows are data; ``counter`` and ``histogram`` make the live metric in the registry that is passed in,
gauges are read at each scrape by the exporters. Units are in the names. (``hami.kube`` keeps the
rows about the API server itself, ``hami.gauges`` those about devices, containers and quotas.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = Histogram.DEFAULT_BUCKETS


# -- node agent: what it did -------------------------------------------------------------------

ALLOCATIONS: Final = Metric(
    name="hami_agent_allocations",
    kind="counter",
    help="Containers the kubelet asked devices for, by result.",
    labels=("result",),
)
ALLOCATE_SECONDS: Final = Metric(
    name="hami_agent_allocate_seconds",
    kind="histogram",
    help="Time of one Allocate call, the wait for its pod included.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0),
)
IDENTITY_CHECKS: Final = Metric(
    name="hami_agent_identity_checks",
    kind="counter",
    help="Checks of which container holds devices: confirmed, repaired, refused, unconfirmed; or "
    "mismatched, where a look by the clock met a container with other devices than prepared.",
    labels=("result",),
)
KUBELET_REGISTRATIONS: Final = Metric(
    name="hami_agent_kubelet_registrations",
    kind="counter",
    help="Registrations with the kubelet, by result.",
    labels=("result",),
)
REGISTER_WRITES: Final = Metric(
    name="hami_agent_node_writes",
    kind="counter",
    help="Writes to the Node object, by what was written.",
    labels=("what",),
)
MALFORMED_PODS: Final = Metric(
    name="hami_agent_malformed_pods",
    kind="counter",
    help="Pods whose allocation annotations could not be read.",
)
MALFORMED_REGIONS: Final = Metric(
    name="hami_agent_malformed_regions",
    kind="counter",
    help="Region files that were truncated, foreign or of another version.",
)
REGIONS_REMOVED: Final = Metric(
    name="hami_agent_regions_removed",
    kind="counter",
    help="Region directories removed after their pods were over or gone.",
)
DEVICES: Final = Metric(
    name="hami_agent_devices",
    kind="gauge",
    help="Devices of this node, by health.",
    labels=("health",),
)

# -- node agent: what it measures ----------------------------------------------------------------

_HOST: Final = ("node", "device_index", "device_uuid", "device_type")
_CONTAINER: Final = ("namespace", "pod", "container", "vdevice_index", "device_uuid")

HOST_MEMORY: Final = Metric(
    name="hami_host_gpu_memory_used_bytes",
    kind="gauge",
    help="Device memory in use on the host, by everybody.",
    labels=_HOST,
)
HOST_UTILIZATION: Final = Metric(
    name="hami_host_gpu_utilization_ratio",
    kind="gauge",
    help="Device utilisation in percent, 0 to 100 (the name is a compatible one).",
    labels=_HOST,
)
HOST_MEMORY_UTILIZATION: Final = Metric(
    name="hami_host_gpu_memory_controller_utilization_ratio",
    kind="gauge",
    help="Utilisation of the device's memory controller in percent, 0 to 100.",
    labels=_HOST,
)
CONTAINER_MEMORY: Final = Metric(
    name="hami_vgpu_memory_used_bytes",
    kind="gauge",
    help="Device memory that a container uses.",
    labels=_CONTAINER,
)
CONTAINER_LIMIT: Final = Metric(
    name="hami_vgpu_memory_limit_bytes",
    kind="gauge",
    help="Device memory that a container may use.",
    labels=_CONTAINER,
)
CONTAINER_ENFORCEMENT: Final = Metric(
    name="hami_container_enforcement",
    kind="gauge",
    help="1 for the backend that enforces a container's limits (docs/enforcement.md).",
    labels=("namespace", "pod", "container", "backend"),
)
CONTAINER_MEMORY_OLD: Final = Metric(
    name="hami_container_device_memory_bytes",
    kind="gauge",
    help="The value of hami_vgpu_memory_used_bytes under its older name.",
    labels=_CONTAINER,
)
CONTAINER_UTILIZATION: Final = Metric(
    name="hami_container_device_utilization_ratio",
    kind="gauge",
    help="Percent of the device's time that the container used of late, as the driver measured.",
    labels=_CONTAINER,
)
CONTAINER_CORE_LIMIT: Final = Metric(
    name="hami_container_core_limit_percent",
    kind="gauge",
    help="Percent of the device's time that the container was promised; absent: no limit.",
    labels=_CONTAINER,
)
CONTAINER_CORE_SHARE: Final = Metric(
    name="hami_container_core_share_percent",
    kind="gauge",
    help="Percent of the device's time that the container is held to now; absent: not paced.",
    labels=_CONTAINER,
)
CONTAINER_THROTTLED: Final = Metric(
    name="hami_container_core_throttled_seconds",
    kind="counter",
    help="Time that the container's threads have waited for device time, added up, as they say.",
    labels=_CONTAINER,
)
CONTAINER_UNTRACKED: Final = Metric(
    name="hami_container_untracked_memory_bytes",
    kind="gauge",
    help="Device memory that the driver lays to the container and no hook has seen.",
    labels=_CONTAINER,
)
CONTAINER_CORE_MODE: Final = Metric(
    name="hami_container_core_mode",
    kind="gauge",
    help="1 for what the container's submissions do: off (pass), limit (paced), block (a higher "
    "priority works), hold (stopped now and then: pacing is not enough), suspend.",
    labels=(*_CONTAINER, "mode"),
)
GOVERNOR_TICKS: Final = Metric(
    name="hami_agent_governor_ticks", kind="counter", help="Ticks of the governor."
)
GOVERNOR_SECONDS: Final = Metric(
    name="hami_agent_governor_tick_seconds",
    kind="counter",
    help="Time that the governor's ticks have taken, added up.",
)
GOVERNOR_DRIVER_ERRORS: Final = Metric(
    name="hami_agent_use_errors",
    kind="counter",
    help="Times that the driver did not tell the use of a device, or did not answer.",
)
GOVERNOR_REGION_ERRORS: Final = Metric(
    name="hami_agent_region_errors",
    kind="counter",
    help="Times that the governor could not read or write a container's region.",
)
SUSPICIONS: Final = Metric(
    name="hami_agent_suspicions",
    kind="counter",
    help="Containers that use a device around the shim: stranger (a process without a slot), "
    "memory (more than was seen), pace (time beyond the limit, whatever is granted).",
    labels=("reason",),
)

# -- controller: what it did -------------------------------------------------------------------

EXTENDER_SECONDS: Final = Metric(
    name="hami_extender_seconds",
    kind="histogram",
    help="Time of a request to the controller, by what was asked and how it ended.",
    labels=("verb", "result"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
ADMISSIONS: Final = Metric(
    name="hami_admissions",
    kind="counter",
    help="Pods reviewed at admission: patched, unchanged, denied or malformed.",
    labels=("result",),
)
BINDS: Final = Metric(
    name="hami_bind",
    kind="counter",
    help="Binds asked for: bound, repeated, unfit, gone, busy, conflicted, deposed or failed.",
    labels=("result",),
)
BIND_CONFLICTS: Final = Metric(
    name="hami_bind_conflicts",
    kind="counter",
    help="Decisions of a bind that were made again because pod or node had changed.",
)
TWIN_SECONDS: Final = Metric(
    name="hami_bind_twin_wait_seconds",
    kind="histogram",
    help="Time a bind waited for pods on its node that the kubelet could not tell from its own.",
    buckets=(0.001, 0.01, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0),
)
WATCH_SECONDS: Final = Metric(
    name="hami_bind_watch_seconds",
    kind="histogram",
    help="Time from the answer to a Binding until the watch showed it.",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
EXPIRED: Final = Metric(
    name="hami_reservations_expired",
    kind="counter",
    help="Reservations that nobody came back for, by their state.",
    labels=("state",),
)
NUDGES: Final = Metric(
    name="hami_nudges",
    kind="counter",
    help="Waiting pods called because there is room for them again: sent, gone or failed.",
    labels=("result",),
)
PREEMPTIONS: Final = Metric(
    name="hami_preemptions",
    kind="counter",
    help="Looks for pods that could make room for a more important one, by result: evicted, "
    "awaited (enough are ending), none, budget (one forbids it), stale, failed, or expired (the "
    "pod did not come for what was held).",
    labels=("result",),
)
PREEMPTION_VICTIMS: Final = Metric(
    name="hami_preemption_victims",
    kind="counter",
    help="Pods evicted for more important ones.",
)
MALFORMED_ANNOTATIONS: Final = Metric(
    name="hami_malformed_annotations",
    kind="counter",
    help="Pods and nodes whose annotations, and quotas whose keys, could not be read.",
    labels=("kind",),
)
ORPHANS: Final = Metric(
    name="hami_orphaned_records",
    kind="counter",
    help="Records taken off unbound pods: fenced (another reign's, at the beginning of this one), "
    "or tidied later.",
    labels=("how",),
)
HANDSHAKES: Final = Metric(
    name="hami_handshakes",
    kind="counter",
    help="Handshakes with node agents: asked, answered, conflicted or failed.",
    labels=("result",),
)
NODE_LOCKS: Final = Metric(
    name="hami_node_locks",
    kind="counter",
    help="Locks on nodes: taken, taken over, conflicted, released, cleaned or failed.",
    labels=("result",),
)
CERTIFICATE_LOADS: Final = Metric(
    name="hami_certificate_loads",
    kind="counter",
    help="Times the TLS certificate was read again after a change, by result.",
    labels=("result",),
)

CONFIG_RELOADS: Final = Metric(
    name="hami_config_reloads",
    kind="counter",
    help="Changed files of settings: applied, partly (the rest needs a restart) or refused.",
    labels=("result",),
)

# -- controller: what it sees --------------------------------------------------------------------

CACHE_GENERATION: Final = Metric(
    name="hami_cache_generation",
    kind="gauge",
    help="Changes of the allocation cache so far.",
)
RESERVATIONS: Final = Metric(
    name="hami_reservations",
    kind="gauge",
    help="Pods that hold devices, by how sure that is.",
    labels=("state",),
)
UNKNOWN_DEVICES: Final = Metric(
    name="hami_unknown_devices",
    kind="gauge",
    help="Devices that pods hold on a node that does not register them (any more).",
    labels=("node",),
)
INFORMER_AGE: Final = Metric(
    name="hami_informer_silent_seconds",
    kind="gauge",
    help="Time since the API server was last heard about a resource.",
    labels=("resource",),
)
CACHE_LAG: Final = Metric(
    name="hami_cache_lag_seconds",
    kind="gauge",
    help="Age of the oldest bind of this controller that the watch has not shown yet; 0 for none.",
)
UNSEEN_BINDS: Final = Metric(
    name="hami_cache_unseen_binds",
    kind="gauge",
    help="Binds of this controller that the watch has not shown yet.",
)
QUEUES: Final = Metric(
    name="hami_queue_length",
    kind="gauge",
    help="What waits: binds under way, twins (binds that wait for pods which the kubelet could not "
    "tell from theirs), flights (pods bound and not allocated yet, twins included), requests (to "
    "the API server, for their turn), events (to be sent), pending (pods without a node).",
    labels=("queue",),
)
LEADER: Final = Metric(
    name="hami_leader",
    kind="gauge",
    help="Whether this controller is the one that decides.",
    labels=("identity",),
)
LEADER_TERM: Final = Metric(
    name="hami_leader_term",
    kind="gauge",
    help="Term of this controller's present reign, or of its last.",
)

TABLE: Final = (
    ALLOCATIONS,
    ALLOCATE_SECONDS,
    IDENTITY_CHECKS,
    KUBELET_REGISTRATIONS,
    REGISTER_WRITES,
    MALFORMED_PODS,
    MALFORMED_REGIONS,
    REGIONS_REMOVED,
    DEVICES,
    HOST_MEMORY,
    HOST_UTILIZATION,
    HOST_MEMORY_UTILIZATION,
    CONTAINER_MEMORY,
    CONTAINER_LIMIT,
    CONTAINER_MEMORY_OLD,
    CONTAINER_ENFORCEMENT,
    CONTAINER_UTILIZATION,
    CONTAINER_CORE_LIMIT,
    CONTAINER_CORE_SHARE,
    CONTAINER_THROTTLED,
    CONTAINER_UNTRACKED,
    CONTAINER_CORE_MODE,
    GOVERNOR_TICKS,
    GOVERNOR_SECONDS,
    GOVERNOR_DRIVER_ERRORS,
    GOVERNOR_REGION_ERRORS,
    SUSPICIONS,
    EXTENDER_SECONDS,
    ADMISSIONS,
    BINDS,
    BIND_CONFLICTS,
    TWIN_SECONDS,
    WATCH_SECONDS,
    EXPIRED,
    NUDGES,
    PREEMPTIONS,
    PREEMPTION_VICTIMS,
    MALFORMED_ANNOTATIONS,
    ORPHANS,
    HANDSHAKES,
    NODE_LOCKS,
    CERTIFICATE_LOADS,
    CONFIG_RELOADS,
    CACHE_GENERATION,
    RESERVATIONS,
    UNKNOWN_DEVICES,
    INFORMER_AGE,
    CACHE_LAG,
    UNSEEN_BINDS,
    QUEUES,
    LEADER,
    LEADER_TERM,
)
"""Every row of this table."""


def counter(row: Metric, registry: CollectorRegistry) -> Counter:
    """The row as a live counter; Prometheus appends ``_total`` to its name."""
    return Counter(row.name, row.help, row.labels, registry=registry)


def histogram(row: Metric, registry: CollectorRegistry) -> Histogram:
    """The row as a live histogram."""
    return Histogram(row.name, row.help, row.labels, registry=registry, buckets=row.buckets)
