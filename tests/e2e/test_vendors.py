"""Pods of several makers in a whole sandbox: a simulated GPU beside devices only told of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml

from hami.core.nodelock import LOCK_KEY
from hami.core.vendors.enflame import ENFLAME_GCU
from hami.core.vendors.hygon import HYGON
from hami.core.vendors.nvidia import NVIDIA
from hami.sandbox.spec import Layout
from tests.support.sandbox import Reached, background, eventually, make_pod

EXAMPLES = sorted(
    path for maker in ("hygon", "enflame") for path in Path(f"deploy/examples/{maker}").glob("*")
)
CARD = "DCU-TPXS32001607060"
LAYOUT = {
    "nodes": [
        {
            "name": "mixed",
            "gpus": [{"model": "T4"}],
            "annotations": {
                HYGON.register_key: "".join(
                    f"{CARD}{i},4,65520,100,DCU-K100_AI,0,true,{i},hami-core:" for i in range(1, 9)
                )
            },
            "devices": {HYGON.resources.count: 32, ENFLAME_GCU.resources.count: 4},
        }
    ]
}


@pytest.fixture(scope="module")
def mixed() -> Iterator[Reached]:
    with background(msgspec.convert(LAYOUT, Layout)) as reached:
        yield reached


def test_container_gets_devices_of_three_makers(mixed: Reached) -> None:
    limits = {
        NVIDIA.resources.count: 1,
        NVIDIA.resources.memory: 1000,
        HYGON.resources.count: 1,
        HYGON.resources.memory: 2000,
        HYGON.resources.cores: 60,
        ENFLAME_GCU.resources.count: 1,
    }
    mixed.apply(make_pod("three", limits=limits, command=["gpu-probe", "--check"]))

    pod = mixed.await_phase("three", "Succeeded", "Failed")

    annotations = pod["metadata"]["annotations"]
    assert pod["status"]["phase"] == "Succeeded", mixed.log("three")
    assert annotations[NVIDIA.to_allocate_key].strip(";") == ""
    assert annotations["hami.io/bind-phase"] == "allocating", "another maker's agent is the last"
    assert re.fullmatch(rf"{CARD}\d,DCU,2000,60:;", annotations[HYGON.allocated_key])
    assert re.fullmatch(r"mixed-GCU-\d,GCU,100,100:;", annotations[ENFLAME_GCU.allocated_key])


@pytest.mark.slow
def test_every_example_runs_and_the_lock_goes_though_no_agent_removes_it(mixed: Reached) -> None:
    assert len(EXAMPLES) == 7
    for path in EXAMPLES:
        pod = yaml.safe_load(path.read_text())
        name = pod["metadata"]["name"]
        mixed.apply({**pod, "metadata": {"namespace": "default", **pod["metadata"]}})
        mixed.await_phase(name, "Running")

    def unlocked() -> bool:
        node = mixed.get("/api/v1/nodes/mixed")
        return LOCK_KEY not in node["metadata"]["annotations"]

    eventually(unlocked, "the lock to be cleaned")
