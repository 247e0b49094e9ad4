"""Allocation annotations: the worked examples, round trips, and hostile text."""

from __future__ import annotations

import pytest
from hypothesis import given as forall

from hami.core import codec
from hami.core.allocation import Containers
from hami.core.device import VendorName
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import CodecError
from tests.support.builders import OTHER, given
from tests.support.strategies import any_text, wire_containers

A = "GPU-7d1f0a52-4c1e-4b8e-9a53-2f6d1c0e8b11"
B = "GPU-b0c94e6f-1a27-4f0d-8d35-77e2ab61c9d4"


@pytest.mark.parametrize(
    ("containers", "text"),
    [
        pytest.param(
            ((given(A, memory=3000, cores=30),),),
            f"{A},NVIDIA,3000,30:;",
            id="one_container_with_a_share_of_one_device",
        ),
        pytest.param(
            ((), (given(A, memory=20000, cores=100), given(B, memory=20000, cores=100))),
            f";{A},NVIDIA,20000,100:{B},NVIDIA,20000,100:;",
            id="an_init_container_without_devices_keeps_its_place",
        ),
        pytest.param(
            ((given(A, memory=3000),), (given(A, memory=5000),)),
            f"{A},NVIDIA,3000,0:;{A},NVIDIA,5000,0:;",
            id="two_containers_on_one_device",
        ),
        pytest.param(
            ((given("GPU-a", memory=3000),),
             (given("GPU-b", memory=5000, cores=30), given("GPU-c", memory=5000, cores=30))),
            "GPU-a,NVIDIA,3000,0:;GPU-b,NVIDIA,5000,30:GPU-c,NVIDIA,5000,30:;",
            id="containers_with_one_and_two_devices",
        ),
        pytest.param((), "", id="a_pod_without_containers"),
    ],
)  # fmt: skip
def test_golden_allocations_are_written_and_read(containers: Containers, text: str) -> None:
    assert codec.encode_allocation(containers, NVIDIA.name) == text
    assert codec.decode_allocation(text, NVIDIA.name) == containers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            f";{A},NVIDIA,5000,0:;;",
            ((), (given(A, memory=5000),)),
            id="a_consumed_container_stays_as_an_empty_place",
        ),
        pytest.param(";;;;", (), id="a_fully_consumed_record_is_empty"),
        pytest.param("garbage:;", (), id="a_piece_without_a_comma_is_ignored"),
        pytest.param(
            f"{A},NVIDIA,1,2,extra,fields:;",
            ((given(A, memory=1, cores=2),),),
            id="fields_beyond_four_are_ignored",
        ),
        pytest.param(
            f"{A},NVIDIA A100-SXM4-80GB,1,2:;",
            ((given(A, memory=1, cores=2),),),
            id="a_model_in_the_type_field_is_no_other_vendor",
        ),
        pytest.param(
            f"{A},NVIDIA,1,2",
            ((given(A, memory=1, cores=2),),),
            id="missing_terminators_are_tolerated",
        ),
    ],
)
def test_readers_are_tolerant_where_the_protocol_is(text: str, expected: Containers) -> None:
    assert codec.decode_allocation(text, NVIDIA.name) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("uuid,NVIDIA,100:;", "uuid,type,memory,cores", id="three_fields"),
        pytest.param("GPU-x,NVIDIA,3000000000,0:;", "memory: ", id="memory_beyond_32_bits"),
        pytest.param("GPU-x,NVIDIA,0,99999999999:;", "cores: ", id="cores_of_eleven_digits"),
        pytest.param("GPU-x,NVIDIA,-1,0:;", "expected 0 to", id="negative_memory"),
        pytest.param("GPU-x,NVIDIA,0,-5:;", "expected 0 to", id="negative_cores"),
        pytest.param("GPU-x,NVIDIA,1.5,0:;", "memory: ", id="a_fraction"),
        pytest.param("GPU-x,NVIDIA, 1,0:;", "memory: ", id="a_space"),
        pytest.param("GPU-x,NVIDIA,٣,0:;", "memory: ", id="digits_of_another_script"),
        pytest.param(
            f"{A},NVIDIA,1,1:;x,NVIDIA,,:;", "memory: ", id="one_bad_device_spoils_the_whole"
        ),
    ],
)
def test_malformed_allocations_are_refused(text: str, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        codec.decode_allocation(text, NVIDIA.name)


def test_a_message_about_a_long_annotation_is_short() -> None:
    with pytest.raises(CodecError) as caught:
        codec.decode_allocation("x," * 100_000, NVIDIA.name)

    assert len(str(caught.value)) < 200


@forall(containers=wire_containers)
def test_what_is_written_is_read_back(containers: Containers) -> None:
    text = codec.encode_allocation(containers, NVIDIA.name)

    read = codec.decode_allocation(text, NVIDIA.name)

    padding = ((),) * (len(containers) - len(read))
    assert read + padding == containers
    assert text.count(";") == len(containers)


@forall(text=any_text)
def test_any_allocation_text_is_read_or_refused_as_malformed(text: str) -> None:
    try:
        containers = codec.decode_allocation(text, NVIDIA.name)
    except CodecError:
        return

    assert all(d.memory >= 0 and d.cores >= 0 for devices in containers for d in devices)


def test_each_vendor_writes_only_its_own_devices() -> None:
    containers = (
        (given("GPU-a"), given("NPU-a", vendor="OTHER")),
        (given("NPU-b", vendor="OTHER"),),
    )

    assert codec.encode_allocation(containers, NVIDIA.name) == "GPU-a,NVIDIA,1000,0:;;"
    assert (
        codec.encode_allocation(containers, OTHER.name)
        == "NPU-a,OTHER,1000,0:;NPU-b,OTHER,1000,0:;"
    )


def test_devices_of_several_vendors_are_merged_by_container() -> None:
    gpus = codec.decode_allocation("GPU-a,NVIDIA,1000,0:;;", NVIDIA.name)
    others = codec.decode_allocation(
        "NPU-a,OTHER,1000,0:;NPU-b,OTHER,1000,0:;", VendorName("OTHER")
    )

    assert codec.merge_vendors([gpus, others]) == (
        (given("GPU-a"), given("NPU-a", vendor="OTHER")),
        (given("NPU-b", vendor="OTHER"),),
    )
    assert codec.merge_vendors([]) == ()
