"""Gangs get all their devices or none: never a part that keeps another from its whole."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from hami.config import Settings
from hami.core.gang import GangName, gang_of, size_of
from hami.core.objects import ObjectMeta, Pod, PodSpec, SchedulingGroup
from hami.sandbox.apiserver import ApiServer
from tests.support.controller import (
    Controller,
    gpus,
    node_object,
    pod_object,
    quota_object,
    running,
)
from tests.support.kube import until

Configure = Callable[..., Settings]
GROUP = "scheduling.x-k8s.io/pod-group"
SIZE = "hami.io/gang-size"
NODES = ["a", "b", "c"]


def member(
    gang: str, number: int, *, native: bool = False, size: int | None = None
) -> dict[str, Any]:
    """A pod that wants a whole device, of a gang in one of the two forms."""
    pod = pod_object(f"{gang}-{number}", memory=None, cores=100)
    if native:
        pod["spec"]["schedulingGroup"] = {"podGroupName": gang}
    else:
        pod["metadata"]["labels"] = {GROUP: gang}
    if size is not None:
        pod["metadata"]["annotations"] = {SIZE: str(size)}
    return pod


def with_twelve_devices(server: ApiServer) -> None:
    for name in NODES:
        server.store.create(node_object(name, gpus(name, 4)))


async def place(controller: Controller, pod: Mapping[str, Any]) -> str:
    """Where the pod is bound; empty if it fits nowhere."""
    answer = await controller.filter(pod, NODES)
    assert answer["Error"] == "", answer
    if not answer["NodeNames"]:
        return ""
    scores = await controller.prioritize(pod, answer["NodeNames"])
    node = max(scores, key=lambda name: (scores[name], name))
    assert await controller.bind(pod, node) == ""
    return node


@pytest.mark.parametrize("native", [False, True], ids=["label", "scheduling_group"])
async def test_of_two_gangs_of_eight_on_twelve_devices_each_runs_in_its_turn(
    server: ApiServer, configure: Configure, native: bool
) -> None:
    with_twelve_devices(server)
    gangs = {
        name: [server.store.create(member(name, i, native=native)) for i in range(8)]
        for name in ("red", "blue")
    }
    waiting = [pod for pods in gangs.values() for pod in pods]
    random.Random(3).shuffle(waiting)
    order: list[str] = []

    async with running(configure(allocate_timeout_seconds=0.1)) as controller:

        async def some_are_bound() -> bool:
            """All that wait are tried once; who is bound ends, and makes room."""
            bound = [pod for pod in waiting if await place(controller, pod)]
            names = {pod["metadata"]["name"].partition("-")[0] for pod in bound}
            assert len(names) <= 1, "two gangs got a part each"
            assert len(bound) in {0, 8}
            order.extend(names)
            for pod in bound:
                waiting.remove(pod)
                server.store.delete("pods", pod["metadata"]["name"], "default")
            return bool(bound)

        await until(some_are_bound)
        await until(some_are_bound)

    assert sorted(order) == ["blue", "red"]


async def test_a_gang_that_does_not_fit_holds_nothing_and_says_why(
    server: ApiServer, configure: Configure
) -> None:
    with_twelve_devices(server)
    pods = [server.store.create(member("big", i)) for i in range(13)]

    async with running(configure()) as controller:
        answer = await controller.filter(pods[0], NODES)
        usage = await controller.usage()

    assert not answer["NodeNames"]
    assert answer["FailedNodes"]["a"] == (
        "GangNotFit: gang default/big: 12 more of its pods need devices, found for 11"
    )
    assert usage == {}


async def test_pods_that_do_not_exist_yet_count_where_the_size_is_said(
    server: ApiServer, configure: Configure
) -> None:
    with_twelve_devices(server)
    fits = server.store.create(member("fits", 0, size=12))
    too_big = server.store.create(member("large", 0, size=13))

    async with running(configure()) as controller:
        refused = await controller.filter(too_big, NODES)
        allowed = await controller.filter(fits, NODES)

    assert not refused["NodeNames"]
    assert "13" not in refused["FailedNodes"]["a"]
    assert "12 more of its pods need devices, found for 11" in refused["FailedNodes"]["a"]
    assert allowed["NodeNames"]


async def test_pods_that_do_not_exist_yet_count_against_their_namespace(
    server: ApiServer, configure: Configure
) -> None:
    with_twelve_devices(server)
    quota = quota_object("few", memory=4000)
    server.store.create(quota)
    pods = [member(name, 0, size=size) for name, size in (("fits", 4), ("large", 5))]
    for pod in pods:
        limits = pod["spec"]["containers"][0]["resources"]["limits"]
        limits["nvidia.com/gpumem"] = "1000"
        limits.pop("nvidia.com/gpucores")
    fits, too_large = (server.store.create(pod) for pod in pods)

    async with running(configure()) as controller:
        assert not (await controller.filter(too_large, NODES))["NodeNames"]
        assert (await controller.filter(fits, NODES))["NodeNames"]


async def test_pods_that_are_being_deleted_need_no_devices_of_their_gang(
    server: ApiServer, configure: Configure
) -> None:
    """A finalizer may keep them for as long as their gang runs."""
    with_twelve_devices(server)
    pods = [member("red", i) for i in range(13)]
    pods[0]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    created = [server.store.create(pod) for pod in pods]

    async with running(configure(allocate_timeout_seconds=0.1)) as controller:
        assert await place(controller, created[1])


async def test_a_pod_of_no_gang_does_not_wait_for_one(
    server: ApiServer, configure: Configure
) -> None:
    with_twelve_devices(server)
    for i in range(13):
        server.store.create(member("big", i))
    alone = server.store.create(pod_object("alone", memory=None, cores=100))

    async with running(configure()) as controller:
        answer = await controller.filter(alone, NODES)

    assert sorted(answer["NodeNames"]) == NODES


# -- how a gang is named -----------------------------------------------------------------------


def pod(
    labels: dict[str, str] | None = None, group: str | None = None, size: str | None = None
) -> Pod:
    annotations = None if size is None else {SIZE: size}
    return Pod(
        metadata=ObjectMeta(namespace="team", labels=labels, annotations=annotations),
        spec=PodSpec(scheduling_group=SchedulingGroup(pod_group_name=group) if group else None),
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(pod(), None, id="none"),
        pytest.param(pod({GROUP: "g"}), GangName("team", "g"), id="label"),
        pytest.param(pod(group="g"), GangName("team", "g"), id="scheduling_group"),
        pytest.param(pod({GROUP: ""}), None, id="an_empty_label_is_none"),
    ],
)
def test_a_gang_is_named_by_label_or_spec(given: Pod, expected: GangName | None) -> None:
    assert gang_of(given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(pod(), 0, id="unsaid"),
        pytest.param(pod(size="8"), 8, id="annotation"),
        pytest.param(
            pod({"pod-group.scheduling.sigs.k8s.io/min-available": "4"}), 4, id="older_label"
        ),
        pytest.param(pod(size="many"), 0, id="unreadable_is_unsaid"),
        pytest.param(pod(size="99999999"), 0, id="absurd_is_unsaid"),
        pytest.param(pod(size="-1"), 0, id="negative_is_unsaid"),
    ],
)
def test_a_size_is_read_where_it_can_be(given: Pod, expected: int) -> None:
    assert size_of(given) == expected
