"""The words of a refusal: what they say, and that they stay within an Event's size."""

from __future__ import annotations

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.core.device import DeviceUuid
from hami.core.placement import Placer
from hami.core.telling import Miss, count_reasons, refusal_line
from hami.core.verdict import DeviceVerdict, NodeReason, Reason, Unit, Verdict
from tests.support.builders import (
    asking,
    make_demand,
    make_device,
    make_devices,
    make_pod_request,
    make_table,
)

EVENT_BYTES = 1024


def device(
    uuid: str = "GPU-7",
    reason: Reason | None = Reason.MEMORY,
    *,
    needed: int = 3000,
    free: int = 1800,
    unit: Unit = Unit.MIB,
) -> DeviceVerdict:
    return DeviceVerdict(uuid=DeviceUuid(uuid), reason=reason, needed=needed, free=free, unit=unit)


def plain(uuid: str, reason: Reason) -> DeviceVerdict:
    return device(uuid, reason, needed=0, free=0, unit=Unit.NONE)


def miss(*devices: DeviceVerdict, needed: int = 1, **more: object) -> str:
    verdict = Verdict(node="node-3", needed=needed, devices=devices, **more)  # type: ignore[arg-type]
    return str(Miss.of(verdict))


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        pytest.param(miss(device()), "node-3: GPU-7 lacks 1200 MiB", id="memory"),
        pytest.param(
            miss(device(reason=Reason.CORES, needed=50, free=20, unit=Unit.PERCENT)),
            "node-3: GPU-7 lacks 30 % of compute",
            id="cores",
        ),
        pytest.param(
            miss(device(reason=Reason.SLOTS, needed=1, free=0, unit=Unit.SLOTS)),
            "node-3: GPU-7 lacks a slot",
            id="slots",
        ),
        pytest.param(
            miss(plain("GPU-7", Reason.UNHEALTHY)), "node-3: GPU-7 is unhealthy", id="health"
        ),
        pytest.param(
            miss(plain("GPU-7", Reason.MIG)), "node-3: GPU-7 CardMigTopologyInfeasible", id="others"
        ),
        pytest.param(
            miss(device("a", free=100), device("b", free=2900), plain("c", Reason.TYPE)),
            "node-3: b lacks 100 MiB",
            id="nearest device",
        ),
        pytest.param(
            miss(device("a"), device("b"), device("c", None), needed=3),
            "node-3: a lacks 1200 MiB, b lacks 1200 MiB",
            id="as many devices as are missing",
        ),
        pytest.param(
            miss(*(device(f"d{i}") for i in range(8)), needed=8),
            "node-3: d0 lacks 1200 MiB, d1 lacks 1200 MiB, d2 lacks 1200 MiB, d3 lacks 1200 MiB "
            "and 4 more devices do not fit",
            id="many devices",
        ),
        pytest.param(
            miss(device(), needed=4), "node-3: has 1 of the 4 devices asked for", id="too few"
        ),
        pytest.param(
            miss(device("a", None), device("b", None), device("c"), needed=2),
            "node-3: 2 devices fit, but not 2 of one NUMA node",
            id="numa",
        ),
        pytest.param(miss(), "node-3: node unregistered", id="unregistered"),
        pytest.param(
            miss(device("a", None), reason=NodeReason.QUOTA, note="quota a/b: needs 2, 1 left"),
            "node-3: quota a/b: needs 2, 1 left",
            id="the node as a whole",
        ),
    ],
)
def test_miss_says_what_is_missing(told: str, expected: str) -> None:
    assert told == expected


def test_nodes_are_counted_for_each_of_their_reasons() -> None:
    failed = [
        "7/8 CardInsufficientMemory, 1/8 CardNotHealth",
        "8/8 CardInsufficientMemory",
        "NodeInsufficientDevice 4 of 2",
        "node unregistered",
        "ResourceQuotaNotFit: quota a/b: needs 2, 1 of 4 left",
    ]

    assert count_reasons(failed) == (
        ("CardInsufficientMemory", 2),
        ("CardNotHealth", 1),
        ("NodeInsufficientDevice", 1),
        ("ResourceQuotaNotFit", 1),
        ("node unregistered", 1),
    )


def test_line_has_reasons_by_frequency_then_the_nearest_then_the_notes() -> None:
    nearest = Miss.of(Verdict(node="node-3", needed=1, devices=(device(),)))

    line = refusal_line(
        5000,
        (("CardInsufficientMemory", 3000), ("CardNotHealth", 2000)),
        [nearest, nearest],
        ("no node would do",),
    )

    assert line == (
        "no available node, 5000 do not fit: 3000 x CardInsufficientMemory, 2000 x CardNotHealth; "
        "nearest: node-3: GPU-7 lacks 1200 MiB; no node would do"
    )


def test_line_of_one_node_and_of_none() -> None:
    assert refusal_line(1, (("CardNotHealth", 1),), ()) == (
        "no available node, 1 does not fit: 1 x CardNotHealth"
    )
    assert "about none" in refusal_line(0, (), ())


@forall(
    words=st.lists(st.text(max_size=400), max_size=40),
    names=st.lists(st.text(max_size=400), min_size=8, max_size=8),
    notes=st.lists(st.text(max_size=400), max_size=9),
)
def test_line_fits_an_event_whatever_nodes_and_devices_are_called(
    words: list[str], names: list[str], notes: list[str]
) -> None:
    devices = tuple(device(name) for name in names)
    nearest = Miss.of(Verdict(node="n" * 253, needed=8, devices=devices))

    line = refusal_line(5000, [(word, 5000) for word in words], [nearest], notes)

    assert line.isprintable()
    assert len(line.encode()) <= 3 * EVENT_BYTES
    if all(text.isascii() for text in (*words, *names, *notes)):
        assert len(line) <= 2 * EVENT_BYTES


def test_line_fits_an_event_at_5000_nodes_with_every_reason() -> None:
    uuids = [f"GPU-{i:08x}-0000-0000-0000-000000000000" for i in range(8)]
    nearest = Miss.of(
        Verdict(node="n" * 63, needed=8, devices=tuple(device(uuid) for uuid in uuids))
    )
    reasons = [(reason.value, 5000) for reason in Reason] + [(r.value, 5000) for r in NodeReason]

    line = refusal_line(5000, reasons, [nearest], ())

    assert len(line.encode()) <= EVENT_BYTES
    assert "nearest: " in line


def test_what_the_placer_finds_is_what_is_told() -> None:
    table = make_table([make_device("GPU-0", memory=1000)], make_devices(4, memory=1800))
    request = make_pod_request(asking(make_demand(memory=3000)))

    verdicts = Placer(table).nearest(request, ("node-0", "node-1"), count=2)

    assert [str(Miss.of(verdict)) for verdict in verdicts] == [
        "node-1: GPU-0 lacks 1200 MiB",
        "node-0: GPU-0 lacks 2000 MiB",
    ]
