"""Events are told once, counted up, bounded, and never in the way."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami.kube import events
from hami.kube.client import KubeClient
from hami.kube.events import EventRecorder, clip
from hami.kube.resources import EVENTS, NODES, PODS, ObjectRef
from hami.sandbox.apiserver.faults import Fault
from tests.support.cluster import Cluster
from tests.support.kube import SOON, create_pod, value_of


def about(namespace: str, name: str = "a", uid: str = "u") -> ObjectRef:
    return ObjectRef(resource=PODS, name=name, namespace=namespace, uid=uid)


def recorder_for(client: KubeClient, **options: Any) -> EventRecorder:
    options = {"flush_seconds": SOON, **options}
    return EventRecorder(client, component="hami-scheduler", instance="test", **options)


async def sent(client: KubeClient, namespace: str) -> list[dict[str, Any]]:
    body = await client.get(EVENTS.path(namespace))
    events_there = [
        event
        for event in msgspec.json.decode(body)["items"]
        if event["source"].get("component") == "hami-scheduler"
    ]
    return sorted(events_there, key=lambda event: str(event["message"]))


@asynccontextmanager
async def sending(recorder: EventRecorder) -> AsyncIterator[None]:
    """The recorder sends while the block runs; at its end everything has been sent."""
    async with anyio.create_task_group() as group:
        await group.start(recorder.run)
        yield
        group.cancel_scope.cancel()


async def test_an_event_is_what_describe_shows(client: KubeClient, cluster: Cluster) -> None:
    pod = await create_pod(client, "a", cluster.namespace)
    recorder = recorder_for(client)

    async with sending(recorder):
        recorder.record(ObjectRef.to(PODS, pod), "DevicesAllocated", "one GPU", type="Warning")

    (event,) = await sent(client, cluster.namespace)
    assert event["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": cluster.namespace,
        "name": "a",
        "uid": pod.metadata.uid,
    }
    assert (event["type"], event["reason"], event["message"], event["count"]) == (
        "Warning",
        "DevicesAllocated",
        "one GPU",
        1,
    )
    assert event["source"] == {"component": "hami-scheduler", "host": "test"}
    assert event["reportingComponent"] == "hami-scheduler"
    assert event["firstTimestamp"] == event["lastTimestamp"]


async def test_events_on_nodes_go_where_kubectl_looks(client: KubeClient) -> None:
    recorder, name = recorder_for(client), f"node-{uuid.uuid4().hex}"

    async with sending(recorder):
        recorder.record(ObjectRef(resource=NODES, name=name, uid="u"), "DeviceLost", "it is gone")

    found = [e for e in await sent(client, "default") if e["involvedObject"]["name"] == name]
    assert [event["message"] for event in found] == ["it is gone"]


async def test_the_same_said_before_it_is_sent_is_one_event(
    client: KubeClient, cluster: Cluster
) -> None:
    recorder = recorder_for(client)
    for _ in range(5):
        recorder.record(about(cluster.namespace), "Unfit", "no memory")

    async with sending(recorder):
        pass

    assert [event["count"] for event in await sent(client, cluster.namespace)] == [5]
    assert value_of(client.metrics.events_sent, "created") == 1


async def test_the_same_said_again_is_counted_up(client: KubeClient, cluster: Cluster) -> None:
    recorder = recorder_for(client)
    for _ in range(3):
        async with sending(recorder):
            recorder.record(about(cluster.namespace), "Unfit", "no memory")

    assert [event["count"] for event in await sent(client, cluster.namespace)] == [3]
    assert value_of(client.metrics.events_sent, "counted") == 2


async def test_an_event_that_expired_meanwhile_is_written_anew(
    client: KubeClient, cluster: Cluster
) -> None:
    recorder = recorder_for(client)
    async with sending(recorder):
        recorder.record(about(cluster.namespace), "Unfit", "no memory")
    (event,) = await sent(client, cluster.namespace)
    await client.delete(EVENTS.path(cluster.namespace, event["metadata"]["name"]))

    async with sending(recorder):
        recorder.record(about(cluster.namespace), "Unfit", "no memory")

    assert [event["count"] for event in await sent(client, cluster.namespace)] == [1]


async def test_many_alike_become_one_that_says_so(client: KubeClient, cluster: Cluster) -> None:
    recorder = recorder_for(client)
    for number in range(events.ALIKE + 5):
        recorder.record(about(cluster.namespace), "Unfit", f"node-{number}: no memory")

    async with sending(recorder):
        pass

    written = await sent(client, cluster.namespace)
    combined = [event for event in written if event["message"].startswith(events.COMBINED)]
    assert len(written) == events.ALIKE + 1
    assert [event["count"] for event in combined] == [5]


async def test_a_talkative_object_is_cut_off_and_others_are_not(
    client: KubeClient, cluster: Cluster
) -> None:
    now = [0.0]
    recorder = recorder_for(client, clock=lambda: now[0])
    for _ in range(1000):
        recorder.record(about(cluster.namespace, "loud", "u1"), "Unfit", "no memory")
    recorder.record(about(cluster.namespace, "quiet", "u2"), "Unfit", "no memory")
    now[0] += events.OBJECT_SECONDS
    recorder.record(about(cluster.namespace, "loud", "u1"), "Unfit", "no memory")

    async with sending(recorder):
        pass

    counts = {
        e["involvedObject"]["name"]: e["count"] for e in await sent(client, cluster.namespace)
    }
    assert counts == {"loud": events.OBJECT_BURST + 1, "quiet": 1}
    assert value_of(client.metrics.events_dropped, "talkative") == 1000 - events.OBJECT_BURST


async def test_a_full_queue_drops_the_oldest_and_warnings_last(
    client: KubeClient, cluster: Cluster
) -> None:
    recorder = recorder_for(client, capacity=3)
    recorder.record(about(cluster.namespace, "a", "1"), "R", "warning 1", type="Warning")
    for number in range(4):
        ref = about(cluster.namespace, f"b{number}", f"b{number}")
        recorder.record(ref, "R", f"normal {number}")
    recorder.record(about(cluster.namespace, "c", "2"), "R", "warning 2", type="Warning")

    async with sending(recorder):
        pass

    messages = [event["message"] for event in await sent(client, cluster.namespace)]
    assert messages == ["normal 3", "warning 1", "warning 2"]
    assert value_of(client.metrics.events_dropped, "queue full") == 3


async def test_a_full_queue_of_warnings_stays_bounded(client: KubeClient, cluster: Cluster) -> None:
    recorder = recorder_for(client, capacity=2)
    for number in range(4):
        ref = about(cluster.namespace, f"a{number}", f"u{number}")
        recorder.record(ref, "R", f"warning {number}", type="Warning")

    async with sending(recorder):
        pass

    messages = [event["message"] for event in await sent(client, cluster.namespace)]
    assert messages == ["warning 2", "warning 3"]


async def test_a_refused_event_is_counted_and_the_next_is_sent(
    client: KubeClient, cluster: Cluster
) -> None:
    recorder = recorder_for(client)
    recorder.record(about("no-such-namespace"), "R", "lost")
    recorder.record(about(cluster.namespace), "R", "found")

    async with sending(recorder):
        pass

    assert [event["message"] for event in await sent(client, cluster.namespace)] == ["found"]
    assert value_of(client.metrics.events_dropped, "refused") == 1


@pytest.mark.faults
async def test_stopping_is_not_held_up_by_a_server_that_is_gone(
    client: KubeClient, cluster: Cluster
) -> None:
    recorder = recorder_for(client, flush_seconds=0.1)
    cluster.sandbox.faults.add(Fault(resource="events", delay_seconds=60.0))

    with anyio.fail_after(SOON):
        async with sending(recorder):
            recorder.record(about(cluster.namespace), "R", "never arrives")

    assert value_of(client.metrics.events_dropped, "stopped") == 1


def test_a_long_message_is_cut_between_characters() -> None:
    assert clip("x" * 1024, 1024) == "x" * 1024
    assert clip("x" * 1025, 1024) == "x" * 1021 + "…"
    assert clip("é" * 600, 1024) == "é" * 510 + "…"


@given(st.text(), st.integers(min_value=3, max_value=50))
def test_no_message_is_longer_than_the_bound(text: str, bound: int) -> None:
    assert len(clip(text, bound).encode()) <= bound
