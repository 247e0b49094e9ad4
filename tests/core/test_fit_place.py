"""``place`` agrees with a placer that looks at one device after the other, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.core import fit
from hami.core.allocation import Charge
from hami.core.device import (
    Device,
    DevicePolicy,
    DeviceRequest,
    DeviceUuid,
    PodRequest,
    Role,
    Selection,
    SortKey,
)
from hami.core.table import DeviceTable
from tests.support.builders import (
    OTHER,
    asking,
    make_demand,
    make_device,
    make_devices,
    make_pod_request,
    make_table,
)
from tests.support.strategies import charges, node_devices, pod_requests

Taken = list[list[str]]
"""For each container the devices it gets, sorted."""


@dataclass(slots=True)
class Card:
    """A device and its use, as the plain placer sees it."""

    device: Device
    cordoned: bool
    slots: int
    memory: int
    cores: int


def demand(card: Card, request: DeviceRequest) -> int:
    return request.memory or card.device.memory * request.memory_percent // 100


def acceptable(card: Card, pod: PodRequest, request: DeviceRequest) -> bool:
    d, s = card.device, pod.selection(request.vendor)
    if d.vendor != request.vendor or not d.healthy or card.cordoned:
        return False
    if s.use_types and not any(word in d.model.upper() for word in s.use_types):
        return False
    if any(word in d.model.upper() for word in s.avoid_types):
        return False
    if s.modes and d.mode not in s.modes:
        return False
    if (s.use_uuids and d.uuid not in s.use_uuids) or d.uuid in s.avoid_uuids:
        return False
    if card.slots >= d.slots:
        return False
    if pod.device_policy.mutex and card.slots > 0:
        return False
    if card.memory + demand(card, request) > d.memory:
        return False
    if card.cores + request.cores > d.cores:
        return False
    if d.cores == 100 and request.cores == 100 and card.slots > 0:
        return False
    if request.cores == 0 and d.cores > 0 and card.cores >= d.cores:
        return False
    return d.mode != "mig"


def points(card: Card, pod: PodRequest, request: DeviceRequest) -> Fraction:
    d, w = card.device, pod.weights
    if not (d.slots and d.memory and d.cores):
        return Fraction(0)
    return 10 * (
        w.slots * Fraction(card.slots + 1, d.slots)
        + w.cores * Fraction(card.cores + request.cores, d.cores)
        + w.memory * Fraction(card.memory + demand(card, request), d.memory)
    )


def preferred(cards: list[Card], pod: PodRequest, request: DeviceRequest) -> list[Card]:
    """The acceptable cards, best first; only one NUMA node's where the pod binds to one."""
    bound = pod.selection(request.vendor).numa_bind
    policy = pod.device_policy.bound_to_numa() if bound else pod.device_policy
    good = [card for card in cards if acceptable(card, pod, request)]
    if bound:
        packing = pod.device_policy == DevicePolicy.BINPACK
        for numa in sorted({card.device.numa for card in good}, reverse=not packing):
            here = [card for card in good if card.device.numa == numa]
            if len(here) >= request.count:
                good = here
                break
        else:
            return []

    def value(key: SortKey, card: Card) -> Fraction:
        values: dict[SortKey, Fraction | int] = {
            SortKey.FULLEST: -points(card, pod, request),
            SortKey.EMPTIEST: points(card, pod, request),
            SortKey.HIGH_NUMA: -card.device.numa,
            SortKey.LOW_NUMA: card.device.numa,
            SortKey.FEWEST: card.slots,
        }
        return Fraction(values[key])

    good.sort(key=lambda card: (card.device.index, card.device.uuid), reverse=True)
    return sorted(good, key=lambda card: [value(key, card) for key in policy.keys])


def place_plainly(
    devices: tuple[Device, ...],
    used: Mapping[DeviceUuid, Charge],
    cordoned: frozenset[str],
    pod: PodRequest,
) -> Taken | None:
    cards = [
        Card(d, d.uuid in cordoned, used[d.uuid].slots, used[d.uuid].memory, used[d.uuid].cores)
        for d in devices
    ]
    result: Taken = []
    for container in pod.containers:
        mine: list[tuple[Card, DeviceRequest]] = []
        for request in container.requests:
            best = preferred(cards, pod, request)[: request.count]
            if len(best) < request.count:
                return None
            mine += [(card, request) for card in best]
        if container.role is not Role.INIT:
            for card, request in mine:
                card.slots += 1
                card.memory += demand(card, request)
                card.cores += request.cores
        result.append(sorted(card.device.uuid for card, _ in mine))
    return result


