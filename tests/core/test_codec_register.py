"""Device inventories in both forms: the worked examples, round trips, and hostile text."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.core import codec
from hami.core.device import Device, MigPlacement, MigProfile, VendorName
from hami.core.quantity import MAX_INT32, MiB, Percent
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import CodecError
from tests.support.builders import make_device
from tests.support.strategies import any_text, inventories, mig_profiles

A = "GPU-7d1f0a52-4c1e-4b8e-9a53-2f6d1c0e8b11"
B = "GPU-b0c94e6f-1a27-4f0d-8d35-77e2ab61c9d4"
DCU = VendorName("DCU")

TWO_GPUS = (
    f'[{{"id":"{A}","count":10,"devmem":81559,"devcore":100,"type":"NVIDIA A100-SXM4-80GB",'
    f'"mode":"hami-core","health":true}},{{"id":"{B}","index":1,"count":10,"devmem":81559,'
    '"devcore":100,"type":"NVIDIA A100-SXM4-80GB","numa":1,"mode":"hami-core"}]'
)
TWO_DCUS = (
    "DCU-51aa0f3e-0001,4,65520,100,DCU-K100_AI,0,true,0,hami-core:"
    "DCU-51aa0f3e-0002,4,65520,100,DCU-K100_AI,1,false,1,hami-core:"
)


def a100(uuid: str, **changes: Any) -> Device:
    device = make_device(uuid, memory=81559, model="NVIDIA A100-SXM4-80GB")
    return replace(device, **changes)


def read(text: str) -> tuple[Device, ...]:
    return codec.decode_register(text, NVIDIA.name)


def test_golden_json_inventory_omits_what_is_zero() -> None:
    devices = (a100(A), a100(B, index=1, numa=1, healthy=False))

    assert codec.encode_register(devices) == TWO_GPUS
    assert read(TWO_GPUS) == devices


def test_golden_text_inventory_has_nine_fields_a_device() -> None:
    devices = tuple(
        make_device(
            f"DCU-51aa0f3e-000{i + 1}",
            vendor="DCU",
            index=i,
            slots=4,
            memory=65520,
            model="DCU-K100_AI",
            numa=i,
            healthy=i == 0,
        )
        for i in range(2)
    )

    assert codec.encode_register_text(devices) == TWO_DCUS
    assert codec.decode_register(TWO_DCUS, DCU) == devices


def test_seven_fields_mean_index_zero_and_shared_in_software() -> None:
    text = "GPU-2b9e5c10-6f4d-47aa-b1c2-0d9e8f7a6b5c,10,16384,100,NVIDIA-Tesla T4,0,true:"

    assert read(text) == (
        make_device(
            "GPU-2b9e5c10-6f4d-47aa-b1c2-0d9e8f7a6b5c", memory=16384, model="NVIDIA-Tesla T4"
        ),
    )


def test_mig_profiles_are_written_in_full_and_read_back() -> None:
    profile = MigProfile(
        name="1g.10gb",
        memory=MiB(9728),
        cores=Percent(15),
        slices=1,
        placements=(MigPlacement(start=6, size=1), MigPlacement(start=0, size=1)),
    )
    device = a100(A, mode="mig", mig_profiles=(profile,))

    text = codec.encode_register([device])

    assert (
        '"migProfiles":[{"name":"1g.10gb","memoryMB":9728,"core":15,"sliceCount":1,'
        '"placements":[{"start":6,"size":1},{"start":0,"size":1}]}],"health":true}]'
    ) in text
    assert read(text) == (device,)


def test_characters_special_in_html_are_escaped_and_read_back() -> None:
    device = a100(A, model="<A100 & more>")

    text = codec.encode_register([device])

    assert "\\u003cA100 \\u0026 more\\u003e" in text
    assert read(text) == (device,)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param({"id": A}, Device(uuid=a100(A).uuid, vendor=NVIDIA.name, mode=""),
                     id="missing_fields_are_zero_and_unhealthy"),
        pytest.param({"ID": A, "DevMem": 81559, "COUNT": 10, "devCore": 100, "HEALTH": True,
                      "Type": "NVIDIA A100-SXM4-80GB", "Mode": "hami-core"}, a100(A),
                     id="letter_case_of_keys_is_free"),
        pytest.param({"id": A, "colour": "red", "custominfo": {"x": [1]}, "migtemplate": [[]]},
                     Device(uuid=a100(A).uuid, vendor=NVIDIA.name, mode=""),
                     id="unknown_keys_are_skipped"),
        pytest.param({"id": A, "mode": None, "count": None, "health": None, "migProfiles": None},
                     Device(uuid=a100(A).uuid, vendor=NVIDIA.name, mode=""),
                     id="null_is_absent"),
        pytest.param({"id": A, "numa": -1},
                     Device(uuid=a100(A).uuid, vendor=NVIDIA.name, mode=""),
                     id="an_unknown_numa_node_is_the_first"),
        pytest.param({"id": A, "MIGPROFILES": [{"NAME": "x", "memorymb": 1, "Placements": [
                        {"Start": 1, "SIZE": 2}]}]},
                     Device(uuid=a100(A).uuid, vendor=NVIDIA.name, mode="", mig_profiles=(
                         MigProfile(name="x", memory=MiB(1), cores=Percent(0), slices=0,
                                    placements=(MigPlacement(start=1, size=2),)),)),
                     id="letter_case_is_free_inside_profiles_too"),
        pytest.param({"id": A, "devicevendor": "AMD"},
                     Device(uuid=a100(A).uuid, vendor=NVIDIA.name, mode=""),
                     id="the_vendor_is_the_keys_not_the_writers"),
    ],
)  # fmt: skip
def test_json_readers_are_tolerant_where_the_protocol_is(
    row: dict[str, object], expected: Device
) -> None:
    assert read(json.dumps([row])) == (expected,)


def test_space_around_a_json_inventory_is_ignored() -> None:
    assert read(f" \n{TWO_GPUS}\t") == read(TWO_GPUS)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("1", id="one"), pytest.param("t", id="t"), pytest.param("T", id="T"),
        pytest.param("TRUE", id="TRUE"), pytest.param("true", id="true"),
        pytest.param("True", id="True"),
    ],
)  # fmt: skip
def test_words_for_true_are_those_of_the_protocol(text: str) -> None:
    assert codec.parse_bool(text)
    assert read(f"GPU-x,1,1,1,T4,0,{text}:")[0].healthy


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_words_for_false_are_those_of_the_protocol(text: str) -> None:
    assert not codec.parse_bool(text)
    assert not read(f"GPU-x,1,1,1,T4,0,{text}:")[0].healthy


@pytest.mark.parametrize("text", ["", "yes", "tRUE", " true", "2", "on"])
def test_other_words_are_no_truth_values(text: str) -> None:
    with pytest.raises(CodecError, match="expected true or false"):
        codec.parse_bool(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "end in ':'", id="nothing"),
        pytest.param("GPU-x,1,1,1,T4,0,true", "end in ':'", id="text_without_a_colon"),
        pytest.param(":", "at least one device", id="text_with_empty_segments_only"),
        pytest.param("GPU-x,10,7680,100,NVIDIA-Tesla P4:", "7 or 9 fields", id="five_fields"),
        pytest.param("GPU-x,1,1,1,T4,0,true,0:", "7 or 9 fields", id="eight_fields"),
        pytest.param("word:", "7 or 9 fields", id="a_segment_without_a_comma"),
        pytest.param("GPU-x,1,1,1,T4,0,yes:", "true or false", id="an_unknown_truth_value"),
        pytest.param("GPU-x,one,1,1,T4,0,true:", "count: ", id="a_word_for_a_number"),
        pytest.param("GPU-x,1,1,1,T4,x,true:", "numa: ", id="a_word_for_a_numa_node"),
        pytest.param("GPU-x,1,1,1,T4,0,true,-1,mig:", "index: ", id="a_negative_index"),
        pytest.param('[{"id":"x","numa":99999999999999999999}]', "numa: ",
                     id="a_numa_node_that_no_column_can_hold"),
        pytest.param("".join(f"GPU-{i},1,1,1,T4,0,true:" for i in range(codec.MAX_DEVICES + 1)),
                     f"at most {codec.MAX_DEVICES} devices", id="more_than_any_node_has"),
        pytest.param(f"{TWO_DCUS}x,1:", "7 or 9 fields", id="one_bad_segment_spoils_the_whole"),
        pytest.param(",1,1,1,T4,0,true:", "have an id", id="an_empty_id_in_text"),
        pytest.param("[]", "at least one device", id="an_empty_json_array"),
        pytest.param("[null]", "device inventory", id="null_for_a_device"),
        pytest.param("null", "JSON array", id="null_for_the_inventory"),
        pytest.param("{}", "JSON array", id="an_object_for_the_inventory"),
        pytest.param("[1]", "device inventory", id="a_number_for_a_device"),
        pytest.param("[", "device inventory", id="truncated_json"),
        pytest.param("[" * 100_000, "device inventory", id="json_nested_without_end"),
        pytest.param("[\ud800]", "device inventory", id="text_that_is_no_unicode"),
        pytest.param('[{"id":""}]', "have an id", id="an_empty_id"),
        pytest.param('[{"count":1}]', "have an id", id="a_missing_id"),
        pytest.param('[{"id":7}]', "device inventory", id="a_number_for_an_id"),
        pytest.param('[{"id":"x","count":"1"}]', "device inventory", id="text_for_a_number"),
        pytest.param('[{"id":"x","count":-1}]', "count: ", id="a_negative_count"),
        pytest.param('[{"id":"x","devmem":2147483648}]', "devmem: ", id="memory_over_32_bits"),
        pytest.param('[{"id":"x","devcore":1e400}]', "device inventory", id="infinite_cores"),
        pytest.param('[{"id":"x","migProfiles":[' + "{}," * 32 + "{}]}]", "number of migProfiles: ",
                     id="too_many_profiles"),
        pytest.param('[{"id":"x","migProfiles":[{"placements":[' + "{}," * 64 + "{}]}]}]",
                     "number of placements: ", id="too_many_placements"),
        pytest.param('[{"id":"x","migProfiles":{}}]', "device inventory", id="profiles_as_object"),
        pytest.param('[{"id":"x","migProfiles":[{"placements":[{"size":-1}]}]}]', "size: ",
                     id="a_negative_placement"),
        pytest.param('[{"id":"x"},{"id":"x"}]', "'x' twice", id="one_id_twice"),
        pytest.param('[{"id":"a,b"}]', "without , : and ;", id="an_id_that_no_record_can_hold"),
    ],
)  # fmt: skip
def test_malformed_inventories_are_refused(text: str, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        read(text)


@forall(devices=inventories(), profiles=st.lists(mig_profiles, max_size=2))
def test_json_inventory_is_read_back_as_written(
    devices: tuple[Device, ...], profiles: list[MigProfile]
) -> None:
    devices = tuple(replace(d, mig_profiles=tuple(profiles)) for d in devices)

    assert read(codec.encode_register(devices)) == devices


@forall(devices=inventories())
def test_text_inventory_is_read_back_as_written(devices: tuple[Device, ...]) -> None:
    text = codec.encode_register_text(devices)

    assert codec.decode_register(f"DCU-0,0,0,0,,0,false,0,:{text}", DCU)[1:] == tuple(
        replace(d, vendor=DCU) for d in devices
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "ID", "count", "devmem", "health", "mode", "type", "numa",
                             "migProfiles", "placements", "memoryMB", "start", "x"]),
            inner, max_size=4,
        )
    ),
    max_leaves=12,
)  # fmt: skip


@forall(text=any_text | st.lists(json_values, max_size=2).map(json.dumps))
def test_any_inventory_is_read_or_refused_as_malformed(text: str) -> None:
    try:
        devices = read(text)
    except CodecError:
        return

    assert devices
    for device in devices:
        assert device.uuid
        numbers = device.slots, device.memory, device.cores, device.numa, device.index
        assert min(numbers) >= 0
        assert max(numbers) <= MAX_INT32
    assert len({device.uuid for device in devices}) == len(devices)
