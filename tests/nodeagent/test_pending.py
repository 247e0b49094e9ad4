from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami.core import codec
from hami.core.allocation import ContainerDevice
from hami.core.device import DeviceUuid
from hami.core.objects import Container, ObjectMeta, Pod, PodSpec, PodStatus, ResourceRequirements
from hami.core.quantity import MiB, Percent
from hami.core.vendor import table
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import CodecError
from hami.nodeagent import pending
from hami.nodeagent.pending import Candidate
from tests.support.builders import OTHER

NODE = "node-1"
VENDORS = table([NVIDIA])
Layout = tuple[tuple[str, ...], ...]
"""For each container the uuids of its devices."""


def encode(layout: Layout) -> str:
    return codec.encode_allocation(
        [
            [
                ContainerDevice(
                    uuid=DeviceUuid(uuid), vendor=NVIDIA.name, memory=MiB(1000), cores=Percent(0)
                )
                for uuid in uuids
            ]
            for uuids in layout
        ],
        NVIDIA.name,
    )


def make_pod(
    layout: Layout,
    *,
    name: str = "pod",
    uid: str = "",
    to_allocate: str | None = None,
    bind_time: str = "100",
    node: str = NODE,
    bind_phase: str = "allocating",
    phase: str = "Pending",
    deleted: bool = False,
) -> Pod:
    record = encode(layout)
    return Pod(
        metadata=ObjectMeta(
            name=name,
            namespace="team",
            uid=uid or f"uid-{name}",
            deletion_timestamp="2026-01-01T00:00:00Z" if deleted else None,
            annotations={
                codec.NODE_KEY: node,
                codec.BIND_TIME_KEY: bind_time,
                codec.BIND_PHASE_KEY: bind_phase,
                NVIDIA.to_allocate_key: record if to_allocate is None else to_allocate,
                NVIDIA.allocated_key: record,
            },
        ),
        spec=PodSpec(
            node_name=node,
            containers=[
                Container(
                    name=f"c{index}",
                    resources=ResourceRequirements(
                        limits={"nvidia.com/gpu": len(uuids)} if uuids else None
                    ),
                )
                for index, uuids in enumerate(layout)
            ],
        ),
        status=PodStatus(phase=phase),
    )


def fail_on_malformed(pod: Pod, error: CodecError) -> None:
    raise AssertionError(f"{pod.key}: {error}")


def find(*pods: Pod, count: int, consumed: pending.Consumed | None = None) -> list[str]:
    found = pending.candidates(
        pods,
        NVIDIA,
        node=NODE,
        count=count,
        consumed=consumed or {},
        on_malformed=fail_on_malformed,
    )
    return [candidate.pod.metadata.name for candidate in found]


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param(make_pod((("a",),), phase="Failed"), id="has ended"),
        pytest.param(make_pod((("a",),), deleted=True), id="is being deleted"),
        pytest.param(make_pod((("a",),), bind_phase="success"), id="has everything"),
        pytest.param(make_pod((("a",),), bind_phase="failed"), id="has failed"),
        pytest.param(make_pod((("a",),), node="node-2"), id="belongs to another node"),
        pytest.param(make_pod((("a", "b"),)), id="asks for another number of devices"),
        pytest.param(make_pod((("a",),), to_allocate=";"), id="has nothing left in its line"),
        pytest.param(make_pod((("a", "b"), ("a",))), id="has another container first in line"),
    ],
)
def test_pod_that_cannot_be_meant_is_no_candidate(pod: Pod) -> None:
    assert find(pod, count=1) == []


def test_pod_bound_first_comes_first_and_names_break_ties() -> None:
    pods = [
        make_pod((("a",),), name="late", bind_time="200"),
        make_pod((("a",),), name="b-early", bind_time="99"),
        make_pod((("a",),), name="a-early", bind_time="99"),
        make_pod((("a",),), name="timeless", bind_time="soon"),
    ]

    assert find(*pods, count=1) == ["a-early", "b-early", "late", "timeless"]


