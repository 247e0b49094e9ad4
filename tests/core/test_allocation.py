"""What a pod occupies is the peak over its life, counted as Kubernetes counts resources."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.core.allocation import Charge, ContainerDevice, Containers, peak
from hami.core.device import DeviceUuid, Role
from tests.support.builders import given, make_allocation
from tests.support.strategies import pod_roles, small_shares

X, Y = DeviceUuid("GPU-x"), DeviceUuid("GPU-y")


def moments(roles: tuple[Role, ...]) -> list[set[int]]:
    """The containers that run at each moment of a pod's life, by position."""
    lived: list[set[int]] = []
    sidecars: set[int] = set()
    for position, role in enumerate(roles):
        if role is Role.SIDECAR:
            sidecars.add(position)
        if role is not Role.APP:
            lived.append(sidecars | {position})
    lived.append(sidecars | {i for i, role in enumerate(roles) if role is Role.APP})
    return lived


def occupied(containers: Iterable[tuple[ContainerDevice, ...]]) -> dict[str, Counter[str]]:
    total: dict[str, Counter[str]] = defaultdict(Counter)
    for devices in containers:
        for device in devices:
            total[device.uuid].update(slots=1, memory=device.memory, cores=device.cores)
    return total


@forall(data=st.data(), roles=pod_roles(), init_done=st.booleans())
def test_peak_is_the_highest_moment_of_a_simulated_life(
    data: st.DataObject, roles: tuple[Role, ...], init_done: bool
) -> None:
    containers: Containers = tuple(
        tuple(data.draw(st.lists(small_shares, max_size=3))) for _ in roles
    )
    lived = [occupied(containers[i] for i in running) for running in moments(roles)]
    if init_done:
        lived = lived[-1:]

    expected = {
        uuid: Charge(
            slots=max(moment[uuid]["slots"] for moment in lived),
            memory=max(moment[uuid]["memory"] for moment in lived),
            cores=max(moment[uuid]["cores"] for moment in lived),
        )
        for uuid in {uuid for moment in lived for uuid in moment}
    }

    assert peak(containers, roles, init_done=init_done) == expected


@pytest.mark.parametrize(
    ("roles", "init_done", "expected"),
    [
        pytest.param([Role.APP, Role.APP], False, Charge(slots=2, memory=300, cores=30),
                     id="app_containers_add_up"),
        pytest.param([Role.INIT, Role.INIT], False, Charge(slots=1, memory=200, cores=20),
                     id="init_containers_take_turns"),
        pytest.param([Role.INIT, Role.APP], False, Charge(slots=1, memory=200, cores=20),
                     id="an_init_container_makes_room_for_the_app"),
        pytest.param([Role.SIDECAR, Role.INIT], False, Charge(slots=2, memory=300, cores=30),
                     id="a_sidecar_stays_beside_a_later_init_container"),
        pytest.param([Role.INIT, Role.SIDECAR], False, Charge(slots=1, memory=200, cores=20),
                     id="a_sidecar_starts_after_an_earlier_init_container"),
        pytest.param([Role.SIDECAR, Role.APP], False, Charge(slots=2, memory=300, cores=30),
                     id="a_sidecar_stays_beside_the_app"),
        pytest.param([Role.INIT, Role.APP], True, Charge(slots=1, memory=200, cores=20),
                     id="the_app_alone_remains_once_init_is_done"),
        pytest.param([], False, Charge(slots=2, memory=300, cores=30),
                     id="containers_without_a_role_count_as_app"),
    ],
)  # fmt: skip
def test_two_containers_on_one_device(roles: list[Role], init_done: bool, expected: Charge) -> None:
    allocation = make_allocation(
        [given(X, memory=100, cores=10)], [given(X, memory=200, cores=20)], roles=roles
    )

    assert allocation.charges(init_done=init_done) == {X: expected}


def test_a_device_only_init_used_is_free_once_init_is_done() -> None:
    allocation = make_allocation([given(X)], [given(Y)], roles=[Role.INIT, Role.APP])

    assert set(allocation.charges()) == {X, Y}
    assert set(allocation.charges(init_done=True)) == {Y}


def test_two_shares_of_one_device_in_one_container_take_two_slots() -> None:
    allocation = make_allocation([given(X, memory=5), given(X, memory=7)])

    assert allocation.charges() == {X: Charge(slots=2, memory=12)}


def test_a_pod_is_named_with_its_namespace() -> None:
    assert make_allocation(uid="uid-train").pod == "default/train"
