"""Filter over whole nodes, as an autoscaler asks it: an answer, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from hami.config import Settings
from hami.controllers import simulation
from hami.core.vendors.nvidia import NVIDIA
from hami.sandbox.apiserver import ApiServer
from tests.support.controller import Controller, gpus, node_object, pod_object, running
from tests.support.kube import until

NODES = ["n0", "n1"]
Configure = Callable[..., Settings]


async def ask(
    controller: Controller, pod: dict[str, Any], nodes: Sequence[dict[str, Any]]
) -> tuple[list[str], dict[str, str]]:
    """The names of the nodes that fit, and the reasons of the others."""
    status, answer = await controller.post("/filter", {"Pod": pod, "Nodes": {"items": nodes}})
    assert (status, answer["Error"], answer["NodeNames"]) == (200, "", None)
    return [node["metadata"]["name"] for node in answer["Nodes"]["items"]], answer["FailedNodes"]


def bare(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "kept": [name]}


@pytest.mark.parametrize("mode", ["cooperative", "exclusive"])
async def test_every_node_that_fits_is_returned_as_it_came_whatever_the_mode(
    server: ApiServer, configure: Configure, mode: str
) -> None:
    pod = server.store.create(pod_object("p"))
    objects = [bare("ghost"), *map(bare, NODES)]

    async with running(configure(mode=mode)) as controller:
        status, answer = await controller.post("/filter", {"Pod": pod, "Nodes": {"items": objects}})

    assert status == 200
    assert answer["Nodes"]["items"] == objects[1:]
    assert answer["FailedNodes"] == {"ghost": "node unregistered"}


async def test_nothing_is_held_and_nobody_is_told(server: ApiServer, configure: Configure) -> None:
    pod = server.store.create(pod_object("p"))
    huge = server.store.create(pod_object("huge", gpus=9))

    async with running(configure()) as controller:
        await ask(controller, pod, [bare("n0")])
        assert (await ask(controller, huge, [bare("n0")]))[0] == []
        assert await controller.usage() == {}

        await controller.filter(huge, NODES)  # an Event that is told: no earlier one was

        async def told() -> bool:
            return bool(server.store.list("events"))

        await until(told)

    (event,) = server.store.list("events")
    assert event["count"] == 1


async def test_registered_node_is_answered_from_what_is_used_there(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        for i in range(2):
            pod = server.store.create(pod_object(f"p{i}", memory=30_000))
            await controller.filter(pod, ["n0"])
        fresh = node_object("n0", gpus("n0"))
        fits, failed = await ask(controller, pod_object("next", memory=30_000), [fresh])

    assert fits == []
    assert failed == {"n0": "2/2 CardInsufficientMemory"}


async def test_template_is_answered_from_its_own_annotations_with_nothing_used(
    server: ApiServer, configure: Configure
) -> None:
    small = node_object("small", gpus("n0", 1, memory=2000))
    large = node_object("large", gpus("n0", 8, memory=80_000))
    empty = node_object("empty", gpus("n0", 8, memory=80_000))
    empty["status"]["allocatable"] = {NVIDIA.resources.count: "0"}
    broken = node_object("broken", (), **{NVIDIA.register_key: "[{"})
    odd = bare("odd") | {"status": "none"}

    async with running(configure()) as controller:
        fits, failed = await ask(
            controller, pod_object("p", gpus=2, memory=50_000), [small, large, empty, broken, odd]
        )

    assert fits == ["large"]
    assert failed["small"] == "NodeInsufficientDevice 2 of 1"
    assert failed["empty"] == "8/8 CardNotHealth"
    assert failed["broken"] == "node unregistered"
    assert failed["odd"].startswith("node unregistered: ")


async def test_many_templates_are_answered_as_well(server: ApiServer, configure: Configure) -> None:
    templates = [node_object(f"t{i}", gpus("t")) for i in range(simulation.AT_ONCE * 3)]

    async with running(configure()) as controller:
        fits, failed = await ask(controller, pod_object("p"), [*templates, bare("n1")])

    assert len(fits) == len(templates) + 1
    assert failed == {}


async def test_pod_does_not_stand_in_its_own_way(server: ApiServer, configure: Configure) -> None:
    pod = server.store.create(pod_object("p", gpus=2, memory=30_000))

    async with running(configure()) as controller:
        await controller.filter(pod, NODES)
        fits, _ = await ask(controller, pod, [bare(name) for name in NODES])

    assert fits == NODES


async def test_pod_without_devices_gets_all_nodes_back(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        _, answer = await controller.post(
            "/filter",
            {"Pod": pod_object("p", gpus=0, memory=None), "Nodes": {"items": [bare("x")]}},
        )

    assert answer["Nodes"]["items"] == [bare("x")]
    assert answer["FailedNodes"] is None
