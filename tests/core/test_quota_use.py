"""What pods count for in their namespace, and what requests need before devices are chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from hami.core.allocation import Allocation, Charge, Containers, peak
from hami.core.device import (
    ContainerRequest,
    DeviceRequest,
    DeviceUuid,
    PodRequest,
    Role,
    VendorName,
)
from hami.core.quantity import MiB
from hami.core.quota import Amount, Need, asks_shares, needs, use_of
from hami.core.vendors.nvidia import NVIDIA
from tests.support.builders import OTHER, given, make_allocation, make_demand
from tests.support.strategies import device_requests, pod_roles, small_containers

N = NVIDIA.name
INIT, SIDECAR, APP = Role.INIT, Role.SIDECAR, Role.APP


def request_of(*containers: tuple[Role, DeviceRequest]) -> PodRequest:
    return PodRequest(
        containers=tuple(
            ContainerRequest(name=f"c{i}", role=role, requests=(asked,))
            for i, (role, asked) in enumerate(containers)
        )
    )


# -- what a pod counts for ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("containers", "roles", "init_done", "use"),
    [
        pytest.param([[("a", 10, 1)], [("b", 20, 2)]], [APP, APP], False, (30, 3), id="apps"),
        pytest.param([[("a", 10, 1), ("b", 20, 2)]], [APP], False, (30, 3), id="two devices"),
        pytest.param([[("a", 50, 1)], [("a", 20, 2)]], [INIT, APP], False, (50, 2), id="init"),
        pytest.param([[("a", 50, 1)], [("a", 20, 2)]], [INIT, APP], True, (20, 2), id="init done"),
        pytest.param(
            [[("a", 50, 5)], [("b", 20, 2)], [("b", 1, 1)]],
            [INIT, APP, APP],
            False,
            (50, 5),
            id="init on another device is not added",
        ),
        pytest.param(
            [[("a", 9, 1)], [("b", 5, 1)], [("a", 20, 2)]],
            [SIDECAR, INIT, APP],
            False,
            (29, 3),
            id="sidecar beside the apps",
        ),
        pytest.param(
            [[("a", 9, 1)], [("b", 50, 1)], [("a", 20, 2)]],
            [SIDECAR, INIT, APP],
            False,
            (59, 3),
            id="sidecar beside a larger init",
        ),
        pytest.param(
            [[("b", 50, 1)], [("a", 9, 1)], [("a", 20, 2)]],
            [INIT, SIDECAR, APP],
            False,
            (50, 3),
            id="sidecar after the init",
        ),
        pytest.param([[("a", 10, 1)], [("a", 10, 1)]], [APP], False, (20, 2), id="more than roles"),
        pytest.param([[], [("a", 5, 1)]], [INIT, APP], False, (5, 1), id="no devices in front"),
    ],
)
def test_use_is_the_peak_of_the_sum(
    containers: list[list[tuple[str, int, int]]],
    roles: list[Role],
    init_done: bool,
    use: tuple[int, int],
) -> None:
    allocation = make_allocation(
        *[[given(d, memory=m, cores=c) for d, m, c in devices] for devices in containers],
        roles=roles,
    )

    assert use_of(allocation, init_done=init_done) == {N: Amount(memory=use[0], cores=use[1])}


def test_vendors_are_counted_apart_and_nothing_is_left_out() -> None:
    allocation = make_allocation(
        [given("a", memory=10, cores=1), given("b", memory=20, vendor=OTHER.name)],
        [given("c", memory=0, cores=0, vendor="THIRD")],
    )

    assert use_of(allocation) == {N: Amount(memory=10, cores=1), OTHER.name: Amount(memory=20)}


@hypothesis_given(small_containers, pod_roles(), st.booleans())
def test_use_counts_like_the_charges_of_one_device(
    containers: Containers, roles: tuple[Role, ...], init_done: bool
) -> None:
    """With everything moved to one device, the charge of that device is the use."""
    one = tuple(
        tuple(replace(d, uuid=DeviceUuid("GPU-0")) for d in devices) for devices in containers
    )
    charge = peak(one, roles, init_done=init_done).get(DeviceUuid("GPU-0"), Charge())

    use = use_of(make_allocation(*containers, roles=roles), init_done=init_done)

    assert use.get(N, Amount()) == Amount(memory=charge.memory, cores=charge.cores)


@hypothesis_given(small_containers, pod_roles())
def test_use_is_at_most_the_sum_of_the_charges_and_shrinks(
    containers: Containers, roles: tuple[Role, ...]
) -> None:
    allocation: Allocation = make_allocation(*containers, roles=roles)
    most = sum((charge for charge in allocation.charges().values()), Charge())

    full = use_of(allocation).get(N, Amount())
    later = use_of(allocation, init_done=True).get(N, Amount())

    assert full.memory <= most.memory
    assert full.cores <= most.cores
    assert later | full == full


# -- what a request needs -----------------------------------------------------------------------


def test_need_counts_every_device_and_leaves_shares_open() -> None:
    request = request_of(
        (INIT, make_demand(2, memory=100, cores=10)),
        (APP, make_demand(1, percent=50, cores=30)),
        (APP, make_demand(1, memory=100)),
    )

    assert needs(request) == {N: Need(memory=None, cores=30)}
    assert asks_shares(request) == {N}
    assert needs(request, device_memory={N: 1001}) == {N: Need(memory=600, cores=30)}
    assert needs(request, device_memory={}) == {N: Need(memory=200, cores=30)}


def test_vendor_of_which_nothing_is_counted_is_needed_all_the_same() -> None:
    request = request_of((APP, make_demand(1, percent=50, vendor=OTHER.name)))

    assert needs(request) == {OTHER.name: Need(memory=None, cores=0)}
    assert needs(request, device_memory={}) == {OTHER.name: Need(memory=0, cores=0)}


@st.composite
def placed_pods(
    draw: st.DrawFn,
) -> tuple[PodRequest, Allocation, dict[VendorName, tuple[int, int]]]:
    """A pod, the devices it got on some node, and the range of their sizes."""
    roles = draw(pod_roles())
    asked = [draw(device_requests()) for _ in roles]
    sizes = [
        draw(st.lists(st.integers(0, 5000), min_size=a.count, max_size=a.count)) for a in asked
    ]
    containers = [
        [
            given(f"GPU-{i}", memory=a.memory or size * a.memory_percent // 100, cores=a.cores)
            for i, size in enumerate(own)
        ]
        for a, own in zip(asked, sizes, strict=True)
    ]
    every = [size for own in sizes for size in own] or [0]
    request = request_of(*zip(roles, asked, strict=True))
    allocation = make_allocation(*containers, roles=roles)
    return request, allocation, {N: (min(every), max(every))}


@hypothesis_given(placed_pods())
def test_needs_bound_what_the_pod_will_count_for(
    placed: tuple[PodRequest, Allocation, dict[VendorName, tuple[int, int]]],
) -> None:
    """With the smallest device from below, with the largest from above; exactly without shares."""
    request, allocation, sizes = placed
    least = needs(request, device_memory={v: low for v, (low, _) in sizes.items()})
    most = needs(request, device_memory={v: high for v, (_, high) in sizes.items()})
    known = needs(request)

    use = use_of(allocation)
    for vendor, need in known.items():
        exact = use.get(vendor, Amount())
        low, high = least[vendor].memory, most[vendor].memory
        assert low is not None
        assert high is not None
        assert low <= exact.memory <= high
        assert least[vendor].cores == most[vendor].cores == need.cores == exact.cores
        assert need.memory in (None, exact.memory)
        assert (need.memory is None) is (vendor in asks_shares(request))


def test_share_is_rounded_as_the_device_is_charged() -> None:
    request = request_of((APP, make_demand(3, percent=33)))

    assert needs(request, device_memory={N: MiB(100_001)}) == {N: Need(memory=3 * 33_000, cores=0)}
