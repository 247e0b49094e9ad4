"""What ``kubectl get`` prints of an object."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from hami.sandbox.apiserver.columns import columns_of
from hami.sandbox.apiserver.kinds import KINDS
from hami.sandbox.apiserver.timetext import ago, duration_text

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
MINUTE, HOUR, DAY = 60, 3600, 86400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (5 * MINUTE + 3, "5m3s"),
        (10 * MINUTE + 3, "10m"),
        (179 * MINUTE, "179m"),
        (3 * HOUR, "3h"),
        (3 * HOUR + 5 * MINUTE, "3h5m"),
        (47 * HOUR, "47h"),
        (3 * DAY + 2 * HOUR, "3d2h"),
        (8 * DAY + 2 * HOUR, "8d"),
        (730 * DAY + 10 * DAY, "2y10d"),
        (9 * 365 * DAY, "9y"),
    ],
)
def test_durations_are_as_precise_as_their_length_deserves(seconds: int, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("time", "text"),
    [
        ("2026-01-01T11:59:50Z", "10s"),
        ("2026-01-01T11:59:50.123456Z", "9s"),
        ("2026-01-01T12:59:50+01:00", "10s"),
        ("yesterday", "<invalid>"),
        (7, "<invalid>"),
    ],
)
def test_times_are_shown_as_long_ago(time: Any, text: str) -> None:
    assert ago(time, NOW) == text


def cells(plural: str, obj: dict[str, Any]) -> dict[str, Any]:
    obj.setdefault("metadata", {"name": "x"})
    return {column.name: column.show(obj, NOW) for column in columns_of(plural)}


def pod(status: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {"containers": [{}, {}], "initContainers": [{}]}
    return {"metadata": {"name": "p", **metadata}, "spec": spec, "status": status}


def container(state: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"state": state, **more}


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ({}, "Unknown"),
        ({"phase": "Pending"}, "Pending"),
        ({"phase": "Failed", "reason": "Evicted"}, "Evicted"),
        (
            {
                "phase": "Pending",
                "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}],
            },
            "SchedulingGated",
        ),
        (
            {"containerStatuses": [container({"waiting": {"reason": "ContainerCreating"}})]},
            "ContainerCreating",
        ),
        ({"containerStatuses": [container({"terminated": {"exitCode": 3}})]}, "ExitCode:3"),
        (
            {"containerStatuses": [container({"terminated": {"signal": 9, "exitCode": 137}})]},
            "Signal:9",
        ),
        (
            {"containerStatuses": [container({"terminated": {"reason": "OOMKilled"}})]},
            "OOMKilled",
        ),
        ({"initContainerStatuses": [container({"running": {}})]}, "Init:0/1"),
        (
            {"initContainerStatuses": [container({"terminated": {"exitCode": 2}})]},
            "Init:ExitCode:2",
        ),
        (
            {"initContainerStatuses": [container({"waiting": {"reason": "ImagePullBackOff"}})]},
            "Init:ImagePullBackOff",
        ),
        (
            {
                "phase": "Running",
                "initContainerStatuses": [container({"terminated": {"exitCode": 0}})],
                "conditions": [{"type": "Ready", "status": "False"}],
                "containerStatuses": [
                    container({"terminated": {"reason": "Completed"}}),
                    container({"running": {}}, ready=True),
                ],
            },
            "NotReady",
        ),
    ],
)
def test_status_of_a_pod_tells_what_matters_most(status: dict[str, Any], shown: str) -> None:
    assert cells("pods", pod(status))["Status"] == shown


def test_pod_that_is_being_deleted_is_terminating() -> None:
    dying = pod({"phase": "Running"}, deletionTimestamp="2026-01-01T12:00:30Z")

    assert cells("pods", dying)["Status"] == "Terminating"


def test_restarts_tell_when_the_last_one_was() -> None:
    last = {"terminated": {"finishedAt": "2026-01-01T11:58:00Z"}}
    statuses = [
        container({}, restartCount=2, lastState=last, ready=True),
        container({}, restartCount=1, ready=False),
    ]

    shown = cells("pods", pod({"containerStatuses": statuses}))

    assert (shown["Restarts"], shown["Ready"]) == ("3 (2m ago)", "1/2")


def test_nodes_show_readiness_roles_and_addresses() -> None:
    node = {
        "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/gpu": ""}},
        "spec": {"unschedulable": True},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
        },
    }

    shown = cells("nodes", node)

    assert shown["Status"] == "Ready,SchedulingDisabled"
    assert (shown["Roles"], shown["Internal-IP"]) == ("gpu", "10.0.0.1")
    assert cells("nodes", {})["Status"] == "Unknown"


def test_events_show_when_about_whom_and_what() -> None:
    shown = cells(
        "events",
        {
            "lastTimestamp": "2026-01-01T11:59:00Z",
            "reason": "Bound",
            "involvedObject": {"kind": "Pod", "name": "web"},
            "message": "said",
        },
    )

    assert (shown["Last Seen"], shown["Object"], shown["Message"]) == ("60s", "pod/web", "said")


def test_quotas_show_what_is_used_of_what() -> None:
    quota = {
        "spec": {"hard": {"requests.example.com/gpu": "4", "limits.cpu": "2"}},
        "status": {"used": {"requests.example.com/gpu": "1"}},
    }

    shown = cells("resourcequotas", quota)

    assert shown["Request"] == "requests.example.com/gpu: 1/4"
    assert shown["Limit"] == "limits.cpu: ?/2"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.plural)
def test_every_kind_prints_an_object_that_says_nothing(kind: Any) -> None:
    obj = {"metadata": {"name": "x"}, "spec": {}}

    assert "x" in cells(kind.plural, obj).values()


@pytest.mark.parametrize("status", ["text", 7, {"containerStatuses": "x"}, {"conditions": [3]}])
def test_cell_that_cannot_be_made_leaves_the_others_alone(status: Any) -> None:
    shown = cells("pods", {"metadata": {"name": "x"}, "spec": {}, "status": status})

    assert shown["Name"] == "x"
    assert "<invalid>" in shown.values()
