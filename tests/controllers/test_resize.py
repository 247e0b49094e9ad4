"""Running pods ask for other amounts of their devices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hami.config import Settings
from hami.core import codec
from hami.core.codec_enforcement import ENFORCEMENT_STATUS_KEY
from hami.core.codec_resize import RESIZE_APPLIED_KEY, RESIZE_KEY, RESIZE_STATUS_KEY
from hami.core.vendors.nvidia import NVIDIA
from hami.sandbox.apiserver import ApiServer
from tests.support.controller import (
    Controller,
    controller_process,
    gpus,
    node_object,
    place,
    quota_object,
    running,
)
from tests.support.kube import until

Configure = Callable[..., Settings]
CARD = 40_000


async def placed(
    server: ApiServer, controller: Controller, name: str, *, backend: str = "shim", **asked: Any
) -> None:
    """A running pod on the first device of n0, as its agent leaves it."""
    annotations = {
        "nvidia.com/use-gpuuuid": str(gpus("n0")[0].uuid),
        ENFORCEMENT_STATUS_KEY: json.dumps({"c0": backend, "c1": backend}),
    }
    await place(server, controller, "n0", name, annotations=annotations, **asked)


def ask(server: ApiServer, name: str, text: str) -> None:
    pod = server.store.get("pods", name)
    pod["metadata"]["annotations"][RESIZE_KEY] = text
    server.store.update(pod)


def apply(server: ApiServer, name: str, memory: int, *, number: int, blocked: int = 0) -> None:
    """What the node's agent says once a decision is in force."""
    pod = server.store.get("pods", name)
    applied = {"gpumem": memory, "gpucores": 0, "number": number, "blocked": blocked}
    pod["metadata"]["annotations"][RESIZE_APPLIED_KEY] = json.dumps({"c0": applied})
    server.store.update(pod)


def annotation(server: ApiServer, name: str, key: str) -> str:
    value: str = server.store.get("pods", name)["metadata"]["annotations"].get(key, "")
    return value


async def answered(server: ApiServer, name: str, state: str) -> dict[str, Any]:
    """The decision, once it is this one."""

    async def is_so() -> bool:
        text = annotation(server, name, RESIZE_STATUS_KEY)
        return bool(text) and json.loads(text)["state"] == state

    await until(is_so)
    decision: dict[str, Any] = json.loads(annotation(server, name, RESIZE_STATUS_KEY))
    return decision


def held(server: ApiServer, name: str, container: int = 0) -> tuple[int, int]:
    record = codec.decode_allocation(annotation(server, name, NVIDIA.allocated_key), NVIDIA.name)
    (device,) = record[container]
    return device.memory, device.cores


async def test_grows_and_shrinks_in_the_record_that_everybody_reads(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        await placed(server, controller, "a", memory=3000, cores=30)

        for number, (memory, cores) in enumerate(((6000, 50), (1000, 10)), 1):
            ask(server, "a", json.dumps({"c0": {"gpumem": memory, "gpucores": cores}}))
            await until_held(server, "a", (memory, cores))
            decision = await answered(server, "a", "accepted")
            assert decision["number"] == number
            apply(server, "a", memory, number=number)
            place = "n0", str(gpus("n0")[0].uuid)

            async def counts(place: Any = place, memory: int = memory, cores: int = cores) -> bool:
                return (await controller.usage()).get(place) == (1, memory * 2**20, cores)

            await until(counts)


async def until_held(server: ApiServer, name: str, wanted: tuple[int, int]) -> None:
    async def is_so() -> bool:
        return held(server, name) == wanted

    await until(is_so)


async def test_only_the_container_that_is_named_changes(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        await placed(server, controller, "a", memory=3000, cores=10, containers=2)

        ask(server, "a", '{"c1":{"gpumem":5000}}')

        await answered(server, "a", "accepted")
        assert held(server, "a", 0) == (3000, 10)
        assert held(server, "a", 1) == (5000, 10)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param('{"c0":{"gpumem":40001}}', "lacks", id="more than the device has"),
        pytest.param('{"c0":{"gpumem":30001}}', "lacks 1 MiB", id="one MiB more than is free"),
        pytest.param('{"c0":{"gpucores":81}}', "lacks 1 %", id="more cores than are free"),
        pytest.param('{"c9":{"gpumem":1}}', "no container", id="a container that is not there"),
        pytest.param("{", RESIZE_KEY, id="no JSON"),
        pytest.param('{"c0":{}}', RESIZE_KEY, id="nothing at all"),
        pytest.param('{"c0":{"gpumem":0}}', RESIZE_KEY, id="no memory"),
        pytest.param('{"c0":{"memory":1}}', RESIZE_KEY, id="an unknown key"),
    ],
)
async def test_denied_with_the_reason_and_an_event(
    server: ApiServer, configure: Configure, text: str, reason: str
) -> None:
    async with running(configure()) as controller:
        await placed(server, controller, "a", memory=3000, cores=10)
        await placed(server, controller, "b", memory=10_000, cores=20)

        ask(server, "a", text)

        assert reason in (await answered(server, "a", "denied"))["reason"]
        assert held(server, "a") == (3000, 10)

        async def told() -> bool:
            events = server.store.list("events")
            return any(event["reason"] == "ResizeDenied" for event in events)

        await until(told)
        ask(server, "b", '{"c0":{"gpumem":11000}}')
        await answered(server, "b", "accepted")


