"""Quotas through a whole controller: filter, bind, admission, and what the watch tells of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from hami.config import Settings
from hami.core import codec
from hami.core.vendors.nvidia import NVIDIA
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

NODES = ["n0", "n1"]
MEMORY, CORES = NVIDIA.resources.memory, NVIDIA.resources.cores
Configure = Callable[..., Settings]


def namespace_of(server: ApiServer, name: str) -> str:
    namespace: str = server.store.get("pods", name)["metadata"]["namespace"]
    return namespace


async def used(controller: Controller, resource: str = MEMORY) -> float:
    return await controller.value("hami_resource_quota_used", quota_name=resource)


async def limit(controller: Controller, resource: str = MEMORY) -> float:
    return await controller.value("hami_resource_quota_limit", quota_name=resource)


async def becomes(ask: Callable[..., Any], expected: float, *args: Any) -> None:
    async def same() -> bool:
        return bool(await ask(*args) == expected)

    await until(same)


async def test_filter_refuses_what_the_namespace_has_no_room_for_and_says_so(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(quota_object("gpus", memory=5000))
    first = server.store.create(pod_object("first", memory=3000))
    second = server.store.create(pod_object("second", memory=3000))

    async with running(configure()) as controller:
        assert (await controller.filter(first, NODES))["NodeNames"] == NODES
        answer = await controller.filter(second, NODES)

        async def told() -> bool:
            return any(
                e["reason"] == "FilteringFailed" and "ResourceQuotaNotFit" in e["message"]
                for e in server.store.list("events")
            )

        await until(told)

    why = (
        f"ResourceQuotaNotFit: quota {first['metadata']['namespace']}/gpus: "
        "limits.nvidia.com/gpumem: needs 3000 MiB, 2000 of 5000 left"
    )
    assert answer["NodeNames"] == []
    assert answer["FailedNodes"] == dict.fromkeys(NODES, why)


async def test_bind_refuses_as_well_and_leaves_nothing(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(quota_object("gpus", cores=50))
    first = server.store.create(pod_object("first", memory=10, cores=30))
    second = server.store.create(pod_object("second", memory=10, cores=30))

    async with running(configure()) as controller:
        assert await controller.bind(first, "n0") == ""
        error = await controller.bind(second, "n1")
        assert await used(controller, CORES) == 30
        assert {node for node, _ in await controller.usage()} == {"n0"}

    assert "limits.nvidia.com/gpucores: needs 30%, 20 of 50 left" in error
    assert server.store.get("pods", "second")["spec"].get("nodeName") is None


@pytest.mark.parametrize("mode", ["cooperative", "exclusive"])
async def test_of_many_binds_at_once_exactly_as_many_succeed_as_fit(
    server: ApiServer, configure: Configure, mode: str
) -> None:
    """There are devices for all of them; the quota has room for seven."""
    server.store.create(node_object("large", gpus("large", 8)))
    server.store.create(quota_object("gpus", memory=7 * 3000 + 2999))
    pods = [server.store.create(pod_object(f"p{i}", memory=3000)) for i in range(24)]
    answers: list[str] = []
    highest = 0.0

    async with running(configure(mode=mode, allocate_timeout_seconds=0.01)) as controller:

        async def schedule(number: int, pod: dict[str, Any]) -> None:
            """As a scheduler that does not heed every answer: filter, then bind anyway."""
            found = (await controller.filter(pod, [*NODES, "large"]))["NodeNames"] or ["large"]
            answers.append(await controller.bind(pod, found[number % len(found)]))

        async with anyio.create_task_group() as group:
            for number, pod in enumerate(pods):
                group.start_soon(schedule, number, pod)
            while len(answers) < len(pods):
                highest = max(highest, await used(controller))
                await anyio.lowlevel.checkpoint()
        assert await used(controller) == 7 * 3000

    bound = [pod for pod in server.store.list("pods") if pod["spec"].get("nodeName")]
    assert len(bound) == answers.count("") == 7
    assert highest <= 7 * 3000 + 2999
    assert all("quota" in answer for answer in answers if answer)


async def test_room_comes_back_when_pods_end_and_when_their_init_containers_do(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(quota_object("gpus", memory=9000))
    pod = pod_object("first", memory=3000, containers=2)
    init = pod["spec"]["containers"].pop(0)
    init["resources"] = {"limits": {NVIDIA.resources.count: "1", MEMORY: "9000"}}
    pod["spec"]["initContainers"] = [init]
    first = server.store.create(pod)
    second = server.store.create(pod_object("second", memory=6000))
    third = server.store.create(pod_object("third", memory=3000))

    async with running(configure(allocate_timeout_seconds=0.01)) as controller:
        assert await controller.bind(first, "n0") == ""
        assert "quota" in await controller.bind(second, "n1")

        bound = server.store.get("pods", "first")
        ended = [{"name": init["name"], "state": {"terminated": {"exitCode": 0}}}]
        bound["status"] = {"phase": "Pending", "initContainerStatuses": ended}
        server.store.update(bound)
        await becomes(used, 3000, controller)
        assert await controller.bind(second, "n1") == ""
        assert "quota" in await controller.bind(third, "n1")

        server.store.delete("pods", "first")
        await becomes(used, 6000, controller)
        assert await controller.bind(third, "n1") == ""


async def test_quota_that_changes_counts_from_then_on_and_touches_no_running_pod(
    server: ApiServer, configure: Configure
) -> None:
    quota = server.store.create(quota_object("gpus", memory=5000))
    first = server.store.create(pod_object("first", memory=3000))
    second = server.store.create(pod_object("second", memory=3000))

    async with running(configure(allocate_timeout_seconds=0.01)) as controller:
        assert await controller.bind(first, "n0") == ""
        quota = server.store.update({**quota, "spec": quota_object("gpus", memory=1000)["spec"]})
        await becomes(limit, 1000, controller)
        assert "0 of 1000 left" in await controller.bind(second, "n1")
        assert await used(controller) == 3000

        server.store.update({**quota, "spec": quota_object("gpus", memory=6000)["spec"]})
        await becomes(limit, 6000, controller)
        assert await controller.bind(second, "n1") == ""


async def test_tightest_of_several_quotas_counts_until_it_is_deleted(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(quota_object("wide", memory=6000))
    server.store.create(quota_object("narrow", memory=4000))
    pods = [server.store.create(pod_object(f"p{i}", memory=3000)) for i in range(3)]

    async with running(configure(allocate_timeout_seconds=0.01)) as controller:
        assert await controller.bind(pods[0], "n0") == ""
        assert "/narrow: " in await controller.bind(pods[1], "n1")
        server.store.delete("resourcequotas", "narrow")
        await becomes(limit, 6000, controller)
        assert await controller.bind(pods[1], "n1") == ""
        assert "/wide: " in await controller.bind(pods[2], "n1")
        server.store.delete("resourcequotas", "wide")
        await becomes(limit, 0, controller)
        assert await controller.bind(pods[2], "n1") == ""


async def test_key_that_cannot_be_read_is_reported_and_the_other_one_counts(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(quota_object("gpus", memory="1500m", cores=10))
    pod = server.store.create(pod_object("p", memory=10, cores=30))

    async with running(configure()) as controller:
        assert "limits.nvidia.com/gpucores" in await controller.bind(pod, "n0")
        assert await controller.value("hami_malformed_annotations_total", kind="quota") == 1

        async def told() -> bool:
            return any(
                e["reason"] == "QuotaUnreadable" and "limits.nvidia.com/gpumem" in e["message"]
                for e in server.store.list("events")
            )

        await until(told)


async def test_explicit_zero_blocks(server: ApiServer, configure: Configure) -> None:
    server.store.create(quota_object("none", memory=0))
    pod = server.store.create(pod_object("p", memory=1))

    async with running(configure()) as controller:
        assert (await controller.filter(pod, NODES))["NodeNames"] == []
        assert "0 of 0 left" in await controller.bind(pod, "n0")


async def test_next_controller_counts_the_same(server: ApiServer, configure: Configure) -> None:
    server.store.create(quota_object("gpus", memory=5000, cores=100))
    bound = pod_object("bound", memory=3000)
    bound["metadata"]["annotations"] = {
        codec.NODE_KEY: "n0",
        codec.BIND_PHASE_KEY: "success",
        NVIDIA.allocated_key: "GPU-n0-0,NVIDIA,3000,30:;",
    }
    bound["spec"]["nodeName"] = "n0"
    server.store.create(bound)
    pod = server.store.create(pod_object("p", memory=3000))

    for _ in range(2):
        async with running(configure()) as controller:
            assert "2000 of 5000 left" in await controller.bind(pod, "n1")
            namespace = namespace_of(server, "p")
            labels = {"namespace": namespace, "zone": "vGPU"}
            for resource, use, most in ((MEMORY, 3000, 5000), (CORES, 30, 100)):
                own = {**labels, "quota_name": resource}
                assert (
                    await controller.value("hami_resource_quota_used", limit=str(most), **own)
                    == use
                )
                assert await controller.value("hami_resource_quota_limit", **own) == most


async def test_usage_without_a_quota_is_shown_with_limit_0(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p", memory=3000))

    async with running(configure()) as controller:
        assert await controller.bind(pod, "n0") == ""
        metrics = await controller.metrics()

    limits = {dict(key)["limit"] for key in metrics["hami_resource_quota_used"]}
    assert limits == {"0"}
    assert "hami_resource_quota_limit" not in metrics


async def test_share_of_a_device_counts_as_what_it_is_on_the_device(
    server: ApiServer, configure: Configure
) -> None:
    """Half of a large device is too much, half of a small one is not."""
    server.store.create(node_object("small", gpus("small", 1, memory=10_000)))
    server.store.create(quota_object("gpus", memory=15_000))
    pod = pod_object("p", memory=None)
    limits = {NVIDIA.resources.count: "1", NVIDIA.resources.memory_percentage: "50"}
    pod["spec"]["containers"][0]["resources"] = {"limits": limits, "requests": limits}
    pod = server.store.create(pod)

    async with running(configure()) as controller:
        assert "needs 20000 MiB, 15000 of 15000 left" in await controller.bind(pod, "n0")
        assert await controller.bind(pod, "small") == ""
        assert await used(controller) == 5000
