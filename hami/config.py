"""Typed settings: groups of fields with their defaults, validated once (see ``hami.loading``).

Every setting is a field below, documented where it stands; the reference page and the error for an
unknown key come from the same structs. Durations are seconds, sizes are bytes unless a name says
otherwise.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=1)]
Policy = Literal["binpack", "spread"]
MigProfile = Annotated[str, Meta(pattern=r"^[^.]+g\.")]
LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]


class _Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of settings; unknown keys are errors."""


class LogSettings(_Group, frozen=True, kw_only=True):
    """Structured logs on stderr."""

    level: LogLevel = "info"
    """Least severe level that is written."""
    format: LogFormat = "auto"
    """``json`` for aggregators, ``console`` for people; ``auto``: is stderr a terminal."""


class KubeSettings(_Group, frozen=True, kw_only=True):
    """How to reach the API server."""

    kubeconfig: str | None = None
    """Path of a kubeconfig; else ``$KUBECONFIG``, ``~/.kube/config``, then in-cluster."""
    context: str | None = None
    """Context of that kubeconfig; else its current one."""
    qps: Annotated[float, Meta(gt=0)] = 250.0
    """Routine requests per second this process allows itself, watches excepted."""
    burst: Count = 500
    """Routine requests it may make in a row after a pause."""
    in_flight: Count = 32
    """Routine requests that may wait for an answer at the same time."""
    urgent_qps: Annotated[float, Meta(gt=0)] = 500.0
    """Requests per second for binds, two for each pod; they wait behind no routine request."""
    urgent_burst: Count = 1000
    """Requests for binds in a row after a pause."""
    urgent_in_flight: Count = 64
    """Requests for binds that may wait for an answer at the same time."""
    request_timeout_seconds: Seconds = 15.0
    """Deadline of one request, watches excepted."""
    watch_timeout_seconds: Seconds = 300.0
    """After this long a watch is renewed even if it seems healthy."""
    watch_silence_seconds: Seconds = 90.0
    """A watch without any byte (bookmarks included) for this long is renewed."""
    watch_retry_cap_seconds: Seconds = 30.0
    """Longest wait before a list or watch that failed is tried again; early waits are shorter."""
    page_size: Count = 500
    """Objects a list asks for at a time."""


class MigProfiles(_Group, frozen=True, kw_only=True):
    """The MIG profiles that may be used on some models."""

    models: Annotated[tuple[str, ...], Meta(min_length=1)]
    """Models, as nodes register them."""
    profiles: Annotated[tuple[MigProfile, ...], Meta(min_length=1)]
    """Profiles, such as ``1g.10gb``."""


class NvidiaSettings(_Group, frozen=True, kw_only=True):
    """Resource names and defaults of NVIDIA devices, as users write them in pods."""

    count_name: str = "nvidia.com/gpu"
    """Devices per container."""
    memory_name: str = "nvidia.com/gpumem"
    """MiB on each device."""
    memory_percentage_name: str = "nvidia.com/gpumem-percentage"
    """Percent of each device's memory; not together with MiB."""
    cores_name: str = "nvidia.com/gpucores"
    """Percent of each device's compute."""
    priority_name: str = "nvidia.com/priority"
    """0 high, 1 low: who goes first on one device."""
    default_memory: Annotated[int, Meta(ge=0)] = 0
    """MiB for a request without memory; 0 is the whole device."""
    default_cores: Annotated[int, Meta(ge=0, le=100)] = 0
    """Percent for a request without cores."""
    default_count: Annotated[int, Meta(ge=0)] = 1
    """Devices for a request of memory or cores alone; 0 leaves such a pod alone."""
    memory_factor: Count = 1
    """A pod's MiB are multiplied by this."""
    runtime_class_name: str = ""
    """Written to pods that ask for devices and name none."""
    overwrite_env: bool = False
    """Hide devices from containers that ask for none (``NVIDIA_VISIBLE_DEVICES=none``)."""
    core_policy: Literal["default", "force", "disable"] = "default"
    """Passed to containers as ``GPU_CORE_UTILIZATION_POLICY`` unless ``default``."""
    mig_profiles: tuple[MigProfiles, ...] = ()
    """Which MIG profiles may be used: a list of ``{models: [...], profiles: [...]}``."""