def taken(placement: fit.Placement, pod: PodRequest, table: DeviceTable, row: int) -> Taken | None:
    if not placement.feasible[row]:
        assert not any(step.taken[row].any() for step in placement.steps[-1:])
        return None
    result: Taken = [[] for _ in pod.containers]
    for step in placement.steps:
        result[step.position] += [table.uuids[row][i] for i in np.flatnonzero(step.taken[row])]
    return [sorted(uuids) for uuids in result]


@forall(data=st.data(), pod=pod_requests())
def test_nodes_and_devices_are_those_of_the_plain_placer(
    data: st.DataObject, pod: PodRequest
) -> None:
    nodes = [data.draw(node_devices()) for _ in range(data.draw(st.integers(1, 2)))]
    cordoned = data.draw(st.frozensets(st.sampled_from(["GPU-0", "GPU-3"])))
    table = DeviceTable()
    for number, devices in enumerate(nodes):
        table.set_node(f"node-{number}", devices, cordoned=cordoned)
        used = {d.uuid: data.draw(charges) for d in devices if data.draw(st.booleans())}
        table.charge(f"node-{number}", used, sign=1)

    placement = fit.place(table.view(), pod, need_devices=True)
    quick = fit.place(table.view(), pod, need_devices=False)

    expected = [
        place_plainly(devices, table.used(f"node-{number}"), cordoned, pod)
        for number, devices in enumerate(nodes)
    ]
    assert [taken(placement, pod, table, row) for row in range(len(nodes))] == expected
    assert quick.feasible.tolist() == placement.feasible.tolist()
    assert quick.failed_step.tolist() == placement.failed_step.tolist()
    assert quick.codes.tolist() == placement.codes.tolist()


def chosen(pod: PodRequest, table: DeviceTable) -> Taken | None:
    return taken(fit.place(table.view(), pod, need_devices=True), pod, table, 0)


SMALL = make_demand(memory=1000, cores=10)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        pytest.param(DevicePolicy.BINPACK, "GPU-1", id="binpack_takes_the_fullest"),
        pytest.param(DevicePolicy.SPREAD, "GPU-2", id="spread_takes_the_emptiest"),
        pytest.param(DevicePolicy.MUTEX, "GPU-3", id="mutex_takes_an_unused_one"),
    ],
)
def test_policy_decides_among_devices(policy: DevicePolicy, expected: str) -> None:
    table = make_table([make_device(f"GPU-{i}", index=i) for i in range(4)])
    use = {"GPU-0": (2, 9000), "GPU-1": (1, 30_000), "GPU-2": (1, 0), "GPU-3": (0, 30_000)}
    table.charge(
        "node-0",
        {DeviceUuid(u): Charge(slots=s, memory=m) for u, (s, m) in use.items()},
        sign=1,
    )

    assert chosen(make_pod_request(asking(SMALL), device_policy=policy), table) == [[expected]]


@pytest.mark.parametrize(
    ("small", "used"),
    [
        pytest.param(make_device("GPU-0", slots=2), Charge(slots=1), id="slots"),
        pytest.param(make_device("GPU-0", memory=2000), Charge(memory=4000), id="memory"),
        pytest.param(make_device("GPU-0", cores=50), Charge(cores=10), id="cores"),
    ],
)
def test_a_score_counts_the_request_itself(small: Device, used: Charge) -> None:
    """The small device is idle, yet the request would fill it more than the other."""
    table = make_table([small, make_device("GPU-1", index=1)])
    table.charge("node-0", {DeviceUuid("GPU-1"): used}, sign=1)
    pod = make_pod_request(asking(make_demand(memory=1000, cores=20)))

    assert chosen(pod, table) == [["GPU-1"]]


@pytest.mark.parametrize("policy", ["binpack", "spread", "mutex", "numa", "topology-aware"])
def test_equal_devices_are_taken_by_higher_numa_then_index_then_uuid(policy: str) -> None:
    table = make_table(
        [
            make_device("GPU-d", index=0, numa=0),
            make_device("GPU-c", index=3, numa=1),
            make_device("GPU-b", index=2, numa=1),
            make_device("GPU-a", index=2, numa=1),
        ]
    )

    def pod(count: int) -> PodRequest:
        return make_pod_request(
            asking(make_demand(count, memory=1)), device_policy=DevicePolicy.parse(policy)
        )

    assert [chosen(pod(count), table) for count in (1, 2, 3)] == [
        [["GPU-c"]],
        [["GPU-b", "GPU-c"]],
        [["GPU-a", "GPU-b", "GPU-c"]],
    ]


