"""Why pods wait, as it is answered over HTTP."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from hami.config import Settings
from hami.controllers.answers import Explanation, Explanations, Problem
from hami.controllers.explain import PODS_NAMED
from hami.sandbox.apiserver import ApiServer
from hami.sandbox.apiserver.faults import Fault
from tests.support.controller import Controller, place, pod_object, quota_object, running
from tests.support.kube import until

NODES = ["n0", "n1"]
Configure = Callable[..., Settings]


async def get(controller: Controller, path: str) -> tuple[int, bytes]:
    async with controller.session.get(controller.health_url + path) as response:
        assert response.content_type == "application/json"
        return response.status, await response.read()


async def explained(controller: Controller, name: str) -> Explanation:
    status, body = await get(controller, f"/v1/explain/default/{name}")
    assert status == 200, body
    return msgspec.json.decode(body, type=Explanation)


async def problem(controller: Controller, name: str) -> Problem:
    status, body = await get(controller, f"/v1/explain/default/{name}")
    assert status == 404, body
    return msgspec.json.decode(body, type=Problem)


async def known(controller: Controller, name: str) -> None:
    """Wait until the controller has seen the pod."""

    async def seen() -> bool:
        return (await get(controller, f"/v1/explain/default/{name}"))[0] == 200

    await until(seen)


async def test_nearest_miss_comes_first_with_the_pod_that_would_have_to_end(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        for node in NODES:
            await place(server, controller, node, f"large-{node}", memory=30_000)
            size = 25_000 if node == "n0" else 29_000
            await place(server, controller, node, f"small-{node}", memory=size)
        pod = server.store.create(pod_object("p", memory=16_000))
        await controller.filter(pod, [*NODES, "ghost"])
        answer = await explained(controller, "p")

    assert (answer.state, answer.pod, answer.asked_nodes) == ("unfit", "default/p", 3)
    first, second = answer.nearest
    assert first.line == "n0: GPU-n0-0 lacks 1000 MiB"
    assert first.would_fit == "would fit if pod default/small-n0 ended"
    assert first.pods == ("default/small-n0",)
    assert second.node == "n1"
    assert [(r.word, r.nodes) for r in answer.reasons] == [
        ("CardInsufficientMemory", 2),
        ("node unregistered", 1),
    ]
    assert answer.message.endswith("nearest: n0: GPU-n0-0 lacks 1000 MiB")


async def test_event_and_explanation_use_the_same_words(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p", memory=50_000))

    async with running(configure()) as controller:
        await controller.filter(pod, NODES)
        answer = await explained(controller, "p")

        async def told() -> bool:
            return bool(server.store.list("events"))

        await until(told)

    (event,) = server.store.list("events")
    assert event["message"] == answer.message


async def test_several_pods_would_have_to_end(server: ApiServer, configure: Configure) -> None:
    async with running(configure()) as controller:
        for i in range(4):
            await place(server, controller, "n0", f"r{i}", memory=20_000)
        pod = server.store.create(pod_object("p", gpus=2, memory=15_000))
        await controller.filter(pod, ["n0"])
        (near,) = (await explained(controller, "p")).nearest

    assert near.would_fit == "would fit if 2 pods ended"
    assert len(near.pods) == 2
    assert len(near.pods) <= PODS_NAMED


async def test_what_no_ending_pod_can_mend_is_not_promised(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p", memory=50_000))

    async with running(configure()) as controller:
        await place(server, controller, "n0", "r", memory=20_000)
        await controller.filter(pod, ["n0"])
        (near,) = (await explained(controller, "p")).nearest

    assert (near.would_fit, near.pods) == ("", ())


async def test_hold_in_the_way_and_room_since_then_are_said(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p", gpus=2, memory=30_000))
    other = server.store.create(pod_object("other", memory=30_000))

    async with running(configure(hold_seconds=600)) as controller:
        await controller.filter(other, ["n0"])
        await controller.filter(pod, ["n0"])
        (held,) = (await explained(controller, "p")).nearest
        await controller.filter(other, ["n1"])
        (fits,) = (await explained(controller, "p")).nearest

    assert held.would_fit == (
        "would fit if pod default/other, for which it is held, went elsewhere"
    )
    assert fits.would_fit == "fits now"


async def test_states_of_pods_that_wait(server: ApiServer, configure: Configure) -> None:
    fits = server.store.create(pod_object("fits"))
    server.store.create(pod_object("unasked"))
    broken = pod_object("broken")
    broken["metadata"]["annotations"] = {"hami.io/device-scoring-weights": "many"}
    server.store.create(broken)

    async with running(configure()) as controller:
        await controller.filter(fits, NODES)
        assert (await explained(controller, "fits")).state == "fits"
        assert "n0" in (await explained(controller, "fits")).message
        assert (await explained(controller, "unasked")).state == "unasked"
        unreadable = await explained(controller, "broken")

    assert unreadable.state == "unreadable"
    assert "device-scoring-weights" in unreadable.message


async def test_states_of_pods_that_do_not_wait(server: ApiServer, configure: Configure) -> None:
    server.store.create(pod_object("plain", gpus=0, memory=None))
    other = pod_object("other")
    other["spec"]["schedulerName"] = "default-scheduler"
    server.store.create(other)

    async with running(configure()) as controller:
        await place(server, controller, "n0", "bound", memory=3000)
        bound = await problem(controller, "bound")
        await controller.filter(server.store.create(pod_object("gone")), NODES)
        await known(controller, "gone")
        server.store.delete("pods", "gone", "default")

        async def forgotten() -> bool:
            return (await get(controller, "/v1/explain/default/gone"))[0] == 404

        await until(forgotten)
        unknown = await problem(controller, "gone")
        plain, other_ones = await problem(controller, "plain"), await problem(controller, "other")

    assert (bound.state, bound.node) == ("bound", "n0")
    assert [(d.container, d.memory) for d in bound.devices] == [("c0", 3000)]
    assert unknown.state == "unknown"
    assert "no such pod" in unknown.error
    assert plain.state == other_ones.state == "not-ours"


async def test_all_are_listed_by_priority_and_age(server: ApiServer, configure: Configure) -> None:
    for name, priority in (("a", 0), ("b", 10), ("c", 0)):
        pod = pod_object(name)
        pod["spec"]["priority"] = priority
        server.store.create(pod)

    async with running(configure()) as controller:
        status, body = await get(controller, "/v1/explain")

    listed = msgspec.json.decode(body, type=Explanations)
    assert status == 200
    assert (listed.pods[0].pod, listed.pods[0].priority) == ("default/b", 10)
    assert {pod.pod for pod in listed.pods[1:]} == {"default/a", "default/c"}
    assert listed.left_off == 0


async def test_lack_of_quota_is_said(server: ApiServer, configure: Configure) -> None:
    server.store.create(quota_object("gpus", memory=5000))
    pod = server.store.create(pod_object("p", memory=6000))

    async with running(configure()) as controller:
        await controller.filter(pod, NODES)
        answer = await explained(controller, "p")

    assert [(r.word, r.nodes) for r in answer.reasons] == [("ResourceQuotaNotFit", 2)]
    assert answer.message == (
        "no available node, 2 do not fit: 2 x ResourceQuotaNotFit; "
        "quota default/gpus: limits.nvidia.com/gpumem: needs 6000 MiB, 5000 of 5000 left"
    )


async def test_failed_bind_is_told(server: ApiServer, configure: Configure) -> None:
    pod = server.store.create(pod_object("p", memory=30_000))

    async with running(configure()) as controller:
        assert "ghost" in await controller.bind(pod, "ghost")
        answer = await explained(controller, "p")

    assert answer.state == "bind-failed"
    assert "ghost" in answer.message


@pytest.mark.parametrize("path", ["/v1/explain/default", "/v1/explain/a/b/c", "/v1/nonsense"])
async def test_other_paths_are_https_own_errors(
    server: ApiServer, configure: Configure, path: str
) -> None:
    async with (
        running(configure()) as controller,
        controller.session.get(controller.health_url + path) as response,
    ):
        assert response.status == 404


async def test_name_beyond_any_is_refused(server: ApiServer, configure: Configure) -> None:
    async with running(configure()) as controller:
        status, body = await get(controller, f"/v1/explain/default/{'x' * 300}")

    assert status == 400
    assert b"names" in body


@pytest.mark.faults
async def test_before_the_sync_there_is_no_answer(server: ApiServer, configure: Configure) -> None:
    slow = server.faults.add(Fault(verb="list", resource="pods", delay_seconds=60))

    async with running(configure(), ready=False) as controller:
        status, body = await get(controller, "/v1/explain")
        server.faults.remove(slow)

    assert status == 503
    assert b"not synced" in body