class HygonSettings(_Group, frozen=True, kw_only=True):
    """Resource names of Hygon DCUs; an empty ``count_name`` leaves the vendor out."""

    count_name: str = "hygon.com/dcunum"
    """Devices per container."""
    memory_name: str = "hygon.com/dcumem"
    """MiB on each device; without it, all of its memory."""
    cores_name: str = "hygon.com/dcucores"
    """Percent of each device's compute; without it, all of it."""
    memory_factor: Count = 1
    """A pod's MiB are multiplied by this."""


class EnflameSettings(_Group, frozen=True, kw_only=True):
    """Resource names of Enflame GCUs; an empty ``gcu_count_name`` leaves whole cards out."""

    gcu_count_name: str = "enflame.com/gcu"
    """Whole cards per container."""


class ControllerSettings(_Group, frozen=True, kw_only=True):
    """``hami controller``."""

    host: str = "0.0.0.0"
    """Address of webhook and extender."""
    port: Port = 9443
    """Port of webhook and extender; HTTPS where a certificate is given. 0 picks a free one."""
    cert_file: str | None = None
    """TLS certificate chain (PEM), re-read when it changes; with ``key_file``."""
    key_file: str | None = None
    """TLS private key (PEM)."""
    health_host: str = "0.0.0.0"
    """Address of health and metrics."""
    health_port: Port = 9395
    """Port of ``/healthz``, ``/readyz`` and ``/metrics``, plain HTTP."""
    scheduler_name: str = "hami-scheduler"
    """The scheduler that pods with device requests are given to."""
    overwrite_default_scheduler: bool = True
    """Also take over pods that name ``default-scheduler``."""
    mode: Literal["cooperative", "exclusive"] = "cooperative"
    """``cooperative``: all feasible nodes, scored; ``exclusive``: the one best node, reserved."""
    node_policy: Policy = "binpack"
    """Node preference of pods that do not name one."""
    device_policy: str = "spread"
    """Device preference of pods that do not name one: ``binpack``, ``spread``, ``mutex``, ``numa``,
    ``topology-aware``, or several with commas between them."""
    device_config_file: str | None = None
    """HAMi's ``device-config.yaml``, if it is to be read; see docs/migrating-settings.md."""
    config_poll_seconds: Seconds = 2.0
    """How often the settings' files are looked at; a change counts once two looks agree on it."""
    hold_seconds: Seconds = 15.0
    """How long a filter's choice is held for a bind that does not come."""
    bind_timeout_seconds: Seconds = 20.0
    """Deadline of one bind; below the scheduler's own ``httpTimeout`` (30 s by default)."""
    allocate_timeout_seconds: Seconds = 60.0
    """After this long a bound pod that was not allocated no longer holds back its twins."""
    node_lock_timeout_seconds: Seconds = 300.0
    """Age at which another pod's lock on a node (vendors' own agents need it) is taken over."""
    node_label_selector: str = ""
    """Only nodes with these labels get pods with devices, such as ``pool=gpu,zone in (a,b)``."""
    max_attempts: Count = 5
    """Decisions a bind makes when others keep changing the node."""
    preemption: bool = True
    """Evict pods of lower priority for one that fits nowhere (docs/preemption.md)."""
    nudges_per_second: Annotated[float, Meta(gt=0, le=1000)] = 20.0
    """How many waiting pods are called in a second, at most, when there is room for them again."""
    handshake_seconds: Seconds = 300.0
    """How often a node's agent is asked to show that it is alive."""
    handshake_timeout_seconds: Seconds = 60.0
    """After this long without an answer, a node without allocatable devices is unhealthy."""
    legacy_metrics: bool = False
    """Also export the gauges under the names that HAMi gave them before."""
    max_body_bytes: Count = 64 * 1024 * 1024
    """Largest accepted request: an extender call with 5000 whole nodes fits."""
    max_review_bytes: Count = 7 * 1024 * 1024
    """Largest accepted AdmissionReview."""
    cert_poll_seconds: Seconds = 10.0
    """How often the certificate files are looked at."""
    sync_timeout_seconds: Seconds = 300.0
    """The informers must have synced by then."""
    leader_elect: bool = False
    """One of several controllers decides at a time; otherwise this one always does: run one."""
    lease_namespace: str = "hami-system"
    """Namespace of the Lease that the deciding controller holds."""
    lease_name: str = "hami-controller"
    """Name of that Lease."""
    lease_duration_seconds: Seconds = 15.0
    """A Lease not renewed for so long may be taken by another controller."""
    lease_renew_seconds: Seconds = 10.0
    """A controller that could not renew for so long decides nothing more; below the duration."""
    lease_retry_seconds: Seconds = 2.0
    """Time between two renewals; below that."""
    scheduler_lease_namespace: str = ""
    """Namespace of the scheduler's Lease; empty is ``lease_namespace``."""
    scheduler_lease_name: str = ""
    """Lease of the schedulers, of which each controller has one on its own host: the controller
    beside the leading one decides. Empty: there is none beside it, the own Lease alone elects."""
    identity: str = ""
    """Name in the Lease (with a random suffix), and what the scheduler beside this controller calls
    its host. Empty: the pod's name (``POD_NAME``) or the host's, and the host's."""
    orphan_seconds: Seconds = 10.0
    """After this long the record of an unbound pod that nobody is binding is taken off."""
    stop_seconds: Seconds = 25.0
    """How long a stopping process lets requests under way finish; below the pod's grace (30 s)."""


