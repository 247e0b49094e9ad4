"""The law of informers: whatever fails on the way, in the end they know what the server knows.

Random changes meet random faults; when the faults are over, the store equals the server's, and so
does what a handler made of everything it was told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from hami.core.objects import ObjectMeta, Pod
from hami.kube.backoff import Backoff
from hami.kube.client import connect
from hami.kube.informer import Informer
from hami.kube.metrics import KubeMetrics
from hami.kube.store import Store
from hami.kube.watching import Added, Deleted, Event, Key, Listed, Modified
from hami.sandbox.apiserver import ApiServer
from hami.sandbox.apiserver.faults import Distortion, Drop, Fault
from tests.support.cluster import make_pod, open_cluster
from tests.support.kube import following, pod_informer, until

NAMES = ("a", "b", "c", "d")
QUICK = Backoff(base_seconds=0.001, cap_seconds=0.01)

Step = Callable[[ApiServer], None]


class Mirror:
    """A level-based handler: keeps what it was last told of each pod."""

    def __init__(self, followed: Informer[Pod] | Store[Pod]) -> None:
        self.pods: dict[str, Pod] = {}
        followed.add_handler(self.on_set, self.on_delete)

    def on_set(self, pod: Pod, old: Pod | None) -> None:
        assert self.pods.get(pod.metadata.name) == old, "told of a change from what it never was"
        self.pods[pod.metadata.name] = pod

    def on_delete(self, pod: Pod) -> None:
        assert self.pods.pop(pod.metadata.name) == pod, "told of the end of what it never was"


@dataclass(frozen=True)
class Change:
    """Creates the pod, changes it, replaces it by another of its name, or deletes it."""

    name: str
    verb: str

    def __call__(self, server: ApiServer) -> None:
        pod = server.store.find("Pod", self.name)
        if pod is None:
            server.store.create(make_pod(self.name))
            return
        if self.verb == "change":
            version = pod["metadata"]["resourceVersion"]
            server.store.update(
                {**pod, "metadata": {**pod["metadata"], "annotations": {"was": version}}}
            )
            return
        server.store.delete("Pod", self.name)
        if self.verb == "replace":
            server.store.create(make_pod(self.name))


@dataclass(frozen=True)
class Spoil:
    """Puts a fault in force for the next requests of a kind."""

    verb: str
    fault: dict[str, object] = field(hash=False)

    def __call__(self, server: ApiServer) -> None:
        server.faults.add(Fault(verb=self.verb, resource="pods", times=2, **self.fault))  # type: ignore[arg-type] # drawn below


@dataclass(frozen=True)
class Shake:
    """Something that befalls the whole server."""

    what: str

    def __call__(self, server: ApiServer) -> None:
        match self.what:
            case "forget":
                server.faults.forget_changes()
            case "drop":
                server.faults.drop_streams()
            case _:
                server.faults.take_down(0.02)


CHANGES = st.builds(
    Change, st.sampled_from(NAMES), st.sampled_from(["change", "change", "replace", "delete"])
)
REFUSALS = st.fixed_dictionaries({"status": st.sampled_from([410, 429, 500, 503, 504])})
DROPS = st.fixed_dictionaries({"drop": st.sampled_from(Drop)})
DISTORTIONS = st.fixed_dictionaries(
    {
        "distortion": st.sampled_from(Distortion),
        "after_lines": st.integers(min_value=0, max_value=3),
    }
)
SPOILS = st.builds(Spoil, st.just("list"), REFUSALS | DROPS) | st.builds(
    Spoil, st.just("watch"), REFUSALS | DROPS | DISTORTIONS
)
SHAKES = st.builds(Shake, st.sampled_from(["forget", "drop", "down"]))
STEPS = st.lists(CHANGES | CHANGES | SPOILS | SHAKES, max_size=25)


@pytest.mark.faults
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(before=st.lists(CHANGES, max_size=5), steps=STEPS, pause=st.sampled_from([0.0, 0.002]))
async def test_the_store_converges_to_the_servers(
    before: list[Step], steps: list[Step], pause: float
) -> None:
    async with (
        open_cluster(bookmark_seconds=0.05) as cluster,
        connect(cluster.settings) as client,
    ):
        server = cluster.sandbox
        for step in before:
            step(server)
        informer = pod_informer(
            client, cluster.namespace, page_size=2, backoff=QUICK, inactivity_seconds=0.15
        )
        mirror = Mirror(informer)

        async with following(informer):
            for step in steps:
                step(server)
                await anyio.sleep(pause)
            server.faults.clear()

            async def converged() -> bool:
                there = versions(server)
                return there == versions_of(informer.list())

            await until(converged)

        assert mirror.pods == {pod.metadata.name: pod for pod in informer.list()}


def versions(server: ApiServer) -> dict[str, str]:
    metas = [pod["metadata"] for pod in server.store.list("Pod")]
    return {meta["name"]: meta["resourceVersion"] for meta in metas}


def versions_of(pods: tuple[Pod, ...]) -> dict[str, str]:
    return {pod.metadata.name: pod.metadata.resource_version for pod in pods}


# The same law without a server: events as a reflector emits them, each told once or twice.


def pod(name: str, version: int, life: int) -> Pod:
    return Pod(metadata=ObjectMeta(name=name, uid=f"{name}-{life}", resource_version=str(version)))


@st.composite
def histories(draw: st.DrawFn) -> list[Event[Pod]]:
    """What a server could tell: each object's versions grow, and lists hold what there is."""
    there: dict[str, Pod] = {}
    told: list[Event[Pod]] = [Listed(objects=(), unreadable=(), resource_version="0")]
    for version in range(1, draw(st.integers(min_value=0, max_value=20)) + 1):
        name = draw(st.sampled_from(NAMES))
        verb = draw(st.sampled_from(["set", "set", "delete", "miss", "list"]))
        if verb == "delete" and name in there:
            del there[name]
            told.append(Deleted(key=Key("", name), resource_version=str(version)))
        elif verb == "list":
            objects = tuple(there.values())
            told.append(Listed(objects=objects, unreadable=(), resource_version=str(version)))
        elif verb == "miss":  # changed while nobody watched; the next list tells
            if name in there:
                del there[name]
            else:
                there[name] = pod(name, version, life=version)
            objects = tuple(there.values())
            told.append(Listed(objects=objects, unreadable=(), resource_version=str(version)))
        elif name in there:
            life = int(there[name].metadata.uid.partition("-")[2])
            there[name] = pod(name, version, life)
            told.append(Modified(object=there[name]))
        else:
            there[name] = pod(name, version, life=version)
            told.append(Added(object=there[name]))
    return told


@given(history=histories(), repeated=st.sets(st.integers(min_value=0, max_value=25)))
def test_events_told_twice_change_nothing(history: list[Event[Pod]], repeated: set[int]) -> None:
    metrics = KubeMetrics(CollectorRegistry())
    once: Store[Pod] = Store("pods", metrics=metrics)
    twice: Store[Pod] = Store("pods", metrics=metrics)
    first, second = Mirror(once), Mirror(twice)

    for number, told in enumerate(history):
        once.apply(told)
        twice.apply(told)
        if number in repeated:
            twice.apply(told)

    assert first.pods == second.pods
    assert once.list() == twice.list() == tuple(first.pods.values())
