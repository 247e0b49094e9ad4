"""How far the watch is behind: what was written and is not seen yet."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import anyio
import msgspec
import pytest
from prometheus_client import CollectorRegistry

from hami import metrics
from hami.config import Settings
from hami.controllers import echoes
from hami.controllers.echoes import Echoes
from hami.core.objects import Pod
from hami.kube.metrics import KubeMetrics
from hami.kube.resources import PODS, ObjectRef
from hami.kube.store import Store
from hami.kube.watching import Deleted, Key, Modified
from hami.sandbox.apiserver import ApiServer
from hami.sandbox.apiserver.faults import Drop, Fault
from tests.support.builders import make_pod
from tests.support.controller import pod_object, running
from tests.support.kube import until

Configure = Callable[..., Settings]


class Scene:
    """Echoes over a store of pods, with a clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0
        self._registry = CollectorRegistry()
        self._pods: Store[Pod] = Store("pods", metrics=KubeMetrics(self._registry))
        self._versions = itertools.count(1)
        self.echoes = Echoes(
            self._pods,
            metrics.histogram(metrics.WATCH_SECONDS, self._registry),
            clock=lambda: self.now,
        )

    def show(self, name: str, *, node: str | None = None) -> None:
        pod = make_pod(name, node=node)
        version = str(next(self._versions))
        metadata = msgspec.structs.replace(pod.metadata, resource_version=version)
        self._pods.apply(Modified(object=msgspec.structs.replace(pod, metadata=metadata)))

    def delete(self, name: str) -> None:
        version = str(next(self._versions))
        self._pods.apply(Deleted(key=Key("default", name), resource_version=version))

    def wrote(self, name: str) -> None:
        self.echoes.wrote(ObjectRef.to(PODS, make_pod(name)))

    def seen(self) -> tuple[float, float]:
        """How many were seen, and after how many seconds in all."""
        values = [
            self._registry.get_sample_value(f"hami_bind_watch_seconds_{part}")
            for part in ("count", "sum")
        ]
        return values[0] or 0.0, values[1] or 0.0


def test_bind_is_unseen_until_the_watch_shows_the_pod_on_its_node() -> None:
    scene = Scene()
    scene.show("p")

    scene.wrote("p")
    scene.now += 2
    scene.show("p")
    assert (len(scene.echoes), scene.echoes.lag_seconds) == (1, 2.0)

    scene.show("p", node="n0")
    assert (len(scene.echoes), scene.echoes.lag_seconds) == (0, 0.0)
    scene.show("p", node="n0")
    assert scene.seen() == (1, 2.0)


def test_watch_may_be_faster_than_the_answer() -> None:
    scene = Scene()
    scene.show("p", node="n0")

    scene.wrote("p")

    assert len(scene.echoes) == 0
    assert scene.seen() == (1, 0.0)


def test_pod_that_goes_unseen_is_forgotten() -> None:
    scene = Scene()
    scene.show("p")

    scene.wrote("p")
    scene.delete("p")

    assert (len(scene.echoes), scene.seen()) == (0, (0, 0.0))


def test_the_oldest_of_too_many_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(echoes, "CAPACITY", 2)
    scene = Scene()
    for name in ("a", "b", "c"):
        scene.wrote(name)
        scene.now += 1

    assert (len(scene.echoes), scene.echoes.lag_seconds) == (2, 2.0)


@pytest.mark.faults
async def test_lag_of_a_controller_whose_watch_is_broken_grows(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p"))

    async with running(configure()) as controller:
        broken = server.faults.add(Fault(verb="watch", resource="pods", drop=Drop.BEFORE))
        server.faults.drop_streams()
        await anyio.lowlevel.checkpoint()
        assert await controller.bind(pod, "n0") == ""

        async def lags() -> bool:
            return await controller.value("hami_cache_lag_seconds") > 0.05

        await until(lags)
        assert await controller.value("hami_cache_unseen_binds") == 1
        server.faults.remove(broken)

        async def caught_up() -> bool:
            return await controller.value("hami_cache_lag_seconds") == 0

        await until(caught_up)
        assert await controller.value("hami_bind_watch_seconds_count") == 1