def test_numa_bind_takes_all_devices_from_one_node_that_has_enough() -> None:
    table = make_table([make_device(f"GPU-{i}", index=i, numa=(0, 1, 1, 2)[i]) for i in range(4)])
    two = asking(make_demand(2, memory=1))

    assert chosen(make_pod_request(two, numa_bind=True), table) == [["GPU-1", "GPU-2"]]
    three = asking(make_demand(3, memory=1))
    assert chosen(make_pod_request(three, numa_bind=True), table) is None
    assert chosen(make_pod_request(three), table) is not None


def test_numa_bind_is_about_the_vendor_that_it_names() -> None:
    """NVIDIA's devices are of one NUMA node, the other's of two."""
    devices = [make_device(f"GPU-{i}", index=i, numa=i % 2) for i in range(4)]
    others = [make_device(f"NPU-{i}", index=i, numa=i, vendor=OTHER.name) for i in range(2)]
    table = make_table([*devices, *others])
    both = asking(make_demand(2, memory=1), make_demand(2, memory=1, vendor=OTHER.name))

    assert chosen(make_pod_request(both, numa_bind=True), table) == [
        ["GPU-1", "GPU-3", "NPU-0", "NPU-1"]
    ]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        pytest.param("binpack", "GPU-1 GPU-2", id="packing_begins_at_the_lowest"),
        pytest.param("spread", "GPU-0 GPU-3", id="spreading_begins_at_the_highest"),
        pytest.param("spread,binpack", "GPU-0 GPU-3", id="a_list_begins_at_the_highest"),
    ],
)
def test_numa_bind_takes_the_first_node_with_enough(policy: str, expected: str) -> None:
    table = make_table([make_device(f"GPU-{i}", index=i, numa=(2, 1, 1, 2)[i]) for i in range(4)])

    pod = make_pod_request(
        asking(make_demand(2, memory=1)), numa_bind=True, device_policy=DevicePolicy.parse(policy)
    )

    assert chosen(pod, table) == [expected.split()]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        pytest.param("binpack", [2, 1, 3, 0], id="binpack_highest_score"),
        pytest.param("spread", [3, 0, 1, 2], id="spread_lowest_score_then_higher_numa"),
        pytest.param("anything", [3, 0, 1, 2], id="unknown_is_spread"),
        pytest.param("", [3, 0, 1, 2], id="empty_is_spread"),
        pytest.param("topology-aware", [3, 0, 1, 2], id="topology_without_links_is_spread"),
        pytest.param("numa", [3, 2, 1, 0], id="numa_higher_node_then_higher_index"),
        pytest.param("numa,binpack", [2, 3, 1, 0], id="numa_then_binpack"),
        pytest.param("numa, spread", [3, 2, 0, 1], id="numa_then_spread"),
        pytest.param("binpack,numa", [2, 1, 3, 0], id="binpack_then_numa"),
        pytest.param("numa,binpack,spread", [2, 3, 1, 0], id="a_third_key_that_decides_nothing"),
        pytest.param("mutex,binpack", [3, 0], id="mutex_in_a_list_narrows"),
        pytest.param("mutex", [3, 0], id="mutex_takes_the_unused"),
        pytest.param("topology-aware,", [3, 0, 1, 2], id="no_sort_key_named_is_spread"),
    ],
)
def test_order_of_each_policy(policy: str, expected: list[int]) -> None:
    """Devices 0 and 1 are on NUMA node 0, 2 and 3 on 1; 1 is used, 2 more."""
    table = make_table([make_device(f"GPU-{i}", index=i, numa=i // 2) for i in range(4)])
    table.charge("node-0", {DeviceUuid("GPU-1"): Charge(slots=1, memory=100)}, sign=1)
    table.charge("node-0", {DeviceUuid("GPU-2"): Charge(slots=2, memory=200)}, sign=1)

    def first(count: int) -> set[str]:
        pod = make_pod_request(
            asking(make_demand(count, memory=1)), device_policy=DevicePolicy.parse(policy)
        )
        found = chosen(pod, table)
        assert found is not None
        return set(found[0])

    order: list[str] = []
    for count in range(1, len(expected) + 1):
        order += first(count) - set(order)
    assert order == [f"GPU-{i}" for i in expected]


def test_app_containers_see_what_the_ones_before_them_take() -> None:
    table = make_table([make_device(memory=1000)])
    half = asking(make_demand(memory=500))

    assert chosen(make_pod_request(half, half), table) == [["GPU-0"], ["GPU-0"]]
    assert chosen(make_pod_request(half, half, half), table) is None


def test_init_containers_take_turns_on_one_device() -> None:
    table = make_table([make_device()])
    whole = make_demand(percent=100, cores=100)
    pod = make_pod_request(
        asking(whole, role=Role.INIT), asking(whole, role=Role.INIT), asking(whole)
    )

    assert chosen(pod, table) == [["GPU-0"]] * 3


def test_sidecars_stay_beside_what_comes_later_only() -> None:
    table = make_table([make_device(memory=1000)])
    sidecar = asking(make_demand(memory=600), role=Role.SIDECAR)
    big_init = asking(make_demand(memory=600), role=Role.INIT)

    assert chosen(make_pod_request(big_init, sidecar), table) is not None
    assert chosen(make_pod_request(sidecar, big_init), table) is None
    assert chosen(make_pod_request(sidecar, asking(make_demand(memory=600))), table) is None


def test_a_container_of_two_vendors_needs_both() -> None:
    other = make_device("NPU-0", vendor=OTHER.name)
    both = make_pod_request(asking(SMALL, make_demand(memory=5, vendor=OTHER.name)))

    assert chosen(both, make_table([make_device(), other])) == [["GPU-0", "NPU-0"]]
    assert chosen(both, make_table([make_device()])) is None


def test_a_pod_that_asks_for_nothing_fits_everywhere() -> None:
    placement = fit.place(
        make_table([], [make_device()]).view(), make_pod_request(asking()), need_devices=True
    )

    assert placement.feasible.tolist() == [True, True]
    assert placement.steps == ()


def test_the_first_container_without_devices_is_remembered_for_each_node() -> None:
    table = make_table(make_devices(1), make_devices(2), make_devices(3))
    pod = make_pod_request(
        asking(make_demand(1, memory=1)), asking(), asking(make_demand(2, memory=1)),
        asking(make_demand(3, memory=1)),
    )  # fmt: skip

    placement = fit.place(table.view(), pod, need_devices=False)

    assert placement.failed_step.tolist() == [1, 2, -1]
    assert [step.position for step in placement.steps] == [0, 2, 3]


def test_a_share_of_memory_is_taken_of_each_devices_own_total() -> None:
    table = make_table([make_device("GPU-0", memory=1001), make_device("GPU-1", memory=80_000)])

    placement = fit.place(
        table.view(), make_pod_request(asking(make_demand(2, percent=50))), need_devices=True
    )

    assert placement.steps[0].question.memory[0, :2].tolist() == [500, 40_000]


def test_wanted_devices_are_found_on_some_rows_too() -> None:
    table = make_table([make_device("GPU-a")], [make_device("GPU-b")], [make_device("GPU-c")])
    pod = make_pod_request(
        asking(SMALL), selection=Selection(use_uuids=frozenset({"GPU-c", "GPU-a"}))
    )

    placement = fit.place(table.copy([2, 1]), pod, need_devices=False)

    assert placement.feasible.tolist() == [True, False]


RING = {
    f"GPU-{i}": {f"GPU-{j}": 100 if i // 2 == j // 2 else 20 for j in range(4)} for i in range(4)
}
"""Four devices in two linked pairs."""


@pytest.mark.parametrize(
    ("count", "used", "expected"),
    [
        pytest.param(2, "", "GPU-2 GPU-3", id="a_linked_pair"),
        pytest.param(2, "GPU-3", "GPU-0 GPU-1", id="the_pair_that_is_free"),
        pytest.param(1, "GPU-3", "GPU-2", id="one_alone_is_the_one_without_its_partner"),
        pytest.param(4, "", "GPU-0 GPU-1 GPU-2 GPU-3", id="all"),
    ],
)
def test_topology_takes_the_best_linked_devices(count: int, used: str, expected: str) -> None:
    table = DeviceTable()
    table.set_node("node-0", [make_device(f"GPU-{i}", index=i) for i in range(4)], pairs=RING)
    if used:
        table.charge("node-0", {DeviceUuid(used): Charge(slots=1, memory=40_000)}, sign=1)
    pod = make_pod_request(
        asking(make_demand(count, memory=40_000)), device_policy=DevicePolicy.TOPOLOGY
    )

    assert chosen(pod, table) == [expected.split()]


def test_new_links_are_a_change_of_the_node() -> None:
    table = DeviceTable()
    devices = [make_device(f"GPU-{i}", index=i) for i in range(4)]
    table.set_node("node-0", devices)

    assert table.set_node("node-0", devices, pairs=RING)
    assert not table.set_node("node-0", devices, pairs=RING)
    assert table.set_node("node-0", devices)
