"""The text of many gauges: written once, kept while nothing changes, safe whatever names say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from hami import gauges
from hami.controllers.gaugetext import (
    CONTAINER_GAUGES,
    DEVICE_GAUGES,
    JOINED,
    LABEL_CHARACTERS,
    DeviceUse,
    GaugeText,
    Labels,
    container_views,
    device_views,
)
from hami.core.device import Device
from tests.support.builders import given as given_device
from tests.support.builders import make_allocation, make_device
from tests.support.strategies import any_text

Samples = dict[str, list[tuple[Labels, float]]]


def parsed(text: GaugeText[Any], things: Any) -> Samples:
    written = b"".join(text.write(things)).decode()
    return {
        family.name: [(sample.labels, sample.value) for sample in family.samples]
        for family in text_string_to_metric_families(written)
    }


def node(name: str, *devices: Device, version: object = 0) -> tuple[str, object, Any]:
    uses = [DeviceUse(device=d, slots=1, memory=d.memory // 2, cores=10) for d in devices]
    return name, version, lambda: device_views(name, uses)


def test_every_family_comes_once_with_all_its_nodes() -> None:
    """Also where there are more nodes than go into one piece."""
    text = GaugeText(DEVICE_GAUGES, older=gauges.OLDER)
    things = [node(f"n{i}", make_device()) for i in range(2 * JOINED + 1)]

    pieces = list(text.write(things))
    names = re.findall(r"^# TYPE (\S+) gauge$", b"".join(pieces).decode(), re.MULTILINE)

    assert len(names) == len(set(names)) == 2 * len(DEVICE_GAUGES)
    assert len(pieces) == 3 * len(names)
    assert all(len(samples) == len(things) for samples in parsed(text, things).values())


def test_without_anything_there_is_no_family() -> None:
    assert list(GaugeText(DEVICE_GAUGES).write([])) == []
    assert parsed(GaugeText(DEVICE_GAUGES), [node("n0", make_device(memory=0))]).keys() == {
        row.name for row in DEVICE_GAUGES if row is not gauges.NODE_GPU_MEMORY_RATIO
    }


def test_only_what_changed_is_written_anew_and_what_is_gone_is_forgotten() -> None:
    asked: list[str] = []

    def thing(name: str, version: int) -> tuple[str, object, Any]:
        def views() -> Iterator[tuple[Labels, DeviceUse]]:
            asked.append(name)
            use = DeviceUse(device=make_device(), slots=version, memory=0, cores=0)
            yield from device_views(name, [use])

        return name, version, views

    text = GaugeText(DEVICE_GAUGES)
    list(text.write([thing("a", 1), thing("b", 1)]))
    shown = parsed(text, [thing("a", 1), thing("b", 2)])
    list(text.write([thing("b", 2)]))
    list(text.write([thing("a", 1), thing("b", 2)]))

    assert asked == ["a", "b", "b", "a"]
    values = {labels["node"]: value for labels, value in shown["hami_gpu_shared_count"]}
    assert values == {"a": 1, "b": 2}


@given(st.tuples(any_text, any_text, any_text), st.tuples(any_text, any_text, any_text))
def test_names_of_any_kind_stay_within_their_labels(
    device: tuple[str, str, str], pod: tuple[str, str, str]
) -> None:
    """Quotes, new lines, lone surrogates and megabytes: one line each, and it can be parsed."""
    name, uuid, model = device
    shown = parsed(GaugeText(DEVICE_GAUGES), [node(name, make_device(uuid, model=model))])
    for samples in shown.values():
        ((labels, _),) = samples
        assert labels["device_type"] == readable(model)
        assert (labels["node"], labels["device_uuid"]) == (readable(name), readable(uuid))

    namespace, uid, held = pod
    allocation = make_allocation([given_device(held)], uid=f"uid-{uid}", namespace=namespace)
    things = [("p", allocation, lambda: container_views(allocation))]
    for samples in parsed(GaugeText(CONTAINER_GAUGES), things).values():
        ((labels, _),) = samples
        assert labels["device_uuid"] == readable(held)


def readable(text: str) -> str:
    return text[:LABEL_CHARACTERS].encode(errors="replace").decode()


def test_long_names_are_cut() -> None:
    shown = parsed(GaugeText(DEVICE_GAUGES), [node("n0", make_device(model="x" * 100_000))])

    assert len(shown["hami_gpu_shared_count"][0][0]["device_type"]) == LABEL_CHARACTERS


def test_no_line_comes_twice() -> None:
    """Two vendors may claim one id, and a record may name a device twice."""
    twice = [make_device("GPU-0"), make_device("GPU-0")]
    assert len(parsed(GaugeText(DEVICE_GAUGES), [node("n0", *twice)])["hami_gpu_shared_count"]) == 1

    share = given_device("GPU-0", memory=10, cores=1)
    allocation = make_allocation([share, share], [share])
    things = [("p", 0, lambda: container_views(allocation))]
    found = parsed(GaugeText(CONTAINER_GAUGES), things)["hami_vgpu_core_allocated_ratio"]

    assert [(labels["container_index"], value) for labels, value in found] == [("0", 2), ("1", 1)]
