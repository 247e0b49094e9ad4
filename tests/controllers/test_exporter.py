"""The gauges that dashboards know, by name, labels and value."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hami.config import Settings
from hami.controllers.oldnames import OLD_NAMES
from hami.metrics import TABLE
from hami.sandbox.apiserver import ApiServer
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
        "pods",
        "resourcequotas",
    }


async def test_controller_of_an_empty_cluster_can_be_scraped(
    solo: ApiServer, configure: Configure
) -> None:
    solo.store.delete("nodes", "solo", "")

    async with running(configure()) as controller:
        assert "hami_gpu_shared_count" not in await controller.metrics()


async def test_older_names_are_exported_where_they_are_asked_for(
    solo: ApiServer, configure: Configure
) -> None:
    pod = solo.store.create(pod_object("p", memory=10_000, cores=30))

    async with running(configure(legacy_metrics=True)) as controller:
        assert await controller.bind(pod, "solo") == ""
        metrics = await controller.metrics()

    device = {
        "nodeid": "solo",
        "deviceuuid": "GPU-solo-0",
        "deviceidx": "0",
        "zone": "vGPU",
    }
    typed = {**device, "devicetype": "NVIDIA A100-SXM4-40GB"}
    cores = {**typed, "devicecores": "30"}
    container = {
        "podnamespace": pod["metadata"]["namespace"],
        "nodename": "solo",
        "podname": "p",
        "containeridx": "0",
        "deviceuuid": "GPU-solo-0",
        "zone": "vGPU",
    }
    expected = [
        ("GPUDeviceMemoryLimit", typed, 40_000 * MIB),
        ("GPUDeviceCoreLimit", typed, 100),
        ("GPUDeviceSharedNum", typed, 1),
        ("GPUDeviceCoreAllocated", typed, 30),
        ("GPUDeviceMemoryAllocated", cores, 10_000 * MIB),
        ("nodeGPUOverview", {**cores, "devicememorylimit": "40000"}, 10_000 * MIB),
        ("nodeGPUMemoryPercentage", device, 0.25),
        ("vGPUMemoryAllocated", container, 10_000 * MIB),
        ("vGPUCoreAllocated", container, 30),
    ]
    for name, labels, value in expected:
        assert metrics[name] == {tuple(sorted(labels.items())): value}, name
    assert "hami_gpu_memory_limit_bytes" in metrics


async def test_older_names_are_left_out_by_default(solo: ApiServer, configure: Configure) -> None:
    async with running(configure()) as controller:
        assert "GPUDeviceMemoryLimit" not in await controller.metrics()


def test_every_gauge_with_an_older_name_exists_with_those_labels() -> None:
    labels = {row.name: set(row.labels) for row in TABLE}

    assert all(set(old.labels) <= labels[name] for name, old in OLD_NAMES.items())