def test_malformed_annotation_is_reported_and_disturbs_no_other_pod() -> None:
    broken = make_pod((("a",),), name="broken", to_allocate="a,NVIDIA,1:;")
    reported: list[str] = []

    found = pending.candidates(
        [broken, make_pod((("a",),), name="good")],
        NVIDIA,
        node=NODE,
        count=1,
        consumed={},
        on_malformed=lambda pod, error: reported.append(pod.metadata.name),
    )

    assert [candidate.pod.metadata.name for candidate in found] == ["good"]
    assert reported == ["broken"]


def test_more_devices_than_containers_is_malformed() -> None:
    pod = make_pod((("a",),), to_allocate=encode((("a",), ("a",), ("a",))))

    with pytest.raises(CodecError, match="container 1"):
        pending.waiting(pod, NVIDIA)


def test_entry_that_was_just_consumed_is_passed_over_before_the_watch_shows_it() -> None:
    pod = make_pod((("a",), ("b", "c")))

    assert find(pod, count=2) == []
    assert find(pod, count=2, consumed={"uid-pod": {0}}) == ["pod"]
    assert find(pod, count=2, consumed={"uid-pod": {0, 1}}) == []


def test_record_without_empty_segments_is_matched_to_the_containers_that_ask() -> None:
    """Some writers leave out the segment of a container without devices."""
    pod = make_pod(((), ("a",)))
    compact = encode((("a",),))
    annotations = {
        **pod.annotations,
        NVIDIA.to_allocate_key: compact,
        NVIDIA.allocated_key: compact,
    }
    pod = Pod(
        metadata=ObjectMeta(name="pod", namespace="team", uid="u", annotations=annotations),
        spec=pod.spec,
        status=pod.status,
    )

    (entry,) = pending.waiting(pod, NVIDIA)

    assert (entry.container, entry.index, entry.position) == ("c1", 1, 0)


def test_candidate_with_the_very_devices_wins_over_the_one_bound_first() -> None:
    first = make_pod((("a",),), name="first", bind_time="1")
    second = make_pod((("b",),), name="second", bind_time="2")
    found = pending.candidates(
        [first, second], NVIDIA, node=NODE, count=1, consumed={}, on_malformed=fail_on_malformed
    )

    assert chosen_name(pending.choose(found, [DeviceUuid("b")])) == "second"
    assert chosen_name(pending.choose(found, [DeviceUuid("a")])) == "first"
    assert chosen_name(pending.choose(found, [DeviceUuid("z")])) == "first"
    assert pending.choose((), [DeviceUuid("a")]) is None


def chosen_name(candidate: Candidate | None) -> str:
    assert candidate is not None
    return candidate.pod.metadata.name


@pytest.mark.parametrize("device_id", ["", "-", "GPU", "GPU-", "-1", "GPU-x", "GPU-1x", "GPU-²"])
def test_foreign_device_id_is_refused(device_id: str) -> None:
    with pytest.raises(CodecError, match="expected a device id"):
        pending.physical(device_id)


def test_device_id_names_the_device_before_its_last_dash() -> None:
    assert pending.physical("GPU-7d1f-4c1e-10") == "GPU-7d1f-4c1e"


def entry_devices(*uuids: str) -> tuple[ContainerDevice, ...]:
    return tuple(
        ContainerDevice(uuid=DeviceUuid(u), vendor=NVIDIA.name, memory=MiB(1), cores=Percent(0))
        for u in uuids
    )


def test_preference_names_ids_of_the_allocated_devices_in_their_order() -> None:
    available = {"a-0", "a-1", "b-0", "b-10", "b-9", "c-0"}

    chosen = pending.align(entry_devices("b", "a"), available=available, must_include=set())

    assert chosen == ("b-0", "a-0")


def test_preference_keeps_what_must_be_included() -> None:
    available = {"a-0", "a-1", "b-0"}

    assert pending.align(entry_devices("a"), available=available, must_include={"a-1"}) == ("a-1",)
    assert pending.align(entry_devices("a"), available=available, must_include={"b-0"}) is None
    assert pending.align(entry_devices("a", "a", "a"), available=available, must_include=()) is None


uuids = st.sampled_from(["a", "b", "c"])
layouts = st.lists(st.lists(uuids, max_size=3).map(tuple), min_size=1, max_size=5).map(tuple)


