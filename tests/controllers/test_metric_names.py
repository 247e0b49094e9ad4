"""Every name that HAMi's dashboards ask for, with its labels, on a cluster that has it all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from hami import gauges, metrics
from hami.config import Settings
from hami.core import codec
from hami.core.allocation import MigInstance, MigReservation, MigShare
from hami.core.codec_mig import encode_mig_reservations
from hami.core.device import MODE_MIG, DeviceUuid, MigPlacement
from hami.core.vendors.nvidia import NVIDIA
from hami.sandbox.apiserver import ApiServer
from tests.support.builders import make_device
from tests.support.controller import (
    gpus,
    node_object,
    pod_object,
    quota_object,
    running,
)
from tests.support.geometries import A100
from tests.support.kube import until

MIB = 2**20
Configure = Callable[..., Settings]
Labels = dict[str, str]

_CARD = {"node", "device_uuid", "device_index", "device_type"}
_CONTAINER = {"namespace", "node", "pod", "container_index", "device_uuid"}
NAMES: dict[str, set[str]] = {
    "hami_gpu_memory_limit_bytes": _CARD,
    "hami_gpu_core_limit_ratio": _CARD,
    "hami_gpu_memory_allocated_bytes": {*_CARD, "device_cores"},
    "hami_gpu_shared_count": _CARD,
    "hami_gpu_core_allocated_ratio": _CARD,
    "hami_node_gpu_overview": {*_CARD, "device_cores", "device_memory_limit"},
    "hami_node_gpu_memory_allocated_ratio": _CARD,
    "hami_node_gpu_mig_instance_info": {
        "node",
        "device_uuid",
        "device_index",
        "mig_uuid",
        "profile",
        "gpu_instance_id",
        "compute_instance_id",
        "placement_start",
        "placement_size",
    },
    "hami_resource_quota_used": {"namespace", "quota_name", "limit"},
    "hami_resource_quota_limit": {"namespace", "quota_name"},
    "hami_vgpu_memory_allocated_bytes": _CONTAINER,
    "hami_vgpu_core_allocated_ratio": _CONTAINER,
}
BUILD = {"version", "revision", "build_date", "go_version", "compiler", "platform"}
_OLD_CARD = {"nodeid", "deviceuuid", "deviceidx", "devicetype"}
_OLD_CONTAINER = {"podnamespace", "nodename", "podname", "containeridx", "deviceuuid"}
OLD_NAMES: dict[str, tuple[str, set[str]]] = {
    "GPUDeviceMemoryLimit": ("hami_gpu_memory_limit_bytes", _OLD_CARD),
    "GPUDeviceCoreLimit": ("hami_gpu_core_limit_ratio", _OLD_CARD),
    "GPUDeviceSharedNum": ("hami_gpu_shared_count", _OLD_CARD),
    "GPUDeviceCoreAllocated": ("hami_gpu_core_allocated_ratio", _OLD_CARD),
    "GPUDeviceMemoryAllocated": (
        "hami_gpu_memory_allocated_bytes",
        {*_OLD_CARD, "devicecores"},
    ),
    "nodeGPUOverview": (
        "hami_node_gpu_overview",
        {*_OLD_CARD, "devicecores", "devicememorylimit"},
    ),
    "nodeGPUMemoryPercentage": (
        "hami_node_gpu_memory_allocated_ratio",
        {"nodeid", "deviceuuid", "deviceidx"},
    ),
    "nodeGPUMigInstance": (
        "hami_node_gpu_mig_instance_info",
        {"nodeid", "deviceuuid", "deviceidx", "migname"},
    ),
    "QuotaUsed": ("hami_resource_quota_used", {"quotanamespace", "quotaName", "limit"}),
    "vGPUMemoryAllocated": ("hami_vgpu_memory_allocated_bytes", _OLD_CONTAINER),
    "vGPUCoreAllocated": ("hami_vgpu_core_allocated_ratio", _OLD_CONTAINER),
}
INSTANCE = MigInstance(uuid="MIG-4c0d7b1e", gpu_instance=13, compute_instance=0)


@pytest.fixture
def everything(server: ApiServer) -> ApiServer:
    """Shared and partitioned devices, a pod on each, and a quota."""
    partitioned = dataclasses.replace(
        make_device("GPU-mig", index=3, slots=7), mode=MODE_MIG, mig_profiles=A100
    )
    server.store.create(node_object("mig", [partitioned]))
    server.store.create(quota_object("budget", memory=50_000, cores=300))
    share = MigShare(profile="1g.5gb", placement=MigPlacement(start=6, size=1), instance=INSTANCE)
    on_mig = MigReservation(container=0, device=0, uuid=DeviceUuid("GPU-mig"), share=share)
    for name, node, record, mig in (
        ("shared", "n0", "GPU-n0-1,NVIDIA,3000,30:;", ""),
        ("part", "mig", "GPU-mig,NVIDIA,4864,15:;", encode_mig_reservations([on_mig])),
    ):
        pod = pod_object(name)
        pod["metadata"]["annotations"] = {
            codec.NODE_KEY: node,
            codec.BIND_PHASE_KEY: "success",
            NVIDIA.allocated_key: record,
            **({NVIDIA.mig_key: mig} if mig else {}),
        }
        pod["spec"]["nodeName"] = node
        server.store.create(pod)
    return server


def labels_of(found: dict[tuple[tuple[str, str], ...], float]) -> list[set[str]]:
    return [{name for name, _ in labels} for labels in found]


@pytest.mark.parametrize("legacy", [False, True])
async def test_every_name_of_the_reference_is_there_with_its_labels(
    everything: ApiServer, configure: Configure, legacy: bool
) -> None:
    async with running(configure(legacy_metrics=legacy)) as controller:
        found = await controller.metrics()

    for name, labels in NAMES.items():
        assert found.get(name), name
        assert all(own == {*labels, "zone"} for own in labels_of(found[name])), name
    assert labels_of(found["hami_build_info"]) == [BUILD]
    for old, (new, labels) in OLD_NAMES.items():
        assert (old in found) is legacy, old
        if legacy:
            assert all(own == {*labels, "zone"} for own in labels_of(found[old])), old
            assert sorted(found[old].values()) == sorted(found[new].values()), old


def test_every_row_is_one_of_the_reference_or_has_our_name() -> None:
    rows = [row for row in vars(gauges).values() if isinstance(row, metrics.Metric)]
    ours = {row.name for row in rows} - set(NAMES) - {"hami_build_info"}

    assert set(NAMES) < {row.name for row in rows}
    assert {old.name for old in gauges.OLDER} == set(OLD_NAMES)
    assert all(name.startswith("hami_model_") for name in ours)


async def test_mig_instance_is_shown_with_its_place_and_once(
    everything: ApiServer, configure: Configure
) -> None:
    async with running(configure(legacy_metrics=True)) as controller:
        found = await controller.metrics()

    card = {"node": "mig", "device_uuid": "GPU-mig", "device_index": "3", "zone": "vGPU"}
    shown = {
        **card,
        "mig_uuid": "MIG-4c0d7b1e",
        "profile": "1g.5gb",
        "gpu_instance_id": "13",
        "compute_instance_id": "0",
        "placement_start": "6",
        "placement_size": "1",
    }
    assert found["hami_node_gpu_mig_instance_info"] == {tuple(sorted(shown.items())): 1.0}
    (old,) = found["nodeGPUMigInstance"]
    assert dict(old)["migname"] == "1g.5gb-13"


async def test_container_index_is_the_containers_place_in_its_pod(
    server: ApiServer, configure: Configure
) -> None:
    """Init containers first, then the others, whether they have devices or not."""
    pod = pod_object("p", containers=3)
    pod["spec"]["initContainers"] = [pod["spec"]["containers"].pop(0)]
    pod["metadata"]["annotations"] = {
        codec.NODE_KEY: "n0",
        NVIDIA.allocated_key: ";GPU-n0-0,NVIDIA,1000,10:GPU-n0-0,NVIDIA,500,5:;"
        "GPU-n0-1,NVIDIA,7,1:;",
    }
    pod["spec"]["nodeName"] = "n0"
    server.store.create(pod)

    async with running(configure()) as controller:
        found = (await controller.metrics())["hami_vgpu_memory_allocated_bytes"]

    places = {
        (dict(labels)["container_index"], dict(labels)["device_uuid"]): value
        for labels, value in found.items()
    }
    assert places == {("1", "GPU-n0-0"): 1500 * MIB, ("2", "GPU-n0-1"): 7 * MIB}


async def test_queues_and_the_watchs_lag_are_shown(server: ApiServer, configure: Configure) -> None:
    pod = server.store.create(pod_object("p"))

    async with running(configure()) as controller:
        assert await controller.bind(pod, "n0") == ""
        found = await controller.metrics()
        queues = {dict(labels)["queue"] for labels in found["hami_queue_length"]}
        assert queues >= {"binds", "twins", "flights", "requests", "events"}
        assert await controller.value("hami_queue_length", queue="flights") == 1
        assert await controller.value("hami_queue_length", queue="binds") == 0

        async def seen() -> bool:
            return await controller.value("hami_bind_watch_seconds_count") == 1

        await until(seen)
        assert await controller.value("hami_cache_unseen_binds") == 0
        assert await controller.value("hami_cache_lag_seconds") == 0


async def test_free_and_stranded_capacity_is_shown_by_model(
    server: ApiServer, configure: Configure
) -> None:
    """One device of four has no compute left: what it has of memory nobody can have."""
    pod = pod_object("p", memory=10_000, cores=100)
    pod = server.store.create(pod)

    async with running(configure()) as controller:
        assert await controller.bind(pod, "n0") == ""
        model = {"device_type": gpus("n0")[0].model}
        free = await controller.value("hami_model_free_memory_bytes", **model)
        stranded = await controller.value("hami_model_stranded_memory_bytes", **model)
        cores = await controller.value("hami_model_free_cores", **model)

    assert (free, stranded, cores) == (150_000 * MIB, 30_000 * MIB, 300)
