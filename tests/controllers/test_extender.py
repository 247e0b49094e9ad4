"""Filter and prioritize as a scheduler calls them: over HTTP, in both modes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from hami.config import Settings
from hami.controllers import wire
from hami.errors import CodecError
from hami.sandbox.apiserver import ApiServer
from hami.sandbox.apiserver.faults import Fault
from tests.support.controller import gpus, node_object, pod_object, running
from tests.support.kube import until

NODES = ["n0", "n1"]
Configure = Callable[..., Settings]


async def test_filter_returns_every_feasible_node_and_why_the_others_are_not(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(node_object("small", gpus("small", 1, memory=2000)))
    pod = server.store.create(pod_object("p", memory=3000))

    async with running(configure()) as controller:
        answer = await controller.filter(pod, ["n1", "small", "ghost", "n0"])

    assert answer == {
        "Nodes": None,
        "NodeNames": ["n1", "n0"],
        "FailedNodes": {"small": "1/1 CardInsufficientMemory", "ghost": "node unregistered"},
        "FailedAndUnresolvableNodes": None,
        "Error": "",
    }


async def test_pod_without_devices_passes_untouched(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p", gpus=0, memory=None))

    async with running(configure()) as controller:
        answer = await controller.filter(pod, ["n1", "ghost"])

    assert answer["NodeNames"] == ["n1", "ghost"]
    assert answer["FailedNodes"] is None


async def test_choice_is_held_for_the_next_pod_to_see(
    server: ApiServer, configure: Configure
) -> None:
    """Each node has two devices, so of five pods that want one alone the last finds none."""
    async with running(configure()) as controller:
        answers = []
        for i in range(5):
            pod = server.store.create(pod_object(f"p{i}", memory=30_000))
            answers.append(await controller.filter(pod, NODES))

    assert [len(answer["NodeNames"]) for answer in answers] == [2, 2, 1, 1, 0]
    assert answers[-1]["FailedNodes"] == dict.fromkeys(NODES, "2/2 CardInsufficientMemory")


async def test_filter_of_the_same_pod_replaces_its_hold(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p", gpus=2, memory=30_000))

    async with running(configure()) as controller:
        for _ in range(3):
            assert (await controller.filter(pod, NODES))["NodeNames"] == NODES
        usage = await controller.usage()

    assert [slots for slots, _, _ in usage.values()] == [1, 1]


async def test_hold_that_nobody_comes_back_for_ends(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p"))

    async with running(configure(hold_seconds=0.01)) as controller:
        await controller.filter(pod, NODES)

        async def freed() -> bool:
            return not await controller.usage()

        await until(freed)
        assert await controller.value("hami_reservations_expired_total", state="held") == 1


async def test_pod_that_is_never_bound_does_not_keep_its_devices_by_asking_again(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p"))

    async with running(configure(hold_seconds=0.5)) as controller:

        async def freed_while_asking() -> bool:
            await controller.filter(pod, NODES)
            expired = await controller.value("hami_reservations_expired_total", state="held")
            return expired == 1

        await until(freed_while_asking)


@pytest.mark.parametrize("policy", ["binpack", "spread"])
async def test_prioritize_prefers_the_node_that_filter_holds(
    server: ApiServer, configure: Configure, policy: str
) -> None:
    async with running(configure(node_policy=policy)) as controller:
        first = server.store.create(pod_object("first"))
        await controller.filter(first, NODES)
        assert await controller.bind(first, "n1") == ""

        second = server.store.create(pod_object("second"))
        await controller.filter(second, NODES)
        scores = await controller.prioritize(second, NODES)
        held = {node for node, device in await controller.usage() if node != "n1"}

    best = "n1" if policy == "binpack" else "n0"
    assert scores[best] == 10
    assert scores[({"n0", "n1"} - {best}).pop()] < 10
    assert held == ({"n0"} if policy == "spread" else set())


async def test_prioritize_without_a_filter_scores_what_is_there(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p"))
    plain = server.store.create(pod_object("plain", gpus=0, memory=None))

    async with running(configure()) as controller:
        assert await controller.prioritize(pod, [*NODES, "ghost"]) == {
            "n0": 10,
            "n1": 0,
            "ghost": 0,
        }
        assert await controller.prioritize(plain, NODES) == {"n0": 0, "n1": 0}


async def test_exclusive_mode_returns_the_one_best_node(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure(mode="exclusive")) as controller:
        answers = []
        for i in range(3):
            pod = server.store.create(pod_object(f"p{i}", gpus=2, memory=30_000))
            answers.append(await controller.filter(pod, NODES))

    assert [answer["NodeNames"] for answer in answers] == [["n0"], ["n1"], []]


async def test_pod_that_does_not_exist_yet_holds_nothing(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        for name in ("would", "would-too"):
            answer = await controller.filter(pod_object(name, gpus=2, memory=30_000), NODES)
            assert answer["NodeNames"] == NODES
        assert (await controller.filter(pod_object("huge", gpus=9), NODES))["NodeNames"] == []
        assert await controller.usage() == {}
    assert server.store.list("events") == []


async def test_keys_are_read_in_any_letter_case(server: ApiServer, configure: Configure) -> None:
    pod = server.store.create(pod_object("p"))

    async with running(configure()) as controller:
        _, answer = await controller.post(
            "/filter", {"pod": pod, "nodenames": NODES, "nodes": None}
        )
        _, bound = await controller.post(
            "/bind",
            {
                "podname": "p",
                "PODNAMESPACE": pod["metadata"]["namespace"],
                "podUid": pod["metadata"]["uid"],
                "node": "n0",
            },
        )

    assert answer["NodeNames"] == NODES
    assert bound == {"Error": ""}


async def test_pod_that_fits_nowhere_is_told_why_in_an_event(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p", memory=50_000))

    async with running(configure()) as controller:
        await controller.filter(pod, [*NODES, "ghost"])

        async def told() -> bool:
            return bool(server.store.list("events"))

        await until(told)

    (event,) = server.store.list("events")
    assert (event["reason"], event["type"]) == ("FilteringFailed", "Warning")
    assert event["involvedObject"]["uid"] == pod["metadata"]["uid"]
    assert event["message"] == (
        "no available node, 3 do not fit: 2 x CardInsufficientMemory, 1 x node unregistered; "
        "nearest: n0: GPU-n0-0 lacks 10000 MiB"
    )


async def test_pod_is_told_again_only_when_the_reason_is_another(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p", memory=50_000))

    async with running(configure()) as controller:
        for names in (NODES, NODES, ["n1"], NODES):
            await controller.filter(pod, names)

        async def told() -> bool:
            return bool(sum(event["count"] for event in server.store.list("events")) == 3)

        await until(told)

    assert len(server.store.list("events")) == 2


async def test_request_that_cannot_be_read_is_an_error_and_disturbs_nobody(
    server: ApiServer, configure: Configure
) -> None:
    bad = pod_object("bad", gpus=1)
    bad["metadata"]["uid"] = "bad"
    bad["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpumem"] = "lots"
    good = server.store.create(pod_object("good"))

    async with running(configure()) as controller:
        answer = await controller.filter(bad, NODES)
        fine = await controller.filter(good, NODES)

    assert "nvidia.com/gpumem" in answer["Error"]
    assert fine["NodeNames"] == NODES


HOSTILE: list[Any] = [
    pytest.param(b"", id="empty"),
    pytest.param(b"not json", id="text"),
    pytest.param(b"\xff\xfe", id="no utf-8"),
    pytest.param(b"[]", id="array"),
    pytest.param(b"{}", id="nothing in it"),
    pytest.param(b"null", id="null"),
    pytest.param(b'{"Pod":null,"NodeNames":[]}', id="null pod"),
    pytest.param(b'{"Pod":[],"NodeNames":[]}', id="pod of wrong type"),
    pytest.param(b'{"Pod":{},"NodeNames":"n0"}', id="names of wrong type"),
    pytest.param(b'{"Pod":{},"Nodes":{"items":[null]}}', id="null node"),
    pytest.param(b'{"Pod":{},"NodeNames":null}', id="no nodes"),
    pytest.param(b'{"Pod":{},"NodeNames":["n0"' + b',"n0"' * 50_000 + b"]}", id="too many nodes"),
    pytest.param(b'{"Pod":' + b"[" * 100_000, id="deep"),
    pytest.param(b'{"Pod":{"spec":{"containers":[null]}},"NodeNames":[]}', id="null container"),
    pytest.param(b'{"PodName":1,"PodNamespace":"d","PodUID":"u","Node":"n"}', id="number as name"),
    pytest.param(
        b'{"PodName":"..","PodNamespace":"d","PodUID":"u","Node":"n"}', id="way out of a path"
    ),
]


@pytest.mark.parametrize("body", HOSTILE)
async def test_hostile_body_gets_an_error_in_the_protocols_words(
    server: ApiServer, configure: Configure, body: bytes
) -> None:
    pod = server.store.create(pod_object("p"))

    async with running(configure()) as controller:
        for path in ("/filter", "/bind"):
            status, answer = await controller.post(path, body)
            assert status == 200
            assert answer["Error"]
        assert await controller.post("/prioritize", body) == (200, [])
        assert (await controller.filter(pod, NODES))["NodeNames"] == NODES


def test_more_whole_nodes_than_any_cluster_has_are_refused() -> None:
    nodes = b",".join([b'{"metadata":{"name":"n"}}'] * (wire.MAX_NODES + 1))

    with pytest.raises(CodecError, match=f"at most {wire.MAX_NODES} nodes"):
        wire.ArgsDecoder().decode(b'{"Pod":{},"Nodes":{"items":[' + nodes + b"]}}")


async def test_body_beyond_the_bound_is_refused(server: ApiServer, configure: Configure) -> None:
    async with running(configure(max_body_bytes=1000, max_review_bytes=500)) as controller:
        _, answer = await controller.post("/filter", b"x" * 2000)
        _, review = await controller.post("/webhook", b"x" * 600)

    assert "at most 1000 bytes" in answer["Error"]
    assert review["response"]["allowed"] is False
    assert "at most 500 bytes" in review["response"]["status"]["message"]


async def test_broken_compression_and_broken_connections_disturb_nobody(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p"))

    async with running(configure()) as controller:
        async with controller.session.post(
            controller.url + "/filter", data=b"no gzip", headers={"Content-Encoding": "gzip"}
        ) as response:
            assert "malformed" in (await response.json())["Error"]
        port = int(controller.url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /filter HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        await writer.drain()
        writer.transport.abort()

        async def noticed() -> bool:
            return await controller.value("hami_extender_seconds_count", result="error") == 2

        await until(noticed)
        assert (await controller.filter(pod, NODES))["NodeNames"] == NODES


@pytest.mark.parametrize("given", [b"\xff\xfe", b"a b", b"x" * 65])
async def test_request_id_that_is_none_is_not_repeated(
    server: ApiServer, configure: Configure, given: bytes
) -> None:
    async with running(configure()) as controller:
        port = int(controller.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /bind HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n"
            b"X-Request-Id: " + given + b"\r\n\r\n{}"
        )
        answer = await reader.read()
        writer.close()

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert given not in answer


async def test_unknown_path_and_wrong_method_are_https_own_errors(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        assert (await controller.post("/permit", b"{}"))[0] == 404
        async with controller.session.get(controller.url + "/filter") as response:
            assert response.status == 405


@pytest.mark.faults
async def test_before_the_sync_questions_are_refused_and_admission_works(
    server: ApiServer, configure: Configure
) -> None:
    slow = server.faults.add(Fault(verb="list", resource="pods", delay_seconds=60))

    async with running(configure(), ready=False) as controller:
        answer = await controller.filter(pod_object("p"), NODES)
        _, review = await controller.post(
            "/webhook",
            {"kind": "AdmissionReview", "request": {"uid": "u", "object": pod_object("p")}},
        )
        async with controller.session.get(controller.health_url + "/readyz") as response:
            readiness = response.status, await response.text()
        server.faults.remove(slow)

    assert "not synced" in answer["Error"]
    assert review["response"]["allowed"] is True
    assert readiness[0] == 503
    assert "not synced" in readiness[1]