class NodeAgentSettings(_Group, frozen=True, kw_only=True):
    """``hami node-agent``."""

    node_name: str = ""
    """The node this agent serves."""
    kubelet_dir: str = "/var/lib/kubelet/device-plugins"
    """Where the kubelet's ``kubelet.sock`` and the plugins' sockets are."""
    pod_resources_socket: str = "/var/lib/kubelet/pod-resources/kubelet.sock"
    """The kubelet's pod-resources API."""
    host_dir: str = "/usr/local/vgpu"
    """Host directory of the shim and of the containers' regions."""
    split_count: Annotated[int, Meta(ge=1, le=1000)] = 10
    """How many containers may share a device."""
    memory_scaling: Annotated[float, Meta(gt=0, le=100)] = 1.0
    """Factor on the device memory that is offered."""
    core_scaling: Annotated[float, Meta(gt=0, le=100)] = 1.0
    """Factor on the device cores that are offered."""
    fallback_memory: Annotated[int, Meta(ge=0)] = 0
    """MiB of devices whose driver does not tell their memory; 0 leaves such devices out."""
    device_config_file: str | None = None
    """HAMi's ``device-config.yaml``, if it is to be read; see docs/migrating-settings.md."""
    shim_log: Literal["error", "warn", "info", "debug"] = "error"
    """Least severe level that the shim writes to a container's stderr."""
    fail_open: bool = False
    """Lift a container's limits where its limits cannot be read, instead of granting no memory."""
    health_host: str = "0.0.0.0"
    """Address of health and metrics."""
    health_port: Port = 9394
    """Port of ``/healthz``, ``/readyz`` and ``/metrics``, plain HTTP."""
    device_poll_seconds: Seconds = 15.0
    """How often the devices are looked at again."""
    driver_timeout_seconds: Seconds = 20.0
    """Deadline of one call into NVML; a driver that hangs makes its devices unhealthy."""
    health_failures: Count = 2
    """Looks in a row that a device must fail to be unhealthy; critical errors count at once."""
    health_calm_seconds: Seconds = 60.0
    """How long an unhealthy device must answer again, without an error, to be healthy."""
    health_disable_xids: str = ""
    """XIDs to ignore, comma-separated, or ``all``; ``DP_DISABLE_HEALTHCHECKS`` where empty."""
    health_enable_xids: str = ""
    """XIDs that count whatever is disabled; ``DP_ENABLE_HEALTHCHECKS`` where empty."""
    pending_pod_seconds: Seconds = 10.0
    """How long Allocate waits for the watch to show the pod it is for."""
    allocate_timeout_seconds: Seconds = 60.0
    """Deadline of one Allocate; later than that the container fails with the reason."""
    require_identity: bool = False
    """Fail containers whose owner the kubelet's pod-resources API cannot tell; else only warn."""
    kubelet_poll_seconds: Seconds = 1.0
    """How often the kubelet's and the own socket are looked at, to notice a kubelet restart."""
    kubelet_silence_seconds: Seconds = 30.0
    """Register again if the kubelet has not been listening to the devices for so long."""
    reconcile_seconds: Seconds = 30.0
    """How often regions are cleaned up and allocations compared with the kubelet's."""
    region_grace_seconds: Seconds = 600.0
    """Regions of pods that are gone are kept so long while the kubelet cannot be asked."""
    allow_disable_control: bool = False
    """Let containers opt out of enforcement with the variable ``CUDA_DISABLE_CONTROL=true``."""
    disable_core_limit: bool = False
    """Leave compute unlimited whatever pods ask for."""
    governor_seconds: Annotated[float, Meta(ge=0.01, le=5)] = 0.2
    """Time between two ticks of the governor, which paces containers; see docs/governor.md."""
    governor_sample_seconds: Annotated[float, Meta(ge=0.02, le=5)] = 0.1
    """Time between two questions to the driver about the time that processes have used: less than
    it takes to measure, for it tells of the last period only."""
    governor_memory_seconds: Seconds = 2.0
    """Time between two questions to the driver about the memory that processes hold."""
    priority_block: bool = True
    """Containers of lower priority wait while one of higher priority uses their device."""
    fair_share: bool = True
    """Containers without a core limit share a contended device by weight."""
    untracked_policy: Literal["report", "suspend"] = "report"
    """What follows when a container uses a device around the shim: an event, or that it stops."""
    untracked_limit: Annotated[int, Meta(ge=0)] = 1024
    """MiB of each process, beyond its context, that the shim need not have seen."""


