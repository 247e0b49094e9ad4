"""Scores follow the stated formulas; priorities never hide the best."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.core import score
from hami.core.allocation import Charge
from hami.core.device import Device, Weights
from tests.support.builders import make_device, make_devices, make_table


def device_score(device: Device, used: Charge, *, weights: Weights, percent: int) -> float:
    table = make_table([device])
    table.charge("node-0", {device.uuid: used}, sign=1)
    columns = table.view().columns
    scores = score.device_scores(
        columns, slots=1, memory=columns.memory * percent // 100, cores=0, weights=weights
    )
    return float(scores[0, 0])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        pytest.param(Weights(), 16.0, id="all_weights_one"),
        pytest.param(Weights(memory=3), 26.0, id="memory_weighs_three"),
        pytest.param(Weights(slots=0, cores=0), 5.0, id="memory_alone"),
    ],
)
def test_golden_device_score(weights: Weights, expected: float) -> None:
    device = make_device(slots=10, cores=100, memory=100)
    used = Charge(slots=1, cores=90, memory=10)

    assert device_score(device, used, weights=weights, percent=40) == expected


@pytest.mark.parametrize(
    "device",
    [
        pytest.param(make_device(slots=0), id="no_slots"),
        pytest.param(make_device(memory=0), id="no_memory"),
        pytest.param(make_device(cores=0), id="no_cores"),
    ],
)
def test_a_device_without_some_capacity_scores_zero(device: Device) -> None:
    used = Charge(slots=1, memory=5, cores=5)
    table = make_table([device])
    table.charge("node-0", {device.uuid: used}, sign=1)

    assert device_score(device, used, weights=Weights(), percent=10) == 0
    assert score.node_scores(table.view().columns).tolist() == [0]


def test_the_largest_weights_still_order_devices() -> None:
    heavy = Weights(slots=10**18 - 1, cores=10**18 - 1, memory=10**18 - 1)
    empty, full = Charge(), Charge(slots=9, cores=90, memory=39_000)

    assert device_score(make_device(), empty, weights=heavy, percent=1) < device_score(
        make_device(), full, weights=heavy, percent=1
    )


def test_a_nodes_score_is_the_used_share_of_all_its_devices() -> None:
    table = make_table(make_devices(2, memory=1000), make_devices(4, memory=1000), [])
    table.charge("node-0", {table.uuids[0][0]: Charge(slots=5, memory=500, cores=100)}, sign=1)

    scores = score.node_scores(table.view().columns)

    assert scores.tolist() == [10 * (5 / 20 + 500 / 2000 + 100 / 200), 0, 0]


def test_scores_that_differ_by_rounding_alone_are_equal() -> None:
    left = make_device("GPU-0", slots=10, cores=100, memory=1000)
    table = make_table([left, make_device("GPU-1", slots=10, cores=100, memory=1000)])
    table.charge(
        "node-0",
        {
            table.uuids[0][0]: Charge(slots=1, cores=20, memory=300),
            table.uuids[0][1]: Charge(slots=3, cores=20, memory=100),
        },
        sign=1,
    )
    columns = table.view().columns

    scores = score.device_scores(
        columns, slots=0, memory=np.zeros_like(columns.memory), cores=0, weights=Weights()
    )

    assert (1 / 10 + 20 / 100) + 300 / 1000 != (3 / 10 + 20 / 100) + 100 / 1000
    assert scores[0, 0] == scores[0, 1]


preferences = st.lists(st.floats(-1000, 1000), min_size=1, max_size=20)


@forall(preference=preferences, data=st.data())
def test_priorities_keep_order_within_bounds_and_give_ten_to_the_best_alone(
    preference: list[float], data: st.DataObject
) -> None:
    top = [i for i, p in enumerate(preference) if p == max(preference)]
    best = data.draw(st.sampled_from(top))

    result = score.priorities(np.array(preference), best=best).tolist()

    assert result[best] == score.MAX_PRIORITY
    others = [(p, r) for i, (p, r) in enumerate(zip(preference, result, strict=True)) if i != best]
    assert all(0 <= r < score.MAX_PRIORITY for _, r in others)
    assert [r for _, r in sorted(others)] == sorted(r for _, r in others)


def test_equal_preferences_leave_only_the_best_above_zero() -> None:
    assert score.priorities(np.array([3.0, 3.0, 3.0]), best=1).tolist() == [0, 10, 0]