async def test_pod_without_the_shim_is_denied(server: ApiServer, configure: Configure) -> None:
    async with running(configure()) as controller:
        await placed(server, controller, "a", backend="none", memory=3000)

        ask(server, "a", '{"c0":{"gpumem":1000}}')

        assert "without the shim" in (await answered(server, "a", "denied"))["reason"]


async def test_quota_holds_for_growth_and_never_for_shrinking(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        await placed(server, controller, "a", memory=3000)
        server.store.create(quota_object("q", memory=2500))

        ask(server, "a", '{"c0":{"gpumem":3001}}')
        assert "quota" in (await answered(server, "a", "denied"))["reason"]
        ask(server, "a", '{"c0":{"gpumem":2900}}')
        await answered(server, "a", "accepted")


async def memory_counted(controller: Controller) -> int:
    """MiB of the first device."""
    place = "n0", str(gpus("n0")[0].uuid)
    return int((await controller.usage())[place][1]) // 2**20


async def until_counted(controller: Controller, wanted: int) -> None:
    async def is_so() -> bool:
        return await memory_counted(controller) == wanted

    await until(is_so)


async def test_memory_that_a_shrink_takes_is_promised_to_nobody_before_it_is_free(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        await placed(server, controller, "a", memory=30_000)
        await placed(server, controller, "b", memory=5_000)

        ask(server, "a", '{"c0":{"gpumem":10000}}')
        await answered(server, "a", "accepted")
        ask(server, "b", '{"c0":{"gpumem":20000}}')
        assert "lacks 10000 MiB" in (await answered(server, "b", "denied"))["reason"]
        assert await memory_counted(controller) == 35_000

        apply(server, "a", 10_000, number=0)  # of before: the decision is not in force
        apply(server, "a", 10_000, number=1, blocked=15_000)
        await until_counted(controller, 30_000)
        apply(server, "a", 10_000, number=1, blocked=10_000)
        await answered(server, "b", "accepted")
        await until_counted(controller, 40_000)
        apply(server, "a", 10_000, number=1)
        await until_counted(controller, 30_000)


async def test_container_counts_for_no_more_than_it_had_whatever_it_says(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        await placed(server, controller, "a", memory=3000)
        ask(server, "a", '{"c0":{"gpumem":1000}}')
        await answered(server, "a", "accepted")

        apply(server, "a", 1000, number=1, blocked=500)
        await until_counted(controller, 1500)
        apply(server, "a", 1000, number=1, blocked=10**9)
        await until_counted(controller, 3000)
        apply(server, "a", 1000, number=1, blocked=-(10**9))
        await until_counted(controller, 1000)


async def test_next_controller_counts_what_a_shrink_has_not_freed(
    server: ApiServer, configure: Configure
) -> None:
    settings = configure()
    async with running(settings) as controller:
        await placed(server, controller, "a", memory=30_000)
        ask(server, "a", '{"c0":{"gpumem":10000}}')
        await answered(server, "a", "accepted")
        apply(server, "a", 10_000, number=1, blocked=7_000)
        ask(server, "a", '{"c0":{"gpumem":50000}}')  # what is denied forgets nothing
        await answered(server, "a", "denied")

    async with running(settings) as controller:
        assert await memory_counted(controller) == 17_000


async def test_of_two_that_want_the_last_mib_one_gets_it(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        for name in ("a", "b"):
            await placed(server, controller, name, memory=CARD // 2 - 1)

        for name in ("a", "b"):
            ask(server, name, json.dumps({"c0": {"gpumem": CARD // 2 + 1}}))

        async def both() -> bool:
            return all(annotation(server, name, RESIZE_STATUS_KEY) for name in ("a", "b"))

        await until(both)
        assert sorted(held(server, name)[0] for name in ("a", "b")) == [
            CARD // 2 - 1,
            CARD // 2 + 1,
        ]


async def test_denied_is_met_once_there_is_room(server: ApiServer, configure: Configure) -> None:
    async with running(configure()) as controller:
        await placed(server, controller, "a", memory=3000)
        await placed(server, controller, "b", memory=37_000)
        ask(server, "a", '{"c0":{"gpumem":6000}}')
        await answered(server, "a", "denied")

        server.store.delete("pods", "b")

        await answered(server, "a", "accepted")
        assert held(server, "a")[0] == 6000


@pytest.mark.parametrize("point", ["resize.before-patch", "resize.after-patch"])
async def test_controller_that_dies_leaves_it_to_the_next(tmp_path: Path, point: str) -> None:
    from tests.support.controller import settings_for

    async with ApiServer().running() as server:
        server.store.create(node_object("n0", gpus("n0")))
        settings = settings_for(server, tmp_path)
        async with controller_process(settings, tmp_path, crash_at=point) as (first, process):
            await placed(server, first, "a", memory=3000)
            ask(server, "a", '{"c0":{"gpumem":6000}}')
            await process.wait()
            assert held(server, "a")[0] == (3000 if point == "resize.before-patch" else 6000)
        async with running(settings) as controller:
            await answered(server, "a", "accepted")

            assert held(server, "a")[0] == 6000
            (use,) = (await controller.usage()).values()
            assert use[1] == 6000 * 2**20
