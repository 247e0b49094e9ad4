"""Records of unbound pods: fenced at the beginning of a reign, tidied later."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from prometheus_client import CollectorRegistry

from hami.config import ControllerSettings, Settings
from hami.controllers.counters import ControllerCounters
from hami.controllers.leadership import Leadership, Mandate
from hami.controllers.leftovers import AT_A_TIME, Leftovers
from hami.controllers.podwriter import PodWriter
from hami.core import codec
from hami.core.objects import Pod
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import ConflictError, KubeError, NotLeaderError
from hami.kube import patching
from hami.kube.client import KubeClient, connect
from hami.kube.informer import Informer
from hami.kube.resources import PODS, ObjectRef
from hami.sandbox.apiserver import ApiServer
from hami.sandbox.apiserver.faults import Fault
from tests.support import builders
from tests.support.controller import pod_object
from tests.support.kube import eventually, following, pod_informer, until, value_of

pytestmark = pytest.mark.faults  # seeds pods in any state, which only the sandbox's store takes

VENDORS = builders.VENDORS
RECORD = {
    codec.NODE_KEY: "n0",
    codec.BIND_PHASE_KEY: "allocating",
    NVIDIA.to_allocate_key: "GPU-n0-0,NVIDIA,3000,0:;",
    NVIDIA.allocated_key: "GPU-n0-0,NVIDIA,3000,0:;",
}
NEW = Mandate(identity="new", term=2, lasts=lambda _: True)


class Scene:
    """Leftovers of a live API server, with a clock that stands still until it is moved."""

    def __init__(self, server: ApiServer, client: KubeClient, pods: Informer[Pod]) -> None:
        self.now = 0.0
        self.server = server
        self.client = client
        self.pods = pods
        self.binding: set[str] = set()
        self.counters = ControllerCounters(CollectorRegistry())
        self.leftovers = Leftovers(
            client,
            pods,
            writer=PodWriter(client, vendors=VENDORS),
            vendors=VENDORS,
            settings=ControllerSettings(orphan_seconds=10.0),
            counters=self.counters,
            is_binding=self.binding.__contains__,
            clock=lambda: self.now,
        )
        pods.add_handler(self.leftovers.on_set, self.leftovers.on_delete)

    def create(self, name: str, mark: str | None = None, **changes: Any) -> dict[str, Any]:
        marked = {} if mark is None else {codec.SCHEDULED_BY_KEY: mark}
        pod = pod_object(name, annotations={**RECORD, **marked})
        pod["metadata"]["labels"] = {codec.NODE_KEY: "n0"}
        pod["spec"].update(changes.pop("spec", {}))
        return self.server.store.create({**pod, **changes})

    def recorded(self) -> list[str]:
        """The pods with anything of a record."""
        return [
            pod["metadata"]["name"]
            for pod in self.server.store.list("pods")
            if {*RECORD, codec.SCHEDULED_BY_KEY} & set(pod["metadata"].get("annotations") or {})
            or codec.NODE_KEY in (pod["metadata"].get("labels") or {})
        ]

    async def seen(self, *names: str) -> None:
        """The watch has shown these pods as they are now."""
        for name in names:
            version = self.server.store.get("pods", name)["metadata"]["resourceVersion"]

            def there(name: str = name, version: str = version) -> bool:
                pod = self.pods.get("default", name)
                return pod is not None and pod.metadata.resource_version == version

            await eventually(self.pods, there)


@pytest.fixture
async def scene(server: ApiServer, configure: Callable[..., Settings]) -> AsyncIterator[Scene]:
    async with connect(configure().kube) as client:
        yield Scene(server, client, pod_informer(client, ""))


@asynccontextmanager
async def leading(scene: Scene, *names: str) -> AsyncIterator[Leadership]:
    """A leader whose watch has shown these pods, when the grace of theirs has begun."""

    async def take_over(_: Mandate) -> None:
        return

    leadership = Leadership("me")
    async with following(scene.pods), anyio.create_task_group() as group:
        await scene.seen(*names)
        await group.start(leadership.run, take_over, lambda: None)
        yield leadership
        group.cancel_scope.cancel()


async def test_every_other_reign_is_fenced_and_nothing_else_touched(scene: Scene) -> None:
    for name, mark in {"old": "old/1", "same-name": "new/1", "unmarked": None}.items():
        scene.create(name, mark)
    scene.create("ours", NEW.mark)
    scene.create("bound", "old/1", spec={"nodeName": "n0"})
    scene.create("ended", "old/1", status={"phase": "Failed"})
    scene.create("foreign-scheduler", spec={"schedulerName": "another"})
    scene.create("marked-in-vain", "old/1", spec={"schedulerName": "another"})

    version = await scene.leftovers.fence(NEW)

    assert scene.recorded() == ["bound", "ended", "foreign-scheduler", "ours"]
    assert value_of(scene.counters.orphans, "fenced") == 4
    versions = [pod["metadata"]["resourceVersion"] for pod in scene.server.store.list("pods")]
    assert int(version) >= max(map(int, versions))


async def test_a_binding_of_an_earlier_reign_comes_too_late(scene: Scene) -> None:
    pod = scene.create("p", "old/1")
    meta = pod["metadata"]
    ref = ObjectRef(resource=PODS, name="p", namespace="default", uid=meta["uid"])

    await scene.leftovers.fence(NEW)

    with pytest.raises(ConflictError):
        await patching.bind(
            scene.client, ref, uid=ref.uid, node="n0", resource_version=meta["resourceVersion"]
        )


async def test_a_binding_that_was_faster_is_waited_for(scene: Scene) -> None:
    pod = scene.create("p", "old/1")
    slow = scene.server.faults.add(Fault(verb="patch", resource="pods", times=1, delay_seconds=0.5))
    versions: list[str] = []

    async with anyio.create_task_group() as group:

        async def fence() -> None:
            versions.append(await scene.leftovers.fence(NEW))

        async def under_way() -> bool:
            return slow.hits > 0

        group.start_soon(fence)
        await until(under_way)
        pod["spec"]["nodeName"] = "n0"
        bound = scene.server.store.update(pod)

    assert scene.recorded() == ["p"]
    assert int(versions[0]) >= int(bound["metadata"]["resourceVersion"])


async def test_a_reign_that_is_over_fences_nothing(scene: Scene) -> None:
    scene.create("p", "old/1")

    with pytest.raises(NotLeaderError):
        await scene.leftovers.fence(Mandate(identity="new", term=2, lasts=lambda _: False))

    assert scene.recorded() == ["p"]


async def test_a_fence_with_a_hole_is_an_error(scene: Scene) -> None:
    for number in range(3):
        scene.create(f"p{number}", "old/1")
    scene.server.faults.add(Fault(verb="patch", resource="pods", name="p1", status=403))

    with pytest.raises(KubeError):
        await scene.leftovers.fence(NEW)

    assert scene.recorded() == ["p1"]


async def test_what_nobody_binds_is_tidied_after_a_grace(scene: Scene) -> None:
    ours = scene.create("ours", "me/0")
    scene.create("late", "old/1")
    scene.create("bound", "me/0", spec={"nodeName": "n0"})
    scene.binding.add(ours["metadata"]["uid"])

    async with leading(scene, "ours", "late", "bound") as leadership:
        await scene.leftovers.tidy(leadership)
        assert scene.recorded() == ["bound", "late", "ours"], "in the grace"
        scene.now += 10.0
        await scene.leftovers.tidy(leadership)
        assert scene.recorded() == ["bound", "ours"]
        scene.binding.clear()
        await scene.leftovers.tidy(leadership)
        assert scene.recorded() == ["bound"]

    assert value_of(scene.counters.orphans, "tidied") == 2


async def test_a_follower_tidies_nothing(scene: Scene) -> None:
    scene.create("p", "old/1")
    async with following(scene.pods):
        await scene.seen("p")
        scene.now += 10.0
        await scene.leftovers.tidy(Leadership("me"))

    assert scene.recorded() == ["p"]


async def test_a_crowd_is_tidied_a_few_at_a_time(scene: Scene) -> None:
    names = [f"p{number}" for number in range(AT_A_TIME + 3)]
    for name in names:
        scene.create(name, "old/1")

    async with leading(scene, *names) as leadership:
        scene.now += 10.0
        await scene.leftovers.tidy(leadership)
        assert len(scene.recorded()) == 3
        await scene.leftovers.tidy(leadership)
        assert scene.recorded() == []


async def test_a_pod_that_changes_meanwhile_is_left_for_the_next_time(scene: Scene) -> None:
    pod = scene.create("p", "old/1")

    async with leading(scene, "p") as leadership:
        scene.now += 10.0
        pod["metadata"]["annotations"]["note"] = "changed"
        scene.server.store.update(pod)  # the watch has not shown it yet
        await scene.leftovers.tidy(leadership)
        assert scene.recorded() == ["p"]
        await scene.seen("p")
        scene.now += 10.0
        await scene.leftovers.tidy(leadership)
        assert scene.recorded() == []
