"""READY, STATUS and RESTARTS of a pod, as ``kubectl get pods`` shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from hami.sandbox.apiserver.records import Object
from hami.sandbox.apiserver.timetext import ago

Status = Mapping[str, Any]


def ready_text(pod: Object, _: datetime) -> str:
    """How many containers are ready, of how many."""
    ready = sum(bool(one.get("ready")) for one in _statuses(pod, "containerStatuses"))
    return f"{ready}/{len(pod['spec'].get('containers') or ())}"


def status_text(pod: Object, _: datetime) -> str:
    """What a person should know first: why it waits, how it failed, or the phase."""
    status = pod.get("status") or {}
    text = status.get("reason") or status.get("phase") or "Unknown"
    if any(
        one.get("type") == "PodScheduled" and one.get("reason") == "SchedulingGated"
        for one in status.get("conditions") or ()
    ):
        text = "SchedulingGated"
    initializing = _initializing(pod)
    text = initializing or _from_containers(pod) or text
    if "deletionTimestamp" in pod["metadata"]:
        return "Unknown" if status.get("reason") == "NodeLost" else "Terminating"
    return str(text)


def restarts_text(pod: Object, now: datetime) -> str:
    """How often its containers were started again, and when that last happened."""
    statuses = list(_statuses(pod, "containerStatuses"))
    restarts = sum(one.get("restartCount") or 0 for one in statuses)
    finished = [
        time for one in statuses if (time := _terminated(one.get("lastState")).get("finishedAt"))
    ]
    if not restarts or not finished:
        return str(restarts)
    return f"{restarts} ({ago(max(finished), now)} ago)"


def _initializing(pod: Object) -> str:
    statuses = list(_statuses(pod, "initContainerStatuses"))
    total = len(pod["spec"].get("initContainers") or ())
    for index, one in enumerate(statuses):
        state = one.get("state") or {}
        ended = _terminated(state)
        if ended and ended.get("exitCode") == 0:
            continue
        if ended:
            return f"Init:{_ending(ended)}"
        waiting = (state.get("waiting") or {}).get("reason")
        if waiting and waiting != "PodInitializing":
            return f"Init:{waiting}"
        return f"Init:{index}/{total}"
    return ""


def _from_containers(pod: Object) -> str:
    text, has_running = "", False
    for one in reversed(list(_statuses(pod, "containerStatuses"))):
        state = one.get("state") or {}
        if waiting := (state.get("waiting") or {}).get("reason"):
            text = waiting
        elif ended := _terminated(state):
            text = _ending(ended)
        elif one.get("ready") and "running" in state:
            has_running = True
    if text == "Completed" and has_running:
        conditions = (pod.get("status") or {}).get("conditions") or ()
        ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)
        return "Running" if ready else "NotReady"
    return text


def _ending(terminated: Status) -> str:
    if reason := terminated.get("reason"):
        return str(reason)
    if signal := terminated.get("signal"):
        return f"Signal:{signal}"
    return f"ExitCode:{terminated.get('exitCode')}"


def _terminated(state: Status | None) -> Status:
    return (state or {}).get("terminated") or {}


def _statuses(pod: Object, name: str) -> Iterable[Status]:
    return (pod.get("status") or {}).get(name) or ()
