"""Failures on purpose: each kind does what it says, to the requests it is about."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import aiohttp
import anyio
import pytest

from hami.sandbox.apiserver import ApiServer, Distortion, Drop, Fault
from tests.support.kube import until
from tests.support.rest import MERGE_PATCH, Rest, make_pod

PODS = "/api/v1/namespaces/default/pods"
LABEL = {"metadata": {"labels": {"a": "b"}}}


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    async with ApiServer().running() as server, Rest.connect(server) as client:
        yield client


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (409, "Conflict"),
        (410, "Expired"),
        (429, "TooManyRequests"),
        (500, "InternalError"),
        (503, "ServiceUnavailable"),
    ],
)
async def test_refusals_come_as_often_as_ordered(rest: Rest, status: int, reason: str) -> None:
    await rest.post(PODS, make_pod())
    fault = rest.server.faults.add(Fault(verb="patch", resource="pods", status=status, times=2))

    for _ in range(2):
        answer = await rest.patch(f"{PODS}/web", LABEL, MERGE_PATCH, expect=status)
        assert answer["reason"] == reason
    await rest.patch(f"{PODS}/web", LABEL, MERGE_PATCH)

    assert fault.hits == 2


async def test_fault_spares_other_verbs_resources_and_names(rest: Rest) -> None:
    await rest.post(PODS, make_pod(name="a"))
    await rest.post(PODS, make_pod(name="b"))
    rest.server.faults.add(Fault(verb="get", resource="pods", name="a", status=500))

    await rest.get(f"{PODS}/a", expect=500)
    await rest.get(f"{PODS}/b")
    await rest.get(PODS)
    await rest.get("/api/v1/nodes")


async def test_throttling_says_when_to_come_back(rest: Rest) -> None:
    rest.server.faults.add(Fault(status=429, retry_after_seconds=3))

    async with rest.session.get(PODS) as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "3")


async def test_chance_comes_from_the_seed() -> None:
    async def outcomes(seed: int) -> list[int]:
        async with ApiServer(fault_seed=seed).running() as server, Rest.connect(server) as rest:
            server.faults.add(Fault(probability=0.5, status=500))
            statuses = []
            for _ in range(20):
                async with rest.session.get(PODS) as response:
                    statuses.append(response.status)
            return statuses

    first = await outcomes(1)

    assert set(first) == {200, 500}
    assert first == await outcomes(1)


async def test_connection_cut_before_the_write_leaves_no_trace(rest: Rest) -> None:
    rest.server.faults.add(Fault(verb="create", drop=Drop.BEFORE, times=1))

    with pytest.raises(aiohttp.ClientConnectionError):
        await rest.post(PODS, make_pod())

    assert rest.server.store.find("pods", "web") is None


async def test_connection_cut_after_the_write_hides_that_it_happened(rest: Rest) -> None:
    rest.server.faults.add(Fault(verb="create", drop=Drop.AFTER, times=1))

    with pytest.raises(aiohttp.ClientConnectionError):
        await rest.post(PODS, make_pod())

    assert rest.server.store.find("pods", "web") is not None


async def test_watch_line_is_cut_in_the_middle(rest: Rest) -> None:
    rest.server.faults.add(
        Fault(verb="watch", distortion=Distortion.TRUNCATE, after_lines=1, times=1)
    )
    await rest.post(PODS, make_pod(name="a"))
    await rest.post(PODS, make_pod(name="b"))

    async with rest.watch(PODS) as stream:
        (whole,) = await stream.take(1)
        with pytest.raises((aiohttp.ClientPayloadError, AssertionError)):
            await stream.take(1)

    assert whole["object"]["metadata"]["name"] == "a"


async def test_watch_line_is_no_json_and_the_stream_goes_on(rest: Rest) -> None:
    rest.server.faults.add(Fault(verb="watch", distortion=Distortion.MALFORM))
    await rest.post(PODS, make_pod(name="a"))
    await rest.post(PODS, make_pod(name="b"))

    async with rest.watch(PODS) as stream:
        with pytest.raises(json.JSONDecodeError):
            await stream.take(1)
        (following,) = await stream.take(1)

    assert following["object"]["metadata"]["name"] == "b"


async def test_watch_events_come_twice(rest: Rest) -> None:
    rest.server.faults.add(Fault(verb="watch", distortion=Distortion.DUPLICATE))
    await rest.post(PODS, make_pod())

    async with rest.watch(PODS) as stream:
        first, second = await stream.take(2)

    assert first == second


async def test_silent_watch_neither_speaks_nor_ends(rest: Rest) -> None:
    rest.server.faults.add(Fault(verb="watch", distortion=Distortion.SILENCE, after_lines=1))
    await rest.post(PODS, make_pod(name="a"))

    async with rest.watch(f"{PODS}?timeoutSeconds=1") as stream:
        await stream.take(1)
        await rest.post(PODS, make_pod(name="b"))
        with anyio.move_on_after(0.2) as waited:
            await stream.take(1)

    assert waited.cancelled_caught


async def test_watch_ends_early(rest: Rest) -> None:
    rest.server.faults.add(Fault(verb="watch", distortion=Distortion.END, after_lines=1))
    await rest.post(PODS, make_pod(name="a"))
    await rest.post(PODS, make_pod(name="b"))

    async with rest.watch(PODS) as stream:
        assert len(await stream.take_all()) == 1


async def test_forgotten_changes_send_watches_back_to_listing(rest: Rest) -> None:
    pod = await rest.post(PODS, make_pod())

    rest.server.faults.forget_changes()

    version = pod["metadata"]["resourceVersion"]
    async with rest.watch(f"{PODS}?resourceVersion={version}") as stream:
        (event,) = await stream.take_all()
    assert event["object"]["code"] == 410


async def test_server_that_is_down_cuts_all_connections(rest: Rest) -> None:
    async with rest.watch(PODS) as stream:
        rest.server.faults.take_down(60)
        with pytest.raises(aiohttp.ClientError):
            await stream.take_all()
    with pytest.raises(aiohttp.ClientConnectionError):
        await rest.get(PODS)

    rest.server.faults.clear()

    assert (await rest.get(PODS))["items"] == []


async def test_early_cut_leaves_the_request_to_be_handled_later(rest: Rest) -> None:
    pod = await rest.post(PODS, make_pod())
    rest.server.faults.add(
        Fault(verb="patch", resource="pods", drop=Drop.EARLY, delay_seconds=0.1, times=1)
    )

    with pytest.raises(aiohttp.ClientError):
        await rest.patch(f"{PODS}/web", LABEL, MERGE_PATCH)
    assert rest.server.store.get("pods", "web") == pod, "nothing has happened yet"

    async def happened() -> bool:
        return bool((await rest.get(f"{PODS}/web"))["metadata"].get("labels") == {"a": "b"})

    await until(happened)
