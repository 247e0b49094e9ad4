"""What the agent tells about its devices on the Node object, and how it follows their health."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import anyio
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from hami import metrics
from hami.core import codec
from hami.core.vendors.nvidia import NVIDIA
from hami.kube.resources import NODES
from hami.nodeagent.nvml import DeviceUse
from hami.nodeagent.samples import ContainerSample
from tests.support.agent import AgentBench, bound_pod, open_agent
from tests.support.gpus import A100_MIB, T4_MIB
from tests.support.node import NODE, eventually


async def annotate(bench: AgentBench, key: str, value: str | None) -> None:
    body: dict[str, Any] = {"metadata": {"annotations": {key: value}}}
    await bench.node.client.patch(NODES.path("", NODE), body)


async def test_node_tells_of_every_device_in_order() -> None:
    async with open_agent(memory_scaling=1.5, core_scaling=2, split_count=4) as bench:
        devices = await bench.registered(True, True, True)

        assert [d.uuid for d in devices] == list(bench.gpus.uuids)
        assert [d.index for d in devices] == [0, 1, 2]
        assert [d.memory for d in devices] == [int(m * 1.5) for m in (A100_MIB, A100_MIB, T4_MIB)]
        assert {d.cores for d in devices} == {200}
        assert {d.slots for d in devices} == {4}
        assert [d.model for d in devices] == [
            "NVIDIA A100-SXM4-40GB",
            "NVIDIA A100-SXM4-40GB",
            "NVIDIA-Tesla T4",
        ]


async def test_unchanged_devices_are_written_once() -> None:
    async with open_agent() as bench:
        await bench.registered(True, True, True)
        await annotate(bench, "example.com/something-else", "changes")
        await annotate(bench, NVIDIA.handshake_key, "Requesting_2026-01-01 00:00:00")
        await eventually(
            lambda: "Reported" in (bench.node_annotation(NVIDIA.handshake_key) or ""),
            lambda: bench.node_annotation(NVIDIA.handshake_key),
        )

        assert bench.count("hami_agent_node_writes_total", what="register") == 1


@pytest.mark.parametrize("value", [None, "", "[]", "nonsense", '[{"id":"GPU-other","count":1}]'])
async def test_annotation_that_was_removed_or_spoilt_is_put_right(value: str | None) -> None:
    async with open_agent() as bench:
        await bench.registered(True, True, True)

        await annotate(bench, NVIDIA.register_key, value)

        writes = "hami_agent_node_writes_total"
        await eventually(lambda: bench.count(writes, what="register") == 2, lambda: None)
        assert [d.uuid for d in bench.registered_devices()] == list(bench.gpus.uuids)


async def test_two_that_overwrite_each_other_are_told_of_and_do_not_race() -> None:
    writes = "hami_agent_node_writes_total"
    async with open_agent() as bench:

        def written(times: int) -> bool:
            return bench.count(writes, what="register") == times

        await bench.registered(True, True, True)
        with capture_logs() as logs:
            for number in (2, 3):
                await annotate(bench, NVIDIA.register_key, "mine")
                await eventually(partial(written, number), lambda: None)
            await eventually(
                lambda: [x for x in logs if x["event"] == "node_was_overwritten"], lambda: logs
            )
        assert [d.uuid for d in bench.registered_devices()] == list(bench.gpus.uuids)


async def test_annotation_that_says_the_same_in_other_words_is_left_alone() -> None:
    async with open_agent() as bench:
        devices = await bench.registered(True, True, True)

        await annotate(bench, NVIDIA.register_key, " " + codec.encode_register(devices) + "\n")
        await annotate(bench, NVIDIA.handshake_key, "Requesting_2026-01-01 00:00:00")

        await eventually(
            lambda: bench.count("hami_agent_node_writes_total", what="handshake") == 1,
            lambda: None,
        )
        assert bench.count("hami_agent_node_writes_total", what="register") == 1


@pytest.mark.parametrize(
    "question", ["Requesting_2026-01-01 00:00:00", "Requesting", "Requesting_"]
)
async def test_handshake_is_answered(question: str) -> None:
    async with open_agent() as bench:
        await annotate(bench, NVIDIA.handshake_key, question)

        await eventually(
            lambda: (bench.node_annotation(NVIDIA.handshake_key) or "").startswith("Reported_"),
            lambda: bench.node_annotation(NVIDIA.handshake_key),
        )


async def test_critical_error_is_told_to_node_and_kubelet_and_passes() -> None:
    async with open_agent(health_calm_seconds=1.0) as bench:
        await bench.registered(True, True, True)

        bench.gpus.report_xid(1, 79)

        await bench.registered(True, False, True)
        await bench.allocatable(20)
        await bench.registered(True, True, True)
        await bench.allocatable(30)


async def test_error_of_the_application_leaves_its_device_healthy() -> None:
    async with open_agent(health_calm_seconds=30) as bench:
        await bench.registered(True, True, True)

        bench.gpus.report_xid(0, 13)
        bench.gpus.report_xid(1, 79)

        await bench.registered(True, False, True)


async def test_lost_device_stays_on_record_as_unhealthy_and_comes_back() -> None:
    async with open_agent() as bench:
        await bench.registered(True, True, True)

        with bench.gpus.lost(2):
            devices = await bench.registered(True, True, False)
            await bench.allocatable(20)
            assert devices[2].memory == T4_MIB

        await bench.registered(True, True, True)
        await bench.allocatable(30)


async def test_pod_that_was_given_a_device_which_broke_since_fails_with_the_reason() -> None:
    async with open_agent(health_calm_seconds=30) as bench:
        await bench.registered(True, True, True)
        bench.gpus.report_xid(0, 79)
        await bench.registered(False, True, True)
        await bench.allocatable(20)

        await bench.node.create(bound_pod("a", [[(bench.gpus.uuids[0], 100)]]))

        pod = await bench.node.phase("a", "Failed")
        assert f"device {bench.gpus.uuids[0]} is unhealthy" in pod["status"]["message"]
        assert bench.annotation("a", codec.BIND_PHASE_KEY) == "failed"
        (event,) = await bench.events("AllocateFailed")
        assert event["involvedObject"]["name"] == "a"
        assert "is unhealthy" in event["message"]


async def test_metrics_tell_limits_and_use() -> None:
    async with open_agent() as bench:
        first = bench.gpus.uuids[0]
        await bench.node.create(bound_pod("a", [[(first, 3000)]]))
        await bench.node.phase("a", "Running")

        _, text = await bench.get("/metrics")

        labels = f'container="c0",device_uuid="{first}",namespace="default",pod="a"'
        place = f'{{{labels},vdevice_index="0",zone="vGPU"}}'
        assert f"hami_vgpu_memory_limit_bytes{place} 3.145728e+09" in text
        assert f"hami_vgpu_memory_used_bytes{place} 0.0" in text
        assert 'hami_agent_devices{health="healthy"} 3.0' in text
        assert f'device_type="NVIDIA-Tesla T4",device_uuid="{bench.gpus.uuids[2]}"' in text
        assert 'hami_agent_allocations_total{result="granted"} 1.0' in text


async def test_every_exported_metric_is_in_the_table_with_its_kind_and_help() -> None:
    rows = {row.name: row for row in metrics.TABLE}
    async with open_agent() as bench:
        await bench.node.create(bound_pod("a", [[(bench.gpus.uuids[0], 100)]]))
        await bench.node.phase("a", "Running")
        _, text = await bench.get("/metrics")

    families = [
        family
        for family in text_string_to_metric_families(text)
        if not family.name.startswith("hami_kube_") and not family.name.endswith("_created")
    ]
    assert len(families) > 10
    for family in families:
        row = rows[family.name]
        assert (family.type, family.documentation) == (row.kind, row.help)


async def test_spoilt_region_is_counted_and_hides_no_other() -> None:
    async with open_agent(reconcile_seconds=60) as bench:
        first = bench.gpus.uuids[0]
        uids = {}
        for name in ("a", "b"):
            await bench.node.create(bound_pod(name, [[(first, 100)]]))
            uids[name] = (await bench.node.phase(name, "Running"))["metadata"]["uid"]
        spoilt = bench.regions / f"{uids['a']}_c0"
        (spoilt / "usage").write_bytes(b"HMIUSAGE")

        _, text = await bench.get("/metrics")

        memory = [line for line in text.splitlines() if line.startswith("hami_vgpu_memory")]
        assert any('pod="b"' in line for line in memory)
        assert not any('pod="a"' in line for line in memory)
        assert bench.count("hami_agent_malformed_regions_total") == 1


async def test_scrapes_that_come_together_share_a_reading() -> None:
    async with open_agent() as bench:
        exporter, regions = bench.agent.exporter, bench.agent.regions
        readings = []
        read = regions.samples

        async def counted(use: Mapping[str, DeviceUse]) -> tuple[ContainerSample, ...]:
            readings.append(1)
            await anyio.sleep(0.01)
            return await read(use)

        regions.samples = counted  # type: ignore[method-assign] # counts, and reads all the same
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(exporter.refresh)
        together = len(readings)
        await exporter.refresh()

        assert together in (1, 2)
        assert len(readings) == together + 1
