"""A pod's status, from what its containers are doing. Pure.

The rules (phase, conditions, reasons) are the kubelet's; the phase is decided anew from the
containers every time, never remembered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hami.sandbox.kubelet.environment import ADDRESS
from hami.sandbox.kubelet.objects import Container, Pod, PodSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Not running yet, or not again yet."""

    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Its first process runs."""

    started_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminated:
    """It ended, or could not be run."""

    exit_code: int
    reason: str
    finished_at: str
    started_at: str | None = None
    signal: int = 0
    message: str = ""
    container_id: str = ""


State = Waiting | Running | Terminated


@dataclass(slots=True, kw_only=True)
class Record:
    """One container of a pod: how it is, how it was before, how often it was started again."""

    spec: Container
    state: State
    last: Terminated | None = None
    restarts: int = 0
    container_id: str = ""

    @property
    def has_run(self) -> bool:
        """Whether it ended at least once."""
        return isinstance(self.state, Terminated) or self.last is not None


@dataclass(slots=True, kw_only=True)
class Records:
    """All containers of a pod."""

    init: list[Record] = field(default_factory=list)
    main: list[Record] = field(default_factory=list)

    def all(self) -> list[Record]:
        """In the order of the spec."""
        return [*self.init, *self.main]


CREATING: Final = Waiting(reason="ContainerCreating")
INITIALIZING: Final = Waiting(reason="PodInitializing")


def new_records(spec: PodSpec) -> Records:
    """Nothing has been started."""
    waiting = INITIALIZING if spec.init_containers else CREATING
    return Records(
        init=[Record(spec=each, state=waiting) for each in spec.init_containers or ()],
        main=[Record(spec=each, state=waiting) for each in spec.containers or ()],
    )


def phase(records: Records, *, over: bool) -> str:
    """How far the pod has come.

    Args:
        records: Its containers.
        over: Whether no process of it is left and none will come. Only then is a pod said to have
            succeeded or failed: others take its devices when they read that.
    """
    if over:
        return "Succeeded" if all(_succeeded(record) for record in records.main) else "Failed"
    if not initialized(records) and not any(_was_started(record) for record in records.main):
        return "Pending"
    if any(isinstance(each.state, Waiting) and each.last is None for each in records.main):
        return "Pending"
    return "Running"


def initialized(records: Records) -> bool:
    """Whether every init container has done its part."""
    return all(
        isinstance(record.state, Running) or record.last is not None
        if record.spec.is_sidecar
        else _succeeded(record)
        for record in records.init
    )


def _succeeded(record: Record) -> bool:
    return isinstance(record.state, Terminated) and record.state.exit_code == 0


def _was_started(record: Record) -> bool:
    return isinstance(record.state, Running) or record.has_run


def pod_status(
    pod: Pod, records: Records, *, over: bool, now: str, before: Mapping[str, Any]
) -> dict[str, Any]:
    """The status to report.

    Args:
        pod: Whose.
        records: Its containers.
        over: Whether nothing will be started any more.
        now: The time, for conditions that change.
        before: The status reported before, for those that do not.
    """
    ended = pod.finished  # by another's hand: that stands, with its reason
    reached = pod.status.phase if ended else phase(records, over=over)
    return {
        "phase": reached,
        "reason": pod.status.reason if ended else None,
        "message": pod.status.message if ended else None,
        "startTime": before.get("startTime") or pod.status.start_time or now,
        "hostIP": ADDRESS,
        "hostIPs": [{"ip": ADDRESS}],
        "podIP": ADDRESS,
        "podIPs": [{"ip": ADDRESS}],
        "qosClass": pod.status.qos_class or qos_class(pod.spec),
        "conditions": _conditions(pod, records, reached, now, before.get("conditions") or ()),
        "initContainerStatuses": [
            _container_status(each, ready=_is_ready_init(each)) for each in records.init
        ]
        or None,
        "containerStatuses": [
            _container_status(each, ready=isinstance(each.state, Running)) for each in records.main
        ],
    }


def rejection(pod: Pod, *, reason: str, message: str, now: str) -> dict[str, Any]:
    """The status of a pod that was not admitted."""
    return {
        "phase": "Failed",
        "reason": reason,
        "message": f"Pod was rejected: {message}",
        "startTime": pod.status.start_time or now,
        "qosClass": pod.status.qos_class or qos_class(pod.spec),
    }


def qos_class(spec: PodSpec) -> str:
    """How the pod would fare under pressure, from its cpu and memory requests."""
    kinds = ("cpu", "memory")
    containers = [*(spec.init_containers or ()), *(spec.containers or ())]
    asked = [each for each in containers if any(kind in each.requests for kind in kinds)]
    if not asked:
        return "BestEffort"
    guaranteed = all(
        kind in each.limits and str(each.requests[kind]) == str(each.limits[kind])
        for each in containers
        for kind in kinds
    )
    return "Guaranteed" if guaranteed else "Burstable"


def _conditions(
    pod: Pod, records: Records, reached: str, now: str, before: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    unready = [each.spec.name for each in records.main if not isinstance(each.state, Running)]
    uninitialized = [each.spec.name for each in records.init if not _is_ready_init(each)]
    done = reached == "Succeeded"
    ready: tuple[bool, str, str] = (True, "", "")
    if done:
        ready = (False, "PodCompleted", "")
    elif unready:
        names = " ".join(unready)
        ready = (False, "ContainersNotReady", f"containers with unready status: [{names}]")
    init: tuple[bool, str, str] = (True, "PodCompleted" if done else "", "")
    if not done and not initialized(records):
        names = " ".join(uninitialized)
        init = (
            False, "ContainersNotInitialized", f"containers with incomplete status: [{names}]"
        )  # fmt: skip
    wanted = {
        "PodReadyToStartContainers": (reached in {"Pending", "Running"}, "", ""),
        "Initialized": init,
        "Ready": ready,
        "ContainersReady": ready,
        "PodScheduled": (True, "", ""),
    }
    since = {
        (each.type, each.status): each.last_transition_time for each in pod.status.conditions or ()
    } | {(each["type"], each["status"]): each["lastTransitionTime"] for each in before}
    return [
        {
            "type": kind,
            "status": (status := str(holds)),
            "reason": reason or None,
            "message": message or None,
            "lastTransitionTime": since.get((kind, status)) or now,
        }
        for kind, (holds, reason, message) in wanted.items()
    ]


def _is_ready_init(record: Record) -> bool:
    return isinstance(record.state, Running) if record.spec.is_sidecar else _succeeded(record)


def _container_status(record: Record, *, ready: bool) -> dict[str, Any]:
    return {
        "name": record.spec.name,
        "image": record.spec.image,
        "imageID": "",
        "containerID": record.container_id or None,
        "ready": ready,
        "started": isinstance(record.state, Running),
        "restartCount": record.restarts,
        "state": _state(record.state),
        "lastState": _state(record.last) if record.last else {},
    }


def _state(state: State) -> dict[str, Any]:
    match state:
        case Waiting():
            return {"waiting": _present(reason=state.reason, message=state.message)}
        case Running():
            return {"running": {"startedAt": state.started_at}}
        case Terminated():
            return {
                "terminated": {"exitCode": state.exit_code}
                | _present(
                    signal=state.signal,
                    reason=state.reason,
                    message=state.message,
                    startedAt=state.started_at,
                    finishedAt=state.finished_at,
                    containerID=state.container_id,
                )
            }


def _present(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value}
