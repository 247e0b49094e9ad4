"""Watches: what they show, how they resume, and how they end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hami.sandbox.apiserver import ApiServer, Store, selectors, watching
from hami.sandbox.apiserver.kinds import POD
from hami.sandbox.apiserver.records import Selection
from tests.support.rest import MERGE_PATCH, Rest, make_pod

PODS = "/api/v1/namespaces/default/pods"


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    server = ApiServer(event_window=8, bookmark_seconds=0.05)
    async with server.running(), Rest.connect(server) as client:
        yield client


async def test_watch_goes_on_from_a_version(rest: Rest) -> None:
    first = await rest.post(PODS, make_pod(name="a"))
    version = first["metadata"]["resourceVersion"]

    async with rest.watch(f"{PODS}?resourceVersion={version}") as stream:
        created = await rest.post(PODS, make_pod(name="b"))
        patched = await rest.patch(f"{PODS}/a", {"metadata": {"labels": {"x": "y"}}}, MERGE_PATCH)
        deleted = await rest.delete(f"{PODS}/b")

        assert await stream.take(3) == [
            {"type": "ADDED", "object": created},
            {"type": "MODIFIED", "object": patched},
            {"type": "DELETED", "object": deleted},
        ]


@pytest.mark.parametrize("version", ["", "0"])
async def test_watch_without_a_version_begins_with_what_there_is(rest: Rest, version: str) -> None:
    pod = await rest.post(PODS, make_pod())

    async with rest.watch(f"{PODS}?resourceVersion={version}") as stream:
        assert await stream.take(1) == [{"type": "ADDED", "object": pod}]


async def test_watch_of_a_selection_sees_objects_enter_and_leave_it(rest: Rest) -> None:
    pod = await rest.post(PODS, make_pod(labels={"tier": "web"}))
    version = pod["metadata"]["resourceVersion"]

    async with rest.watch(f"{PODS}?resourceVersion={version}&labelSelector=tier=db") as stream:
        for tier in ("db", "web", "db"):
            patch = {"metadata": {"labels": {"tier": tier}}}
            await rest.patch(f"{PODS}/web", patch, MERGE_PATCH)
        await rest.delete(f"{PODS}/web")
        entered, left, entered_again, deleted = await stream.take(4)

    types = [event["type"] for event in (entered, left, entered_again, deleted)]
    assert types == ["ADDED", "DELETED", "ADDED", "DELETED"]
    assert left["object"]["metadata"]["labels"] == {"tier": "db"}
    assert int(left["object"]["metadata"]["resourceVersion"]) == (
        int(entered["object"]["metadata"]["resourceVersion"]) + 1
    )


async def test_watch_of_a_field_sees_a_pod_arrive_on_its_node(rest: Rest) -> None:
    await rest.post(PODS, make_pod(name="other"))
    async with rest.watch("/api/v1/pods?fieldSelector=spec.nodeName=n1") as stream:
        await rest.post(PODS, make_pod())
        await rest.post(f"{PODS}/web/binding", {"target": {"name": "n1"}})

        (event,) = await stream.take(1)

    assert (event["type"], event["object"]["spec"]["nodeName"]) == ("ADDED", "n1")


async def test_watch_of_one_name_sees_nothing_else(rest: Rest) -> None:
    async with rest.watch(f"{PODS}/web") as stream:
        await rest.post(PODS, make_pod(name="other"))
        pod = await rest.post(PODS, make_pod())

        assert await stream.take(1) == [{"type": "ADDED", "object": pod}]


async def test_watch_from_a_forgotten_version_ends_with_gone(rest: Rest) -> None:
    first = await rest.post(PODS, make_pod(name="first"))
    for index in range(12):
        await rest.post(PODS, make_pod(name=f"p{index}"))

    version = first["metadata"]["resourceVersion"]
    async with rest.watch(f"{PODS}?resourceVersion={version}") as stream:
        (event,) = await stream.take_all()

    assert event["type"] == "ERROR"
    assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")


async def test_list_and_watch_from_its_version_miss_nothing(rest: Rest) -> None:
    for index in range(12):
        await rest.post(PODS, make_pod(name=f"p{index}"))
    listed = await rest.get(PODS)

    version = listed["metadata"]["resourceVersion"]
    async with rest.watch(f"{PODS}?resourceVersion={version}") as stream:
        late = await rest.post(PODS, make_pod(name="late"))
        assert await stream.take(1) == [{"type": "ADDED", "object": late}]


async def test_watch_from_the_future_is_refused(rest: Rest) -> None:
    async with rest.watch(f"{PODS}?resourceVersion=999999") as stream:
        (event,) = await stream.take_all()

    assert event["object"]["code"] == 504
    assert "Too large resource version" in event["object"]["message"]


async def test_bookmarks_tell_the_version_reached(rest: Rest) -> None:
    async with rest.watch(f"{PODS}?allowWatchBookmarks=true") as stream:
        await rest.post("/api/v1/namespaces/default/configmaps", {"metadata": {"name": "c"}})
        reached = str(rest.server.store.version)
        with anyio.fail_after(5):
            while True:
                (event,) = await stream.take(1)
                assert event["type"] == "BOOKMARK"
                assert event["object"]["kind"] == "Pod"
                if event["object"]["metadata"]["resourceVersion"] == reached:
                    break


async def test_watch_ends_when_its_time_is_up(rest: Rest) -> None:
    async with rest.watch(f"{PODS}?timeoutSeconds=1") as stream:
        assert await stream.take_all() == []


async def test_streaming_list_marks_the_end_of_what_there_was(rest: Rest) -> None:
    await rest.post(PODS, make_pod())
    query = "sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"

    async with rest.watch(f"{PODS}?{query}") as stream:
        added, marked = await stream.take(2)

    assert added["type"] == "ADDED"
    assert marked["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


async def test_watch_too_slow_for_the_log_is_cut_off() -> None:
    store = Store(event_window=4)
    collection = store.collection(POD)
    watch = watching.Watch(selection=Selection(), version=store.version)
    events = watching.events(collection, watch, version=lambda: store.version)
    store.create(make_pod(name="first"))
    assert len(await anext(events)) == 1

    for index in range(20):
        store.create(make_pod(name=f"p{index}"))

    assert [lines async for lines in events] == []


async def test_stopped_server_cuts_its_watches_and_starts_again_on_its_port() -> None:
    server = ApiServer()
    async with aiohttp.ClientSession() as session:
        async with server.running():
            url = server.url
            response = await session.get(f"{url}{PODS}?watch=1")
        with anyio.fail_after(10), pytest.raises(aiohttp.ClientError):
            await response.read()
    async with server.running(), Rest.connect(server) as rest:
        assert server.url == url
        assert (await rest.get(PODS))["items"] == []


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "label", "delete", "drop"]), st.sampled_from("abc")),
    max_size=25,
)


@dataclass
class Mirror:
    """What a client knows that lists once and then only watches, through drops."""

    store: Store
    selection: Selection
    objects: dict[str, Any] = field(default_factory=dict)
    version: int = 0

    def relist(self) -> None:
        records = self.store.collection(POD).select(self.selection)
        self.objects = {record.key[1]: record.decode() for record in records}
        self.version = self.store.version

    async def catch_up(self, *, lines: int | None = None) -> None:
        """Read the watch until it has nothing more to say, or only so many lines of it."""
        watch = watching.Watch(selection=self.selection, version=self.version, timeout_seconds=0.0)
        events = watching.events(
            self.store.collection(POD), watch, version=lambda: self.store.version
        )
        taken = 0
        async for chunk in events:
            for line in chunk:
                if lines is not None and taken >= lines:
                    await events.aclose()
                    return
                taken += 1
                self.apply(json.loads(line))

    def apply(self, event: Any) -> None:
        if event["type"] == "ERROR":
            assert event["object"]["code"] == 410
            self.relist()
            return
        metadata = event["object"]["metadata"]
        self.version = int(metadata["resourceVersion"])
        if event["type"] == "DELETED":
            del self.objects[metadata["name"]]
            return
        assert (event["type"] == "MODIFIED") is (metadata["name"] in self.objects)
        self.objects[metadata["name"]] = event["object"]


@settings(max_examples=80, deadline=None)
@given(operations=OPERATIONS, window=st.integers(2, 30), narrowed=st.booleans())
def test_watching_through_drops_reconstructs_the_store(
    operations: list[tuple[str, str]], window: int, narrowed: bool
) -> None:
    async def scenario() -> None:
        store = Store(event_window=window)
        labels = selectors.parse_labels("on=yes") if narrowed else ()
        mirror = Mirror(store=store, selection=Selection(labels=labels))
        mirror.relist()
        for action, name in operations:
            pod = store.find("pods", name)
            if action == "drop":
                await mirror.catch_up(lines=1)
            elif pod is None:
                store.create(make_pod(name=name, labels={"on": "yes"}))
            elif action == "delete":
                store.delete("pods", name)
            else:
                is_on = pod["metadata"]["labels"].get("on") == "yes"
                pod["metadata"]["labels"] = {"on": "no" if is_on and action == "label" else "yes"}
                pod["spec"]["priority"] = store.version
                store.update(pod)
        await mirror.catch_up()

        expected = store.list("pods", labels="on=yes" if narrowed else "")
        assert mirror.objects == {pod["metadata"]["name"]: pod for pod in expected}

    asyncio.run(scenario())
