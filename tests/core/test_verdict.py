"""The words in which people and programs are told why."""

from __future__ import annotations

from collections import Counter

import pytest

from hami.core.device import DeviceUuid
from hami.core.verdict import DeviceVerdict, Reason, Unit, Verdict, summary


def device(
    reason: Reason | None, *, needed: int = 0, free: int = 0, unit: Unit = Unit.NONE
) -> DeviceVerdict:
    return DeviceVerdict(
        uuid=DeviceUuid("GPU-0"), reason=reason, needed=needed, free=free, unit=unit
    )


@pytest.mark.parametrize(
    ("verdict", "text"),
    [
        pytest.param(device(None), "GPU-0 fits", id="a_device_that_fits"),
        pytest.param(device(Reason.CORDONED), "GPU-0 CardCordoned", id="a_reason_without_amounts"),
        pytest.param(
            device(Reason.MEMORY, needed=3000, free=1000, unit=Unit.MIB),
            "GPU-0 CardInsufficientMemory: lacks 2000 MiB",
            id="a_lack_of_memory",
        ),
        pytest.param(
            device(Reason.CORES, needed=30, free=10, unit=Unit.PERCENT),
            "GPU-0 CardInsufficientCore: lacks 20 %",
            id="a_lack_of_cores",
        ),
    ],
)
def test_a_device_verdict_reads_as_a_line(verdict: DeviceVerdict, text: str) -> None:
    assert str(verdict) == text


@pytest.mark.parametrize(
    ("needed", "reasons", "text"),
    [
        pytest.param(1, [], "node unregistered", id="no_devices_at_all"),
        pytest.param(
            3, [Reason.MEMORY, None], "NodeInsufficientDevice 3 of 2", id="too_few_devices"
        ),
        pytest.param(
            1,
            [Reason.UNHEALTHY] + [Reason.MEMORY] * 7,
            "1/8 CardNotHealth, 7/8 CardInsufficientMemory",
            id="reasons_are_counted_and_sorted_as_text",
        ),
        pytest.param(
            2,
            [Reason.MEMORY, None],
            "1/2 AllocatedCardsInsufficientRequest, 1/2 CardInsufficientMemory",
            id="some_fit_but_too_few",
        ),
        pytest.param(2, [None, None], "2/2 NumaNotFit", id="enough_fit_but_apart"),
    ],
)
def test_a_nodes_reasons_read_as_a_line(
    needed: int, reasons: list[Reason | None], text: str
) -> None:
    verdict = Verdict(
        node="node-0", container="main", needed=needed, devices=tuple(map(device, reasons))
    )
    counted = Counter(reason for reason in reasons if reason is not None)

    assert str(verdict) == text
    assert summary(needed, len(reasons), counted) == text
