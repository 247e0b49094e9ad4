"""What is written on a bound pod is read back as the same allocation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.core import record
from hami.core.allocation import Containers, MigShare
from hami.core.device import MigPlacement, Role
from hami.core.objects import Container, Pod, PodSpec
from hami.core.vendor import table
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import CodecError
from tests.support.builders import (
    OTHER,
    VENDORS,
    given,
    make_allocation,
    make_container,
    make_pod,
)
from tests.support.strategies import any_text, small_containers

BOTH = table([NVIDIA, OTHER])
A = given("GPU-a", memory=3000, cores=30)
B = given("GPU-b", memory=5000)


def recorded(text: str, *containers: Container, init: Sequence[Container] = ()) -> Pod:
    return make_pod(
        containers=containers,
        init_containers=init,
        annotations={"hami.io/vgpu-node": "node-0", "hami.io/vgpu-devices-allocated": text},
    )


def test_golden_annotations_of_a_bound_pod() -> None:
    allocation = make_allocation([A], node="gpu-node-3")

    assert record.annotations_for(
        allocation, VENDORS, now_seconds=1787296504, scheduled_by="me/0"
    ) == {
        "hami.io/vgpu-node": "gpu-node-3",
        "hami.io/vgpu-time": "1787296504",
        "hami.io/bind-time": "1787296504",
        "hami.io/bind-phase": "allocating",
        "hami.io/scheduled-by": "me/0",
        "hami.io/vgpu-devices-to-allocate": "GPU-a,NVIDIA,3000,30:;",
        "hami.io/vgpu-devices-allocated": "GPU-a,NVIDIA,3000,30:;",
    }


def test_each_vendor_in_the_allocation_has_its_own_keys() -> None:
    allocation = make_allocation([A], [given("NPU-a", memory=7, vendor="OTHER")])

    written = record.annotations_for(allocation, BOTH, now_seconds=1, scheduled_by="me/0")

    assert written["hami.io/vgpu-devices-allocated"] == "GPU-a,NVIDIA,3000,30:;;"
    assert written["hami.io/other-devices-allocated"] == ";NPU-a,OTHER,7,0:;"
    assert written["hami.io/other-devices-to-allocate"] == ";NPU-a,OTHER,7,0:;"


def test_clearing_removes_every_key_that_binding_writes() -> None:
    share = MigShare(profile="1g", placement=MigPlacement(start=0, size=1))
    allocation = make_allocation([replace(A, mig=share), given("NPU-a", vendor="OTHER")])

    cleared = record.cleared_annotations(BOTH)

    assert set(cleared) == set(
        record.annotations_for(allocation, BOTH, now_seconds=1, scheduled_by="me/0")
    )
    assert set(cleared.values()) == {None}


@forall(containers=small_containers, init=st.integers(0, 6))
def test_a_recorded_allocation_is_read_back(containers: Containers, init: int) -> None:
    asking = [make_container(str(i), gpus=len(devices)) for i, devices in enumerate(containers)]
    roles = [Role.INIT] * len(containers[:init]) + [Role.APP] * len(containers[init:])
    allocation = make_allocation(*containers, roles=roles)
    pod = make_pod(
        init_containers=asking[:init],
        containers=asking[init:],
        annotations=record.annotations_for(allocation, VENDORS, now_seconds=1, scheduled_by="me/0"),
    )

    read = record.allocation_of(pod, VENDORS)

    if not any(containers):
        assert read is None
        return
    assert read is not None
    assert read.containers + ((),) * (len(containers) - len(read.containers)) == containers
    assert (read.uid, read.pod, read.node) == ("uid-pod", "default/pod", "node-0")
    assert read.roles == allocation.roles
    assert read.charges() == allocation.charges()


def test_a_pod_of_two_vendors_is_read_back() -> None:
    allocation = make_allocation([A, given("NPU-a", vendor="OTHER")], [B])
    pod = make_pod(
        containers=[
            make_container("a", limits={"nvidia.com/gpu": 1, "other.com/npu": 1}),
            make_container("b", gpus=1),
        ],
        annotations=record.annotations_for(allocation, BOTH, now_seconds=1, scheduled_by="me/0"),
    )

    read = record.allocation_of(pod, BOTH)

    assert read is not None
    assert read.containers == allocation.containers


@pytest.mark.parametrize(
    "annotations",
    [
        pytest.param({}, id="no_annotations"),
        pytest.param({"hami.io/vgpu-devices-allocated": "GPU-a,NVIDIA,1,1:;"}, id="no_node"),
        pytest.param(
            {"hami.io/vgpu-node": "", "hami.io/vgpu-devices-allocated": "GPU-a,NVIDIA,1,1:;"},
            id="an_empty_node",
        ),
        pytest.param({"hami.io/vgpu-node": "node-0"}, id="no_devices"),
        pytest.param(
            {"hami.io/vgpu-node": "node-0", "hami.io/vgpu-devices-allocated": ";;"},
            id="empty_containers_only",
        ),
    ],
)
def test_a_pod_without_node_or_devices_holds_nothing(annotations: dict[str, str]) -> None:
    assert record.allocation_of(make_pod(annotations=annotations), VENDORS) is None


@forall(text=any_text)
def test_any_record_is_read_or_refused_as_malformed(text: str) -> None:
    try:
        allocation = record.allocation_of(recorded(text, make_container(gpus=1)), VENDORS)
    except CodecError:
        return

    assert allocation is None or any(allocation.containers)


def test_what_can_be_read_is_kept_beside_what_cannot() -> None:
    both = {"nvidia.com/gpu": 1, "other.com/npu": 1}
    pod = make_pod(
        containers=[make_container(limits=both)],
        annotations={
            "hami.io/vgpu-node": "node-0",
            "hami.io/vgpu-devices-allocated": "GPU-a,NVIDIA,3000,30:;",
            "hami.io/other-devices-allocated": "NPU-a,OTHER,lots,0:;",
        },
    )

    kept = record.salvage(pod, BOTH)

    assert kept is not None
    assert kept.containers == ((A,),)
    assert record.salvage(recorded("x,y:;", ONE), VENDORS) is None


PLAIN = make_container("plain")
ONE = make_container("one", gpus=1)
NONE = make_container("none", gpus=0, memory=5)
MEMORY_ALONE = make_container("memory-alone", memory=5)
UNREADABLE = make_container("unreadable", gpus="many")


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        pytest.param(
            recorded("GPU-a,NVIDIA,3000,30:;", PLAIN, ONE),
            ((), (A,)),
            id="a_missing_empty_segment_before_is_put_back",
        ),
        pytest.param(
            recorded("GPU-a,NVIDIA,3000,30:;", ONE, init=[PLAIN]),
            ((), (A,)),
            id="a_missing_segment_of_an_init_container_is_put_back",
        ),
        pytest.param(
            recorded("GPU-a,NVIDIA,3000,30:;GPU-b,NVIDIA,5000,0:;", ONE, PLAIN, ONE),
            ((A,), (), (B,)),
            id="a_missing_segment_between_is_put_back",
        ),
        pytest.param(
            recorded(";GPU-a,NVIDIA,3000,30:;", PLAIN, ONE),
            ((), (A,)),
            id="complete_segments_stay_where_they_are",
        ),
        pytest.param(
            recorded("GPU-a,NVIDIA,3000,30:;", ONE, ONE),
            ((A,),),
            id="fewer_filled_segments_than_askers_stay_by_position",
        ),
        pytest.param(
            recorded("GPU-a,NVIDIA,3000,30:;GPU-b,NVIDIA,5000,0:;", ONE),
            ((A,), (B,)),
            id="more_filled_segments_than_askers_stay_by_position",
        ),
        pytest.param(
            recorded("GPU-a,NVIDIA,3000,30:;", NONE, ONE),
            ((), (A,)),
            id="a_count_of_zero_asks_for_nothing",
        ),
        pytest.param(
            recorded("GPU-a,NVIDIA,3000,30:;", MEMORY_ALONE, ONE),
            ((), (A,)),
            id="memory_without_a_count_asks_for_nothing",
        ),
        pytest.param(
            recorded("GPU-a,NVIDIA,3000,30:;", UNREADABLE, ONE),
            ((), (A,)),
            id="a_count_that_cannot_be_read_asks_for_nothing",
        ),
    ],
)
def test_devices_stand_at_the_containers_that_asked(pod: Pod, expected: Containers) -> None:
    allocation = record.allocation_of(pod, VENDORS)

    assert allocation is not None
    assert allocation.containers == expected


INIT = make_container("init", gpus=1)
SIDECAR = make_container("sidecar", gpus=1, restart_policy="Always")


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        pytest.param(make_pod(), False, id="a_pod_without_init_containers_never_is"),
        pytest.param(make_pod(init_containers=[INIT]), False, id="not_before_they_have_ended"),
        pytest.param(
            make_pod(init_containers=[INIT], ended_init={"init": 0}), True, id="all_ended_well"
        ),
        pytest.param(
            make_pod(init_containers=[INIT], ended_init={"init": 1}), False, id="one_ended_badly"
        ),
        pytest.param(
            make_pod(init_containers=[INIT, make_container("second")], ended_init={"init": 0}),
            False,
            id="one_has_not_ended",
        ),
        pytest.param(
            make_pod(init_containers=[INIT, SIDECAR], ended_init={"init": 0}),
            True,
            id="a_sidecar_need_not_end",
        ),
        pytest.param(
            make_pod(init_containers=[SIDECAR]), False, id="sidecars_alone_have_nothing_to_end"
        ),
        pytest.param(Pod(spec=PodSpec()), False, id="an_empty_pod"),
    ],
)
def test_init_is_done_when_every_init_container_ended_well(pod: Pod, expected: bool) -> None:
    assert record.init_done(pod) is expected
