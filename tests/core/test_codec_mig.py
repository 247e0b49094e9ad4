"""MIG reservations: the worked examples, round trips, and hostile text."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.core.allocation import MigInstance, MigReservation, MigShare
from hami.core.codec_mig import decode_mig_reservations, encode_mig_reservations
from hami.core.device import DeviceUuid, MigPlacement
from hami.core.quantity import MAX_INT32
from hami.errors import CodecError
from tests.support.strategies import any_text

A = "GPU-7d1f0a52-4c1e-4b8e-9a53-2f6d1c0e8b11"
PLANNED = (
    f'[{{"containerIndex":0,"deviceIndex":0,"gpuUUID":"{A}","profile":"1g.10gb",'
    '"placement":{"start":6,"size":1}}]'
)
MADE = (
    PLANNED[:-2] + ',"migUUID":"MIG-4c0d7b1e-90aa-5f3e-8c62-1b7a9d2e3f40","gpuInstanceID":13,'
    '"computeInstanceID":0}]'
)


def reservation(instance: MigInstance | None = None) -> MigReservation:
    return MigReservation(
        container=0,
        device=0,
        uuid=DeviceUuid(A),
        share=MigShare(
            profile="1g.10gb", placement=MigPlacement(start=6, size=1), instance=instance
        ),
    )


def one(**changes: Any) -> str:
    row = json.loads(PLANNED)[0] | changes
    return json.dumps([{key: value for key, value in row.items() if value != "absent"}])


def test_golden_reservation_before_and_after_the_agent_made_it() -> None:
    made = reservation(
        MigInstance(
            uuid="MIG-4c0d7b1e-90aa-5f3e-8c62-1b7a9d2e3f40", gpu_instance=13, compute_instance=0
        )
    )

    assert encode_mig_reservations([reservation()]) == PLANNED
    assert decode_mig_reservations(PLANNED) == (reservation(),)
    assert encode_mig_reservations([made]) == MADE
    assert decode_mig_reservations(MADE) == (made,)


@pytest.mark.parametrize("text", ["", "[]", "null"])
def test_none_are_none(text: str) -> None:
    assert decode_mig_reservations(text) == ()


def test_no_reservations_are_written_as_an_empty_list() -> None:
    assert encode_mig_reservations([]) == "[]"


def test_keys_are_read_in_any_letter_case_and_unknown_ones_are_skipped() -> None:
    text = (
        f'[{{"CONTAINERINDEX":1,"deviceindex":2,"gpuuuid":"{A}","Profile":"2g","colour":1,'
        '"Placement":{"START":0,"Size":2,"x":[]},"migUUID":"","gpuInstanceID":null}]'
    )

    (read,) = decode_mig_reservations(text)

    assert (read.container, read.device, read.share.profile) == (1, 2, "2g")
    assert read.share.placement == MigPlacement(start=0, size=2)
    assert read.share.instance is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        pytest.param("{}", "expected a JSON array", id="no_array"),
        pytest.param("[", "MIG reservations", id="no_json"),
        pytest.param("[null]", "MIG reservations", id="null_for_one"),
        pytest.param("[[]]", "MIG reservations", id="a_list_for_one"),
        pytest.param("[" * 5000, "MIG reservations", id="deep"),
        pytest.param('["\\ud800"]', "MIG reservations", id="a_lone_surrogate"),
        pytest.param(one(containerIndex="absent"), "MIG reservations", id="no_container"),
        pytest.param(one(deviceIndex="absent"), "MIG reservations", id="no_device"),
        pytest.param(one(gpuUUID="absent"), "MIG reservations", id="no_uuid"),
        pytest.param(one(profile="absent"), "MIG reservations", id="no_profile"),
        pytest.param(one(placement="absent"), "MIG reservations", id="no_placement"),
        pytest.param(one(placement={"start": 1}), "MIG reservations", id="no_size"),
        pytest.param(one(containerIndex=-1), "containerIndex: ", id="a_negative_container"),
        pytest.param(one(deviceIndex=-1), "deviceIndex: ", id="a_negative_device"),
        pytest.param(one(deviceIndex=1.5), "MIG reservations", id="a_fraction"),
        pytest.param(one(deviceIndex=10**30), "deviceIndex: ", id="a_huge_device"),
        pytest.param(one(gpuUUID=""), "gpuUUID", id="an_empty_uuid"),
        pytest.param(one(profile=""), "profile", id="an_empty_profile"),
        pytest.param(one(placement={"start": 0, "size": 0}), "8 slices", id="no_slices"),
        pytest.param(one(placement={"start": 7, "size": 2}), "8 slices", id="beyond_the_last"),
        pytest.param(one(placement={"start": -1, "size": 2}), "start: ", id="before_the_first"),
        pytest.param(one(migUUID="MIG-x"), "or none", id="only_the_instance"),
        pytest.param(one(gpuInstanceID=1), "or none", id="only_a_number"),
        pytest.param(one(migUUID="MIG-x", gpuInstanceID=1), "or none", id="two_of_three"),
        pytest.param(
            one(migUUID="MIG-x", gpuInstanceID=-1, computeInstanceID=0), "gpuInstanceID: ",
            id="a_negative_instance",
        ),
        pytest.param(PLANNED[:-1] + "," + PLANNED[1:], "twice", id="one_place_twice"),
        pytest.param("[" + "0," * 4096 + "0]", "number of reservations", id="too_many"),
    ],
)  # fmt: skip
def test_what_is_no_reservation_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(CodecError, match=complaint):
        decode_mig_reservations(text)


index = st.integers(0, MAX_INT32)
text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
instances = st.builds(
    MigInstance, uuid=text, gpu_instance=st.integers(0, 2**32 - 1), compute_instance=index
)
reservations = st.builds(
    MigReservation,
    container=index,
    device=index,
    uuid=text.map(DeviceUuid),
    share=st.builds(
        MigShare,
        profile=text,
        placement=st.tuples(st.integers(0, 7), st.integers(1, 8)).map(
            lambda p: MigPlacement(start=p[0], size=min(p[1], 8 - p[0]))
        ),
        instance=st.none() | instances,
    ),
)


@forall(given=st.lists(reservations, max_size=4, unique_by=lambda r: (r.container, r.device)))
def test_what_is_written_is_read_back(given: list[MigReservation]) -> None:
    written = encode_mig_reservations(given)

    assert decode_mig_reservations(written) == tuple(given)
    assert not set("<>&") & set(written)


@forall(text=any_text)
def test_hostile_text_is_read_or_refused(text: str) -> None:
    with suppress(CodecError):
        decode_mig_reservations(text)