@given(layouts, st.integers(0, 3))
def test_consuming_keeps_positions_and_completes_exactly_once(
    layout: Layout, trailing: int
) -> None:
    """However often the text was re-encoded by others, blanking moves nothing and ends complete."""
    pod = make_pod(layout, to_allocate=encode(layout) + ";" * trailing)
    text = pod.annotations[NVIDIA.to_allocate_key]
    segments = text.split(";")
    completions = 0

    for entry in pending.waiting(pod, NVIDIA):
        assert [device.uuid for device in entry.devices] == list(layout[entry.index])
        text = pending.blank(text, entry.position)
        segments[entry.position] = ""
        assert text.split(";") == segments
        assert len(text.split(";")) == len(encode(layout).split(";")) + trailing
        completions += pending.complete({NVIDIA.to_allocate_key: text}, VENDORS)

    assert completions == (1 if any(layout) else 0)
    assert pending.complete({NVIDIA.to_allocate_key: text}, VENDORS)


def test_devices_that_no_agent_hands_out_are_not_waited_for() -> None:
    vendors = table([NVIDIA, replace(OTHER, agent_consumes=False)])
    waiting = table([NVIDIA, OTHER])
    annotations = {NVIDIA.to_allocate_key: ";", OTHER.to_allocate_key: "NPU-0,OTHER,1,1:;"}

    assert pending.complete(annotations, vendors)
    assert not pending.complete(annotations, waiting)


@given(layouts)
def test_restoring_undoes_consuming(layout: Layout) -> None:
    record = encode(layout)
    for entry in pending.waiting(make_pod(layout), NVIDIA):
        blanked = pending.blank(record, entry.position)
        assert pending.restore(blanked, record, entry.position) == record


@given(layouts, st.integers(0, 200))
def test_text_that_somebody_cut_short_is_blanked_and_restored_all_the_same(
    layout: Layout, length: int
) -> None:
    record = encode(layout)
    cut = record[:length]
    for entry in pending.waiting(make_pod(layout), NVIDIA):
        assert pending.blank(cut, entry.position).count(",") <= cut.count(",")
        restored = pending.restore(cut, record, entry.position)
        assert restored.split(";")[entry.position] == record.split(";")[entry.position]


pods = st.builds(
    make_pod,
    layouts,
    name=st.sampled_from(["p", "q", "r", "s"]),
    uid=st.uuids().map(str),
    bind_time=st.sampled_from(["1", "2", "3", "x"]),
    bind_phase=st.sampled_from(["allocating", "allocating", "allocating", "success", "failed"]),
    phase=st.sampled_from(["Pending", "Pending", "Failed"]),
    deleted=st.booleans(),
)


@given(st.lists(pods, max_size=6), st.lists(uuids, min_size=1, max_size=3))
def test_choice_is_always_a_live_pod_whose_next_container_takes_that_many(
    some: list[Pod], asked: list[str]
) -> None:
    found = pending.candidates(
        some,
        NVIDIA,
        node=NODE,
        count=len(asked),
        consumed={},
        on_malformed=fail_on_malformed,
    )
    choice = pending.choose(found, [DeviceUuid(u) for u in asked])

    exact = [c for c in found if sorted(d.uuid for d in c.entry.devices) == sorted(asked)]
    if choice is None:
        assert not found
        return
    assert pending.allocating(choice.pod, NODE)
    assert len(choice.entry.devices) == len(asked)
    assert choice.entry == pending.waiting(choice.pod, NVIDIA)[0]
    assert choice is (exact or found)[0]


@given(st.lists(uuids, min_size=1, max_size=4), st.sets(st.integers(0, 5), min_size=1), st.data())
def test_preference_is_valid_for_the_kubelet_or_not_given(
    devices: list[str], numbers: set[int], data: st.DataObject
) -> None:
    available = {f"{uuid}-{number}" for uuid in "abc" for number in numbers}
    must = data.draw(st.sets(st.sampled_from(sorted(available)), max_size=3))

    chosen = pending.align(entry_devices(*devices), available=available, must_include=must)

    if chosen is None:
        return
    assert [pending.physical(i) for i in chosen] == devices
    assert len(set(chosen)) == len(devices)
    assert must <= set(chosen) <= available
