"""Waiting pods are called when there is room for them again: exactly those that fit, and soon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anyio
import pytest

from hami.config import Settings
from hami.core import codec
from hami.sandbox.apiserver import ApiServer
from hami.sandbox.apiserver.faults import Fault
from tests.support.controller import (
    Controller,
    gpus,
    node_object,
    place,
    pod_object,
    quota_object,
    running,
)
from tests.support.kube import until

NODES = ["n0", "n1"]
Configure = Callable[..., Settings]


async def wait_for_room(
    server: ApiServer,
    controller: Controller,
    name: str,
    nodes: Sequence[str] = NODES,
    *,
    priority: int = 0,
    **asked: Any,
) -> dict[str, Any]:
    """A pod that was told it fits on none of the nodes."""
    pod = pod_object(name, **asked)
    pod["spec"]["priority"] = priority
    created = server.store.create(pod)
    assert (await controller.filter(created, nodes))["NodeNames"] == []
    return created


def called(server: ApiServer, name: str) -> str:
    """The value of the annotation; empty where the pod was not called."""
    pod = server.store.get("pods", name, "default")
    value: str = (pod["metadata"].get("annotations") or {}).get(codec.NUDGE_KEY, "")
    return value


async def until_called(server: ApiServer, *names: str) -> None:
    async def all_called() -> bool:
        return all(called(server, name) for name in names)

    with anyio.fail_after(2.0):
        await until(all_called)


async def fill(server: ApiServer, controller: Controller, node: str) -> None:
    """Take each of the node's two devices whole."""
    for i in range(2):
        await place(server, controller, node, f"full-{node}-{i}", memory=39_000)


