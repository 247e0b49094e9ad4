"""What Prometheus is told of the governor."""

from __future__ import annotations

from pathlib import Path

from hami.config import NodeAgentSettings
from hami.nodeagent import region
from hami.nodeagent.governor import gauges
from hami.nodeagent.governor.loop import Governor
from hami.nodeagent.governor.tenants import OneRegion
from tests.support.governed import ScriptedDriver


async def test_every_figure_of_a_container(tmp_path: Path) -> None:
    region.create(
        tmp_path,
        devices=[region.RegionDevice(uuid="GPU-a", core_limit_permille=300)],
        owner=region.Owner(pod_uid="u", pod_namespace="n", pod_name="p", container_name="c"),
        policy=region.Policy.FORCE,
    )
    source = OneRegion(tmp_path)
    governor = Governor(source, ScriptedDriver(), NodeAgentSettings())
    await governor.tick()

    found = {
        (sample.name, sample.labels.get("mode")): sample
        for family in gauges.families(governor, {"u"}, zone="vGPU")
        for sample in family.samples
    }

    assert found["hami_container_core_limit_percent", None].value == 30
    assert found["hami_container_core_share_percent", None].value == 30
    assert found["hami_container_core_throttled_seconds_total", None].value == 0
    assert found["hami_container_untracked_memory_bytes", None].value == 0
    assert ("hami_container_device_utilization_ratio", None) not in found  # nothing was measured
    modes = {mode: s.value for (name, mode), s in found.items() if name.endswith("core_mode")}
    assert modes == {"off": 0, "limit": 1, "block": 0, "hold": 0, "suspend": 0}
    assert found["hami_agent_governor_ticks_total", None].value == 1
    assert found["hami_container_core_limit_percent", None].labels == {
        "namespace": "n",
        "pod": "p",
        "container": "c",
        "vdevice_index": "0",
        "device_uuid": "GPU-a",
        "zone": "vGPU",
    }
    source.tenant.close()


async def test_pod_that_is_gone_is_not_shown(tmp_path: Path) -> None:
    region.create(
        tmp_path,
        devices=[region.RegionDevice(uuid="GPU-a")],
        owner=region.Owner(pod_uid="u", pod_name="p"),
    )
    source = OneRegion(tmp_path)
    governor = Governor(source, ScriptedDriver(), NodeAgentSettings())
    await governor.tick()

    shown = [
        sample
        for family in gauges.families(governor, set(), zone="vGPU")
        for sample in family.samples
        if sample.name.startswith("hami_container")
    ]

    assert not shown
    source.tenant.close()
