"""Requests: every way of getting no good answer becomes an error that says what to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from aiohttp import web

from hami.config import KubeSettings
from hami.errors import (
    CodecError,
    ConflictError,
    GoneError,
    KubeError,
    NotFoundError,
    NotLeaderError,
    ThrottledError,
    UnavailableError,
)
from hami.kube import client as kube_client
from hami.kube.backoff import retrying
from hami.kube.client import KubeClient, connect
from hami.kube.resources import PODS, resource_of
from hami.kube.throttle import Lane
from tests.support.cluster import Cluster, make_pod
from tests.support.kube import SOON, create_pod, value_of
from tests.support.scripted import Handler, scripted, write_kubeconfig


@asynccontextmanager
async def asking(handler: Handler, directory: Path, **settings: float) -> AsyncIterator[KubeClient]:
    async with scripted(handler) as address:
        path = write_kubeconfig(directory / "config", address)
        async with connect(KubeSettings(kubeconfig=path, **settings)) as client:  # type: ignore[arg-type] # numbers all
            yield client


def answering(status: int, body: bytes = b"", **headers: str) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers=headers)

    return handle


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/v1/pods", "pods"),
        ("/api/v1/namespaces/a/pods/b", "pods"),
        ("/api/v1/namespaces/a/pods/b/binding", "pods/binding"),
        ("/api/v1/nodes/n/status", "nodes/status"),
        ("/api/v1/namespaces", "namespaces"),
        ("/api/v1/namespaces/a", "namespaces"),
        ("/apis/coordination.k8s.io/v1/namespaces/a/leases/l", "leases"),
        ("/api/v1/namespaces/a/pods?watch=1", "pods"),
        ("/healthz", "other"),
    ],
)
def test_a_metrics_label_names_the_resource_and_never_an_object(path: str, expected: str) -> None:
    assert resource_of(path) == expected


def test_names_cannot_lead_out_of_their_place_in_a_path() -> None:
    path = PODS.path("../kube-system", "a/../b?x=1#y")

    assert path == "/api/v1/namespaces/..%2Fkube-system/pods/a%2F..%2Fb%3Fx%3D1%23y"


async def test_objects_are_created_read_replaced_patched_and_deleted(
    client: KubeClient, cluster: Cluster
) -> None:
    made = await create_pod(client, "a", cluster.namespace)
    path = PODS.path(cluster.namespace, "a")

    read = json.loads(await client.get(path))
    read["metadata"]["labels"] = {"x": "1"}
    replaced = json.loads(await client.put(path, read))
    patched = json.loads(await client.patch(path, {"metadata": {"labels": {"y": "2"}}}))
    await client.delete(
        path, {"gracePeriodSeconds": 0, "preconditions": {"uid": made.metadata.uid}}
    )

    assert replaced["metadata"]["labels"] == {"x": "1"}
    assert patched["metadata"]["labels"] == {"x": "1", "y": "2"}
    with pytest.raises(NotFoundError):
        await client.get(path)


async def test_refusals_of_a_real_server_have_their_errors(
    client: KubeClient, cluster: Cluster
) -> None:
    await create_pod(client, "a", cluster.namespace)

    with pytest.raises(ConflictError, match="already exists"):
        await create_pod(client, "a", cluster.namespace)
    with pytest.raises(NotFoundError, match="nobody"):
        await client.get(PODS.path(cluster.namespace, "nobody"))
    with pytest.raises(KubeError) as refusal:
        await client.post(PODS.path(cluster.namespace), make_pod("", namespace=cluster.namespace))
    assert refusal.value.status == 422


async def test_requests_are_counted_by_verb_resource_and_code(
    client: KubeClient, cluster: Cluster
) -> None:
    await create_pod(client, "a", cluster.namespace)
    with pytest.raises(NotFoundError):
        await client.get(PODS.path(cluster.namespace, "b"))

    assert value_of(client.metrics.requests, "POST", "pods", "201") == 1
    assert value_of(client.metrics.requests, "GET", "pods", "404") == 1


async def test_pages_of_a_list_are_consistent(client: KubeClient, cluster: Cluster) -> None:
    for number in range(5):
        await create_pod(client, f"pod-{number}", cluster.namespace)

    names, versions = [], set()
    async for page in client.list_pages(PODS.path(cluster.namespace), page_size=2):
        names.append([json.loads(bytes(item))["metadata"]["name"] for item in page.items or ()])
        versions.add(page.metadata.resource_version)
        if len(names) == 1:
            await create_pod(client, "pod-later", cluster.namespace)

    assert names == [["pod-0", "pod-1"], ["pod-2", "pod-3"], ["pod-4"]]
    assert len(versions) == 1


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    async with scripted(answering(200)) as address:
        path = write_kubeconfig(tmp_path / "config", address)

    async with connect(KubeSettings(kubeconfig=path)) as client:
        with pytest.raises(UnavailableError) as refusal:
            await client.get("/x")
    assert refusal.value.status == 0
    assert value_of(client.metrics.requests, "GET", "other", "0") == 1


async def test_a_server_that_does_not_answer_is_unavailable_after_the_deadline(
    tmp_path: Path,
) -> None:
    async def never(_: web.Request) -> web.Response:
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async with asking(never, tmp_path, request_timeout_seconds=0.1) as client:
        with anyio.fail_after(SOON), pytest.raises(UnavailableError, match=r"within 0\.1 s"):
            await client.get("/x")


async def test_an_answer_that_stops_in_the_middle_is_unavailable(tmp_path: Path) -> None:
    async def stop(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.close()
        return response

    async with asking(stop, tmp_path) as client:
        with pytest.raises(UnavailableError):
            await client.get("/x")


async def test_a_turn_that_would_come_after_the_deadline_is_refused_at_once(tmp_path: Path) -> None:
    slow = asking(answering(200), tmp_path, qps=0.001, burst=1, request_timeout_seconds=600.0)
    async with slow as client:
        await client.get("/x")
        with anyio.fail_after(10), pytest.raises(ThrottledError, match="longer than 600 s"):
            await client.get("/x")


async def test_a_server_that_has_too_much_to_do_is_asked_less(tmp_path: Path) -> None:
    busy = answering(429, b"{}", **{"Retry-After": "3"})
    async with asking(busy, tmp_path) as client:
        with pytest.raises(ThrottledError):
            await client.patch("/api/v1/namespaces/a/pods/p", {}, lane=Lane.URGENT)
        waits = {lane: client.expected_wait(lane, requests=1) for lane in Lane}
        throttled = value_of(client.metrics.throttled, "urgent")

    assert waits[Lane.URGENT] == pytest.approx(3.0, abs=1.0)
    assert waits[Lane.ROUTINE] == pytest.approx(3.0, abs=1.0)
    assert waits[Lane.LEASE] == 0.0
    assert throttled == 1


async def test_an_eviction_that_a_budget_forbids_slows_nothing_down(tmp_path: Path) -> None:
    async with asking(answering(429, b"{}", **{"Retry-After": "10"}), tmp_path) as client:
        with pytest.raises(ThrottledError):
            await client.post("/api/v1/namespaces/a/pods/p/eviction", {}, lane=Lane.URGENT)

        assert client.expected_wait(Lane.URGENT, requests=1) == 0.0


async def test_an_intermediarys_page_is_an_error_that_quotes_it(tmp_path: Path) -> None:
    async with asking(answering(502, b"<h1>Bad Gateway</h1>"), tmp_path) as client:
        with pytest.raises(UnavailableError, match="Bad Gateway"):
            await client.get("/x")


async def test_a_throttled_request_says_how_long_to_wait(tmp_path: Path) -> None:
    busy = answering(429, b"{}", **{"Retry-After": "3"})
    async with asking(busy, tmp_path) as client:
        with pytest.raises(ThrottledError) as refusal:
            await client.get("/x")
    assert refusal.value.retry_after_seconds == 3.0


async def test_a_redirect_is_not_followed_for_it_could_take_the_token_along(
    tmp_path: Path,
) -> None:
    elsewhere = answering(307, Location="http://localhost:1/")
    async with asking(elsewhere, tmp_path) as client:
        with pytest.raises(KubeError) as refusal:
            await client.get("/x")
    assert refusal.value.status == 307


async def test_an_endless_answer_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_client, "MAX_RESPONSE_BYTES", 1000)
    async with asking(answering(200, b"x" * 1001), tmp_path) as client:
        with pytest.raises(CodecError, match="at most 1000 bytes"):
            await client.get("/x")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"items":[]}', b'{"metadata":{},"items":[]}'])
async def test_a_list_that_is_none_is_a_clear_error(tmp_path: Path, body: bytes) -> None:
    async with asking(answering(200, body), tmp_path) as client:
        with pytest.raises(CodecError, match="expected a list"):
            async for _ in client.list_pages("/x"):
                pass


async def test_a_list_that_never_ends_is_begun_again(tmp_path: Path) -> None:
    page = b'{"metadata":{"resourceVersion":"1","continue":"same"},"items":[]}'
    async with asking(answering(200, page), tmp_path) as client:
        with pytest.raises(GoneError):
            async for _ in client.list_pages("/x"):
                pass


async def test_a_stream_hands_on_bytes_as_they_come(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one")
        await go_on.wait()
        await response.write(b"two")
        return response

    async with asking(drip, tmp_path) as client, client.stream("/x") as stream:
        assert await stream.read() == b"one"
        go_on.set()
        assert await stream.read() == b"two"
        assert await stream.read() == b""


class Guard:
    """Lets so many askings pass."""

    def __init__(self, passes: int) -> None:
        self.passes = passes
        self.asked = 0

    def __call__(self) -> None:
        self.asked += 1
        if self.asked > self.passes:
            raise NotLeaderError(f"asked {self.asked} times")


@pytest.mark.parametrize("passes", [0, 1], ids=["before a connection", "before the bytes go"])
async def test_a_request_whose_guard_refuses_is_not_carried_out(
    client: KubeClient, cluster: Cluster, passes: int
) -> None:
    pods, guard = PODS.path(cluster.namespace), Guard(passes)

    with pytest.raises(NotLeaderError, match=f"asked {passes + 1} times"):
        await client.post(pods, make_pod("p", namespace=cluster.namespace), guard=guard)

    assert json.loads(await client.get(pods))["items"] == []


async def test_a_guard_is_asked_after_the_wait_for_a_turn(tmp_path: Path) -> None:
    over = False

    def guard() -> None:
        if over:
            raise NotLeaderError("over")

    async with asking(answering(200, b"{}"), tmp_path, qps=5.0, burst=1) as client:
        await client.post("/first", {}, guard=guard)
        async with anyio.create_task_group() as group:

            async def waits() -> None:
                with pytest.raises(NotLeaderError):
                    await client.post("/second", {}, guard=guard)

            group.start_soon(waits)
            await anyio.lowlevel.checkpoint()
            over = True


async def test_a_guard_is_asked_again_before_each_retry(tmp_path: Path) -> None:
    guard = Guard(passes=2)

    async with asking(answering(503), tmp_path) as client:
        with pytest.raises(NotLeaderError):
            await retrying(lambda: client.post("/", {}, guard=guard), "it", uniform=lambda: 0.0)

    assert guard.asked == 3
