"""Where MIG instances go: known devices, and laws against the plain definition on every mask."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.core import mig
from hami.core.device import MigPlacement, MigProfile
from hami.core.quantity import MiB, Percent
from tests.support.geometries import A30, A100, H100_ALL, Profiles

DEVICES = {"A100": A100, "H100": H100_ALL, "A30": A30}
devices = pytest.mark.parametrize("profiles", DEVICES.values(), ids=DEVICES)

Option = tuple[MigProfile, MigPlacement]


def at(start: int, size: int) -> MigPlacement:
    return MigPlacement(start=start, size=size)


def bits(placement: MigPlacement) -> int:
    return sum(1 << i for i in range(placement.start, placement.start + placement.size))


def size(profile: MigProfile) -> tuple[int, int]:
    return profile.memory, profile.slices


def legal(profile: MigProfile) -> list[MigPlacement]:
    return [p for p in profile.placements if p.size > 0 and 0 <= p.start <= 8 - p.size]


def free(profile: MigProfile, mask: int) -> list[MigPlacement]:
    return [p for p in legal(profile) if not bits(p) & mask]


def answers(profiles: Profiles, memory: int, **asked: int) -> Iterator[tuple[int, Option | None]]:
    geometry = mig.geometry(profiles)
    for mask in range(256):
        yield mask, geometry.choose(mask, memory=memory, cores=asked.get("cores", 0))


def sequence(profiles: Profiles, memory: int) -> list[tuple[str, int]]:
    """Names and starts of what is given out until nothing is left."""
    geometry, mask, given = mig.geometry(profiles), 0, []
    while option := geometry.choose(mask, memory=memory):
        given.append((option[0].name, option[1].start))
        mask |= bits(option[1])
    return given


# -- known devices -----------------------------------------------------------------------------


def test_small_instances_fill_one_half_of_a_device_before_the_other() -> None:
    starts = [start for _, start in sequence(A100, 4000)]

    assert starts == [3, 2, 1, 0, 6, 5, 4]


def test_where_a_larger_profile_needs_the_lower_half_small_ones_start_in_the_upper() -> None:
    starts = [start for _, start in sequence(H100_ALL, 4000)]

    assert set(starts[:3]) == {4, 5, 6}
    assert len(starts) == 7


@pytest.mark.parametrize(
    ("memory", "given"),
    [
        (9000, [("2g.10gb", 0), ("2g.10gb", 2), ("2g.10gb", 4)]),
        (15_000, [("3g.20gb", 4), ("3g.20gb", 0)]),
        (40_000, [("7g.40gb", 0)]),
        (50_000, []),
    ],
)
def test_a_request_gets_the_smallest_profile_that_holds_it(
    memory: int, given: list[tuple[str, int]]
) -> None:
    assert sequence(A100, memory) == given


def test_a_larger_profile_serves_when_no_smaller_one_has_room() -> None:
    option = mig.geometry(A100).choose(0b0000_1111, memory=4000)
    assert option is not None
    assert option[0].name == "1g.5gb"

    option = mig.geometry(A100).choose(0b0111_1111, memory=4000)
    assert option is None

    only_larger = mig.geometry(A100[2:]).choose(0b0000_0001, memory=4000)
    assert only_larger is not None
    assert (only_larger[0].name, only_larger[1].start) == ("3g.20gb", 4)


def test_asked_cores_choose_the_profile_too() -> None:
    option = mig.geometry(A100).choose(0, memory=4000, cores=30)

    assert option is not None
    assert option[0].name == "3g.20gb"
    assert mig.geometry(A100).choose(0, memory=4000, cores=101) is None


def test_the_whole_device_is_the_largest_profile_whatever_memory_it_has() -> None:
    geometry = mig.geometry(A100)
    option = geometry.choose(0, memory=40_960, cores=100, whole=True)

    assert option is not None
    assert option[0].name == "7g.40gb"
    assert geometry.choose(0b1000_0000, memory=40_960, whole=True) is None


@pytest.mark.parametrize(
    ("mask", "stranded"),
    [(0, 0), (0b0000_1000, 0), (0b0100_0000, 1), (0b0111_1111, 1), (0b1111_1111, 0)],
)
def test_a_free_slice_that_nothing_reaches_is_stranded(mask: int, stranded: int) -> None:
    assert mig.geometry(A100).stranded(mask) == stranded


def test_slices_that_a_device_does_not_have_are_not_stranded() -> None:
    assert mig.geometry(A30).stranded(0) == 0
    assert mig.geometry(A30).stranded(0b0000_1111) == 0


def test_a_device_without_profiles_has_no_room() -> None:
    geometry = mig.geometry(())

    assert geometry.choose(0, memory=0) is None
    assert geometry.choose(0, memory=0, whole=True) is None
    assert not geometry.capacities(memory=0).any()
    assert geometry.stranded(0) == 0


def test_placements_that_cannot_be_are_ignored() -> None:
    wild = MigProfile(
        name="wild",
        memory=MiB(1),
        cores=Percent(1),
        slices=1,
        placements=(at(8, 1), at(7, 2), at(-1, 2), at(0, 0), at(0, 2**31 - 1), at(6, 2), at(6, 2)),
    )
    option = mig.geometry((wild,)).choose(0, memory=1)

    assert option is not None
    assert option[1] == at(6, 2)
    assert mig.geometry((wild,)).capacity(0, memory=1) == 1


# -- laws --------------------------------------------------------------------------------------

any_profiles: st.SearchStrategy[Profiles] = st.lists(
    st.builds(
        MigProfile,
        name=st.sampled_from(["1g.x", "2g.x", "3g.x", "4g.x"]),
        memory=st.sampled_from([1, 2, 3, 4]).map(MiB),
        cores=st.sampled_from([10, 50, 100]).map(Percent),
        slices=st.integers(1, 7),
        placements=st.lists(
            st.builds(MigPlacement, start=st.integers(0, 8), size=st.integers(0, 8)), max_size=8
        ).map(tuple),
    ),
    max_size=5,
).map(tuple)
"""Devices that nobody builds: overlapping and odd placements, equal sizes, wrong slices."""


def larger_with_room(profiles: Profiles, profile: MigProfile, mask: int) -> list[bool]:
    """Of each larger profile, the largest first, whether it has room."""
    larger = sorted((p for p in profiles if size(p) > size(profile) and legal(p)), key=size)
    return [bool(free(p, mask)) for p in reversed(larger)]


def check(profiles: Profiles, memory: int, cores: int) -> None:
    geometry = mig.geometry(profiles)
    fitting = [p for p in sorted(profiles, key=size) if p.memory >= memory and p.cores >= cores]
    for mask in range(256):
        option = geometry.choose(mask, memory=memory, cores=cores)
        with_room = [p for p in fitting if free(p, mask)]
        if option is None:
            assert not with_room
            continue
        profile, placement = option
        assert profile == with_room[0]
        assert placement in free(profile, mask)
        kept = larger_with_room(profiles, profile, mask | bits(placement))
        for other in free(profile, mask):
            after = mask | bits(other)
            other_kept = larger_with_room(profiles, profile, after)
            assert kept >= other_kept, f"{other} at {mask:08b} keeps a larger profile free"
            if kept == other_kept:
                assert geometry.stranded(mask | bits(placement)) <= geometry.stranded(after)


@devices
def test_no_placement_is_chosen_where_another_keeps_a_larger_profile_free(
    profiles: Profiles,
) -> None:
    for asked in profiles:
        check(profiles, asked.memory, asked.cores)


@forall(profiles=any_profiles, memory=st.integers(0, 5), cores=st.sampled_from([0, 20, 60]))
def test_that_holds_for_devices_that_nobody_builds(
    profiles: Profiles, memory: int, cores: int
) -> None:
    check(profiles, memory, cores)


@devices
def test_on_these_devices_nothing_larger_is_lost_that_could_be_kept(profiles: Profiles) -> None:
    """Not only the largest of what may be kept, but all of it: no choice is a bad bargain."""
    for asked in profiles:
        for mask, option in answers(profiles, asked.memory):
            if option is None:
                continue
            profile, placement = option
            kept = larger_with_room(profiles, profile, mask | bits(placement))
            for other in free(profile, mask):
                others = larger_with_room(profiles, profile, mask | bits(other))
                more = all(a >= b for a, b in zip(others, kept, strict=True))
                assert not (more and others != kept)


def most(profiles: Profiles, mask: int, known: dict[int, int]) -> int:
    """How many instances of these profiles fit at most, in any order and anywhere."""
    if mask not in known:
        known[mask] = max(
            (1 + most(profiles, mask | bits(p), known) for x in profiles for p in free(x, mask)),
            default=0,
        )
    return known[mask]


@devices
def test_as_many_instances_of_one_size_fit_as_can(profiles: Profiles) -> None:
    for asked in profiles:
        fitting = tuple(p for p in profiles if p.memory >= asked.memory)
        capacities = mig.geometry(profiles).capacities(memory=asked.memory)
        known: dict[int, int] = {}
        assert capacities.tolist() == [most(fitting, mask, known) for mask in range(256)]


@forall(profiles=any_profiles, mask=st.integers(0, 255), memory=st.integers(0, 5))
def test_capacity_is_how_often_there_is_room_in_a_row(
    profiles: Profiles, mask: int, memory: int
) -> None:
    geometry = mig.geometry(profiles)
    expected, occupied = 0, mask
    while option := geometry.choose(occupied, memory=memory):
        expected += 1
        occupied |= bits(option[1])

    assert geometry.capacity(mask, memory=memory) == expected


@forall(profiles=any_profiles, mask=st.integers(0, 255))
def test_a_slice_is_stranded_if_no_free_placement_covers_it(profiles: Profiles, mask: int) -> None:
    has = {i for p in profiles for place in legal(p) for i in range(8) if bits(place) >> i & 1}
    reached = {i for p in profiles for place in free(p, mask) for i in has if bits(place) >> i & 1}
    unoccupied = {i for i in has if not mask >> i & 1}

    assert mig.geometry(profiles).stranded(mask) == len(unoccupied - reached)


@devices
def test_the_table_of_a_request_says_what_choose_says(profiles: Profiles) -> None:
    packing = mig.geometry(profiles).packing(memory=10_000)
    for mask, option in answers(profiles, 10_000):
        assert packing.options[mask] == option


def test_the_same_profiles_are_worked_out_once() -> None:
    assert mig.geometry(A100) is mig.geometry(tuple(A100))
    assert mig.geometry(A100).packing(memory=4000) is mig.geometry(A100).packing(memory=4800)


@devices
def test_costs_name_the_larger_profiles_that_lose_their_last_room(profiles: Profiles) -> None:
    costs = mig.geometry(profiles).costs(memory=4000)
    for mask, option in answers(profiles, 4000):
        if option is None:
            assert costs[mask] == 0
            continue
        after = mask | bits(option[1])
        lost = any(
            p.memory > option[0].memory and free(p, mask) and not free(p, after) for p in profiles
        )
        assert (costs[mask] >= 16) == lost


# -- counters ----------------------------------------------------------------------------------

placements = st.builds(MigPlacement, start=st.integers(0, 7), size=st.integers(1, 8))


@forall(records=st.lists(placements, max_size=20), gone=st.integers(0, 20), data=st.data())
def test_records_come_and_go_in_any_order(
    records: list[MigPlacement], gone: int, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(records))
    counters = sum(map(mig.counters_of, records)) - sum(map(mig.counters_of, shuffled[:gone]))
    left = [bits(r) & 255 for r in shuffled[gone:]]

    assert mig.mask_of(counters) == int(np.bitwise_or.reduce([*left, 0]))


def test_far_more_records_than_a_node_has_pods_do_not_spill_into_the_next_slice() -> None:
    assert mig.mask_of(10**6 * mig.counters_of(at(2, 1))) == 0b100
    assert mig.mask_of(10**6 * mig.ALL - mig.ALL) == 255


@forall(a=st.lists(placements, max_size=5), b=st.lists(placements, max_size=5))
def test_one_after_the_other_is_the_larger_of_each_counter(
    a: list[MigPlacement], b: list[MigPlacement]
) -> None:
    def digits(counters: int) -> list[int]:
        return [counters >> 32 * i & (2**32 - 1) for i in range(8)]

    first, second = sum(map(mig.counters_of, a)), sum(map(mig.counters_of, b))
    larger = [max(pair) for pair in zip(digits(first), digits(second), strict=True)]

    assert digits(mig.maximum(first, second)) == larger


def test_slices_that_no_device_has_are_not_counted() -> None:
    assert mig.counters_of(at(6, 2**31 - 1)) == mig.counters_of(at(6, 2))
    assert mig.counters_of(at(-2, 3)) == mig.counters_of(at(0, 1))