class Settings(_Group, frozen=True, kw_only=True):
    """All settings."""

    log: LogSettings = LogSettings()
    kube: KubeSettings = KubeSettings()
    nvidia: NvidiaSettings = NvidiaSettings()
    hygon: HygonSettings = HygonSettings()
    enflame: EnflameSettings = EnflameSettings()
    controller: ControllerSettings = ControllerSettings()
    node_agent: NodeAgentSettings = NodeAgentSettings()


def describe() -> list[tuple[str, str, str, str]]:
    """Every setting as (dotted path, type, default, meaning), in the order of the groups above."""
    return [
        (f"{group.name}.{field.name}", _type_name(field.type), repr(field.default), meaning)
        for group in msgspec.structs.fields(Settings)
        for field, meaning in zip(
            msgspec.structs.fields(group.type), _meanings(group.type), strict=True
        )
    ]


def _meanings(group: type) -> list[str]:
    """The text under each field of a group, in order."""
    body = ast.parse(textwrap.dedent(inspect.getsource(group))).body[0]
    assert isinstance(body, ast.ClassDef)
    return [
        " ".join(ast.literal_eval(text.value).split())
        for field, text in itertools.pairwise(body.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    ]


def _type_name(annotation: Any) -> str:  # noqa: ANN401 - a type expression has no narrower type
    args = get_args(annotation)
    if args and isinstance(args[-1], Meta):
        return _type_name(args[0])
    if get_origin(annotation) is Literal:
        return " | ".join(args)
    return getattr(annotation, "__name__", str(annotation)).replace("typing.", "")
