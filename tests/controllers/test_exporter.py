"""The gauges that dashboards know, by name, labels and value."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from prometheus_client import CollectorRegistry

from hami import metrics
from hami.config import Settings
from hami.controllers.echoes import Echoes
from hami.controllers.exporter import NODES_SHOWN, Exporter, Watched
from hami.core.cache import AllocationCache
from hami.core.objects import Pod
from hami.kube.metrics import KubeMetrics
from hami.kube.store import Store
from hami.sandbox.apiserver import ApiServer
from tests.support.builders import VENDORS, given, make_allocation, make_device
from tests.support.controller import gpus, node_object, pod_object, running

MIB = 2**20
Configure = Callable[..., Settings]
DEVICE = {
    "node": "solo",
    "device_uuid": "GPU-solo-0",
    "device_index": "0",
    "device_type": "NVIDIA A100-SXM4-40GB",
    "zone": "vGPU",
}
CONTAINER = {
    "node": "solo",
    "pod": "p",
    "container_index": "0",
    "device_uuid": "GPU-solo-0",
    "zone": "vGPU",
}


@pytest.fixture
def solo(server: ApiServer) -> ApiServer:
    server.store.delete("nodes", "n0", "")
    server.store.delete("nodes", "n1", "")
    server.store.create(node_object("solo", gpus("solo", 1)))
    return server


async def test_every_gauge_of_a_device_and_of_its_pod(
    solo: ApiServer, configure: Configure
) -> None:
    pod = solo.store.create(pod_object("p", memory=10_000, cores=30))
    waiting = solo.store.create(pod_object("waiting", memory=1000))

    async with running(configure()) as controller:
        assert await controller.bind(pod, "solo") == ""
        await controller.filter(waiting, ["solo"])
        metrics = await controller.metrics()

    container = {**CONTAINER, "namespace": pod["metadata"]["namespace"]}
    cores = {**DEVICE, "device_cores": "30"}
    expected = [
        ("hami_gpu_memory_limit_bytes", DEVICE, 40_000 * MIB),
        ("hami_gpu_core_limit_ratio", DEVICE, 100),
        ("hami_gpu_memory_allocated_bytes", cores, 11_000 * MIB),
        ("hami_gpu_shared_count", DEVICE, 2),
        ("hami_gpu_core_allocated_ratio", DEVICE, 30),
        ("hami_node_gpu_overview", {**cores, "device_memory_limit": "40000"}, 11_000 * MIB),
        ("hami_node_gpu_memory_allocated_ratio", DEVICE, 0.275),
        ("hami_vgpu_memory_allocated_bytes", container, 10_000 * MIB),
        ("hami_vgpu_core_allocated_ratio", container, 30),
        ("hami_reservations", {"state": "confirmed"}, 1),
        ("hami_reservations", {"state": "held"}, 1),
    ]
    for name, labels, value in expected:
        assert metrics[name][tuple(sorted(labels.items()))] == value, name
    assert len(metrics["hami_vgpu_memory_allocated_bytes"]) == 1, "a hold is no allocation"
    assert list(metrics["hami_build_info"].values()) == [1]
    assert metrics["hami_cache_generation"][()] > 0
    assert {dict(key)["resource"] for key in metrics["hami_informer_silent_seconds"]} == {
        "nodes",
        "poddisruptionbudgets",
        "pods",
        "resourcequotas",
    }


async def test_controller_of_an_empty_cluster_can_be_scraped(
    solo: ApiServer, configure: Configure
) -> None:
    solo.store.delete("nodes", "solo", "")

    async with running(configure()) as controller:
        assert "hami_gpu_shared_count" not in await controller.metrics()


def test_devices_that_nodes_do_not_have_are_shown_for_so_many_nodes_and_summed_up() -> None:
    cache, registry = AllocationCache(), CollectorRegistry()
    own = CollectorRegistry()
    pods: Store[Pod] = Store("pods", metrics=KubeMetrics(own))
    echoes = Echoes(pods, metrics.histogram(metrics.WATCH_SECONDS, own))
    watched = Watched(silent_seconds={}, queues={}, echoes=echoes)
    exporter = Exporter(cache, watched, vendors=VENDORS, legacy=False, registry=registry)
    cache.set_node("known", [make_device("GPU-0")])
    cache.confirm(make_allocation([given("GPU-0"), given("GPU-1")], uid="k", node="known"))
    for i in range(NODES_SHOWN + 4):
        cache.confirm(make_allocation([given("a"), given("b")], uid=f"{i}", node=f"n{i:03}"))
    anyio.run(exporter.refresh)

    shown = {
        sample.labels["node"]: sample.value
        for family in registry.collect()
        if family.name == "hami_unknown_devices"
        for sample in family.samples
    }

    assert len(shown) == NODES_SHOWN + 1
    assert shown["n000"] == 2
    assert shown["(others)"] == 4 * 2 + 1