async def test_pod_is_called_when_another_ends_and_its_place_is_held(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        for node in NODES:
            await fill(server, controller, node)
        await wait_for_room(server, controller, "waits", memory=20_000)
        server.store.delete("pods", "full-n1-0", "default")
        await until_called(server, "waits")
        held = {device: usage for (_, device), usage in (await controller.usage()).items()}

    assert sorted(memory // 2**20 for _, memory, _ in held.values()) == [20_000] + [39_000] * 3


async def test_pod_is_called_when_a_hold_ends(server: ApiServer, configure: Configure) -> None:
    """Nobody but the controller knows of a hold."""
    async with running(configure(hold_seconds=0.5)) as controller:
        other = server.store.create(pod_object("other", gpus=2, memory=39_000))
        await controller.filter(other, ["n0"])
        await wait_for_room(server, controller, "waits", ["n0"], memory=20_000)
        await until_called(server, "waits")


@pytest.mark.parametrize("change", ["cordon", "health"])
async def test_pod_is_called_when_devices_can_be_used_again(
    server: ApiServer, configure: Configure, change: str
) -> None:
    node = server.store.get("nodes", "n0")
    good = dict(node["metadata"]["annotations"])
    bad = {
        "cordon": {codec.CORDON_KEY: "GPU-n0-0,GPU-n0-1"},
        "health": {
            key: text.replace('"health":true', '"health":false') for key, text in good.items()
        },
    }[change]
    assert bad != good
    node["metadata"]["annotations"] = good | bad
    server.store.update(node)

    async with running(configure()) as controller:
        await wait_for_room(server, controller, "waits", ["n0"])
        node = server.store.get("nodes", "n0")
        node["metadata"]["annotations"] = good
        server.store.update(node)
        await until_called(server, "waits")


@pytest.mark.parametrize("change", ["raised", "removed", "used less"])
async def test_pod_is_called_when_its_namespace_has_room_again(
    server: ApiServer, configure: Configure, change: str
) -> None:
    server.store.create(quota_object("gpus", memory=10000))

    async with running(configure()) as controller:
        await place(server, controller, "n1", "first", memory=7000)
        await wait_for_room(server, controller, "waits", memory=5000)
        await wait_for_room(server, controller, "large", memory=50_000)
        if change == "raised":
            raised = server.store.get("resourcequotas", "gpus")
            raised["spec"]["hard"]["limits.nvidia.com/gpumem"] = "12000"
            server.store.update(raised)
        elif change == "removed":
            server.store.delete("resourcequotas", "gpus")
        else:
            server.store.delete("pods", "first")
        await until_called(server, "waits")
        assert not called(server, "large")


async def test_pod_is_called_for_a_node_that_registers_later(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        await wait_for_room(server, controller, "waits", ["n0", "n2"], memory=50_000)
        server.store.create(node_object("n2", gpus("n2", memory=80_000)))
        await until_called(server, "waits")


async def test_as_many_are_called_as_fit_by_priority(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        for node in NODES:
            await fill(server, controller, node)
        await wait_for_room(server, controller, "first", memory=15_000, priority=1)
        await wait_for_room(server, controller, "second", memory=15_000)
        await wait_for_room(server, controller, "important", memory=15_000, priority=7)
        await wait_for_room(server, controller, "large", memory=41_000, priority=9)
        server.store.delete("pods", "full-n0-0", "default")
        await until_called(server, "important", "first")

        async def counted() -> bool:
            return await controller.value("hami_nudges_total", result="sent") == 2

        await until(counted)
        assert not called(server, "large")
        assert not called(server, "second")

        server.store.delete("pods", "full-n1-0", "default")
        await until_called(server, "second")
        assert not called(server, "large"), "what does not fit is called for nothing"


def gang_pod(name: str, memory: int) -> dict[str, Any]:
    pod = pod_object(name, memory=memory, annotations={codec.GANG_SIZE_KEY: "2"})
    pod["metadata"]["labels"] = {codec.POD_GROUP_LABEL: "pair"}
    return pod


async def test_gang_is_called_together_once_there_is_room_for_all_of_it(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        for node in NODES:
            await fill(server, controller, node)
        for name in ("left", "right"):
            pod = server.store.create(gang_pod(name, memory=30_000))
            assert (await controller.filter(pod, NODES))["NodeNames"] == []
        await wait_for_room(server, controller, "single", memory=9500, priority=-1)
        server.store.delete("pods", "full-n0-0", "default")
        await until_called(server, "single")  # so the gang was looked at before
        assert not called(server, "left")
        assert not called(server, "right")

        server.store.delete("pods", "full-n0-1", "default")
        server.store.delete("pods", "full-n1-1", "default")
        await until_called(server, "left", "right")
        for name in ("left", "right"):
            pod = server.store.get("pods", name, "default")
            assert (await controller.filter(pod, NODES))["NodeNames"]


async def test_called_pod_finds_its_place_and_what_it_held_is_not_held_twice(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        await fill(server, controller, "n0")
        pod = await wait_for_room(server, controller, "waits", ["n0"], memory=20_000)
        server.store.delete("pods", "full-n0-0", "default")
        await until_called(server, "waits")
        pod = server.store.get("pods", "waits", "default")
        assert (await controller.filter(pod, ["n0"]))["NodeNames"] == ["n0"]
        assert await controller.bind(pod, "n0") == ""
        usage = await controller.usage()

    assert sorted(memory // 2**20 for _, memory, _ in usage.values()) == [20_000, 39_000]


async def test_node_that_was_not_asked_about_is_none_for_the_pod(
    server: ApiServer, configure: Configure
) -> None:
    """The scheduler left it out for reasons of its own, such as a node selector."""
    async with running(configure()) as controller:
        for node in NODES:
            await fill(server, controller, node)
        await wait_for_room(server, controller, "elsewhere", ["n0"], memory=15_000)
        await wait_for_room(server, controller, "anywhere", memory=15_000)
        server.store.delete("pods", "full-n1-0", "default")
        await until_called(server, "anywhere")
        assert not called(server, "elsewhere")


async def test_pod_called_in_vain_leaves_its_place_to_the_next(
    server: ApiServer, configure: Configure
) -> None:
    """It may have reasons of its own not to come; its hold ends, and it is not called at once."""
    async with running(configure(hold_seconds=0.3)) as controller:
        await fill(server, controller, "n0")
        await wait_for_room(server, controller, "lazy", ["n0"], memory=39_000, priority=1)
        await wait_for_room(server, controller, "next", ["n0"], memory=39_000)
        server.store.delete("pods", "full-n0-0", "default")
        await until_called(server, "lazy")
        assert not called(server, "next")
        first = called(server, "lazy")
        await until_called(server, "next")
        assert called(server, "lazy") == first


async def test_pod_that_went_away_unseen_keeps_nothing(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure(hold_seconds=600)) as controller:
        await fill(server, controller, "n0")
        ghost = pod_object("ghost", memory=20_000)
        ghost["metadata"]["uid"] = "never-created"
        await controller.filter(ghost, ["n0"])
        await wait_for_room(server, controller, "waits", ["n0"], memory=39_000)
        server.store.delete("pods", "full-n0-0", "default")
        await until_called(server, "waits")
        assert await controller.value("hami_nudges_total", result="gone") <= 1


@pytest.mark.faults
async def test_place_is_given_back_where_the_call_cannot_be_made(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure(hold_seconds=600)) as controller:
        await fill(server, controller, "n0")
        await wait_for_room(server, controller, "waits", ["n0"], memory=20_000)
        server.faults.add(Fault(verb="patch", resource="pods", status=500))
        server.store.delete("pods", "full-n0-0", "default")

        async def failed() -> bool:
            return await controller.value("hami_nudges_total", result="failed") == 1

        await until(failed)
        usage = await controller.usage()

    assert [memory // 2**20 for _, memory, _ in usage.values()] == [39_000]


async def test_plain_change_of_a_node_calls_nobody(server: ApiServer, configure: Configure) -> None:
    async with running(configure()) as controller:
        await fill(server, controller, "n0")
        await wait_for_room(server, controller, "waits", ["n0"], memory=39_500)
        await place(server, controller, "n1", "other", memory=1000)
        server.store.delete("pods", "full-n0-0", "default")
        await wait_for_room(server, controller, "large", ["n0"], memory=41_000)
        await until_called(server, "waits")
        assert not called(server, "large")


@pytest.mark.faults
async def test_call_whose_failure_is_known_late_takes_no_place_from_a_pod_that_came(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure(hold_seconds=600)) as controller:
        await fill(server, controller, "n0")
        pod = await wait_for_room(server, controller, "waits", ["n0"], memory=20_000)
        late = server.faults.add(
            Fault(verb="patch", resource="pods", delay_seconds=1.0, status=500)
        )
        server.store.delete("pods", "full-n0-0", "default")

        async def on_its_way() -> bool:
            return late.hits > 0

        await until(on_its_way)
        assert (await controller.filter(pod, ["n0"]))["NodeNames"] == ["n0"]

        async def failed() -> bool:
            return await controller.value("hami_nudges_total", result="failed") == 1

        await until(failed)
        usage = await controller.usage()

    assert sorted(memory // 2**20 for _, memory, _ in usage.values()) == [20_000, 39_000]


async def test_pods_that_an_earlier_controller_refused_are_called_when_there_is_room(
    server: ApiServer, configure: Configure
) -> None:
    """Their scheduler does not ask about them again by itself; those of its queue it does."""
    for name in ("stuck", "large", "fresh"):
        pod = pod_object(name, memory=41_000 if name == "large" else 20_000)
        if name != "fresh":
            refused = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            pod["status"] = {"phase": "Pending", "conditions": [refused]}
        server.store.create(pod)

    async with running(configure(hold_seconds=0.3)) as controller:
        await until_called(server, "stuck")
        first = called(server, "stuck")

        async def its_hold_is_over() -> bool:
            return not await controller.usage()

        await until(its_hold_is_over)
        await fill(server, controller, "n0")
        await wait_for_room(server, controller, "waits", ["n0"], memory=39_000)
        server.store.delete("pods", "full-n0-0", "default")
        await until_called(server, "waits")

    assert called(server, "stuck") == first, "nobody knows what else is in its way"
    assert not called(server, "large")
    assert not called(server, "fresh")
