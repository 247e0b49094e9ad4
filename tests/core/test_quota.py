"""Quotas: how they are read, which counts, and what is left."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from hami.core.device import Role, VendorName
from hami.core.quota import (
    MAX_CEILING,
    Amount,
    Kind,
    Need,
    QuotaBook,
    Room,
    read_quota,
)
from hami.core.vendor import VendorTable, table
from hami.core.vendors.nvidia import NVIDIA
from tests.support.builders import (
    OTHER,
    VENDORS,
    Quantity,
    make_quota,
)

N = NVIDIA.name
BOTH: VendorTable = table([NVIDIA, OTHER])
INIT, SIDECAR, APP = Role.INIT, Role.SIDECAR, Role.APP


def book_of(*quotas: dict[str, Quantity], vendors: VendorTable = VENDORS) -> QuotaBook:
    """A book of these quotas, named a, b, …"""
    book = QuotaBook()
    for name, hard in zip("abcdef", quotas, strict=False):
        quota, problems = read_quota(
            make_quota(name, memory=hard.get("memory"), cores=hard.get("cores")), vendors
        )
        assert not problems
        book.set_quota(quota)
    return book


def room_of(book: QuotaBook) -> Room:
    room = book.room("default")
    assert room is not None
    return room


# -- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "most"),
    [
        ("0", 0),
        ("10000", 10_000),
        (20, 20),
        ("10k", 10_000),
        ("1Ki", 1024),
        ("2.0", 2),
        ("1e3", 1000),
        ("9223372036854775807", MAX_CEILING),
        ("1E", MAX_CEILING),
    ],
)
def test_whole_numbers_are_ceilings(value: Quantity, most: int) -> None:
    quota, problems = read_quota(make_quota(memory=value, cores=value), VENDORS)

    assert problems == ()
    assert [(c.kind, c.most, c.vendor) for c in quota.ceilings] == [
        (Kind.MEMORY, most, N),
        (Kind.CORES, most, N),
    ]


@pytest.mark.parametrize("value", ["500m", "1.5", "-1", "lots", "", "1" * 200])
def test_other_numbers_are_reported_and_the_other_key_stands(value: str) -> None:
    quota, problems = read_quota(make_quota(memory=value, cores="50"), VENDORS)

    assert [(c.kind, c.most) for c in quota.ceilings] == [(Kind.CORES, 50)]
    assert len(problems) == 1
    assert problems[0].startswith("limits.nvidia.com/gpumem: expected ")


@pytest.mark.parametrize(
    "key",
    ["nvidia.com/gpumem", "requests.nvidia.com/gpumem", "limits.nvidia.com/gpu", "limits.memory"],
)
def test_other_keys_are_no_business_of_ours(key: str) -> None:
    quota, problems = read_quota(make_quota(hard={key: "nonsense"}), VENDORS)

    assert (quota.ceilings, problems) == ((), ())


def test_memory_is_in_the_vendors_unit() -> None:
    scaled = table([replace(NVIDIA, memory_factor=256)])

    quota, _ = read_quota(make_quota(memory="10", cores="10"), scaled)

    assert [c.most for c in quota.ceilings] == [2560, 10]


def test_every_vendor_has_its_own_keys() -> None:
    quota, _ = read_quota(make_quota(memory="1", hard={"limits.other.com/npumem": "2"}), BOTH)

    assert [(c.vendor, c.most) for c in quota.ceilings] == [(N, 1), (OTHER.name, 2)]


def test_quota_without_anything_in_it_is_none() -> None:
    book = QuotaBook()
    quota, problems = read_quota(make_quota(), VENDORS)
    book.set_quota(quota)

    assert problems == ()
    assert book.room("default") is None


# -- which quota counts -------------------------------------------------------------------------


def test_of_several_quotas_the_tightest_counts_key_by_key() -> None:
    book = book_of({"memory": 100, "cores": 10}, {"memory": 50, "cores": 20}, {"memory": 50})

    assert [(c.quota, c.kind, c.most) for c in book.ceilings("default")] == [
        ("default/b", Kind.MEMORY, 50),
        ("default/a", Kind.CORES, 10),
    ]


def test_deleted_quota_leaves_the_others() -> None:
    book = book_of({"memory": 100}, {"memory": 50})

    book.remove_quota("default", "b")
    assert room_of(book).of(N, Kind.MEMORY) == 100
    book.remove_quota("default", "a")
    assert book.room("default") is None
    book.remove_quota("default", "a")
    assert book.namespaces() == frozenset()


def test_changed_quota_is_counted_as_it_is_now_and_a_key_it_loses_is_free() -> None:
    book = book_of({"memory": 100, "cores": 10})
    quota, _ = read_quota(make_quota("a", memory=70), VENDORS)

    book.set_quota(quota)
    generation = book.generation
    book.set_quota(quota)

    assert book.generation == generation, "told again, nothing changes"
    assert room_of(book).of(N, Kind.MEMORY) == 70
    assert room_of(book).of(N, Kind.CORES) is None


def test_quota_is_for_its_own_namespace() -> None:
    book = book_of({"memory": 100})

    assert book.room("elsewhere") is None
    assert book.lack("elsewhere", {N: Amount(memory=1000)}) is None


# -- what is left -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "used", "needed", "fits"),
    [
        (100, 0, 100, True),
        (100, 0, 101, False),
        (100, 60, 40, True),
        (100, 60, 41, False),
        (0, 0, 1, False),
        (0, 0, 0, True),
        (100, 150, 1, False),
        (100, 150, 0, True),
    ],
)
def test_room_for_a_pod(most: int, used: int, needed: int, fits: bool) -> None:
    book = book_of({"memory": most, "cores": 1000})
    book.charge("default", {N: Amount(memory=used)}, sign=1)

    lack = book.lack("default", {N: Amount(memory=needed, cores=1)})

    assert (lack is None) is fits


def test_lack_names_the_quota_its_key_what_is_needed_and_what_is_left() -> None:
    book = book_of({"memory": 10_000, "cores": 50})
    book.charge("default", {N: Amount(memory=8800, cores=90)}, sign=1)

    lacks = room_of(book).lacks({N: Amount(memory=6000, cores=30)})

    assert [str(lack) for lack in lacks] == [
        "quota default/a: limits.nvidia.com/gpumem: needs 6000 MiB, 1200 of 10000 left",
        "quota default/a: limits.nvidia.com/gpucores: needs 30%, 0 of 50 left",
    ]


def test_what_will_be_replaced_does_not_count() -> None:
    book = book_of({"memory": 100})
    own = {N: Amount(memory=80)}
    book.charge("default", own, sign=1)

    assert book.lack("default", own) is not None
    assert book.lack("default", own, without=own) is None
    assert room_of(book).of(N, Kind.MEMORY) == 20


def test_open_memory_is_not_judged_but_cores_are() -> None:
    book = book_of({"memory": 0, "cores": 10})

    assert room_of(book).lacks({N: Need(memory=None, cores=10)}) == ()
    assert len(room_of(book).lacks({N: Need(memory=None, cores=11)})) == 1


# -- the book -----------------------------------------------------------------------------------

amounts = st.builds(Amount, memory=st.integers(0, 50), cores=st.integers(0, 50))
uses = st.dictionaries(st.sampled_from([N, OTHER.name]), amounts, max_size=2)


@hypothesis_given(st.lists(st.tuples(st.sampled_from(["x", "y"]), uses), max_size=8), st.data())
def test_what_is_taken_back_is_gone_in_whatever_order(
    charged: list[tuple[str, dict[VendorName, Amount]]], data: st.DataObject
) -> None:
    book = QuotaBook()
    for namespace, use in charged:
        book.charge(namespace, use, sign=1)
    for namespace, use in data.draw(st.permutations(charged)):
        book.charge(namespace, use, sign=-1)

    assert book.used("x") == book.used("y") == {}
    assert book.namespaces() == frozenset()


quotas = st.tuples(
    st.sampled_from(["a", "b", "c"]),
    st.none() | st.integers(0, 30),
    st.none() | st.integers(0, 30),
)


@hypothesis_given(st.lists(quotas, max_size=12))
def test_room_is_the_least_over_all_quotas_that_are_there(
    history: list[tuple[str, int | None, int | None]],
) -> None:
    """Quotas come, change and go; one with no key left is as good as gone."""
    book, model = QuotaBook(), dict[str, dict[Kind, int | None]]()
    book.charge("default", {N: Amount(memory=7, cores=3)}, sign=1)
    for name, memory, cores in history:
        if memory is None and cores is None:
            model.pop(name, None)
            book.remove_quota("default", name)
        else:
            model[name] = {Kind.MEMORY: memory, Kind.CORES: cores}
            quota, _ = read_quota(make_quota(name, memory=memory, cores=cores), VENDORS)
            book.set_quota(quota)

    room = book.room("default")
    for kind, used in ((Kind.MEMORY, 7), (Kind.CORES, 3)):
        given_numbers = [m for own in model.values() if (m := own[kind]) is not None]
        expected = min(given_numbers) - used if given_numbers else None
        assert (None if room is None else room.of(N, kind)) == expected


# -- who is told --------------------------------------------------------------------------------


def test_namespace_with_more_room_than_before_is_told() -> None:
    told: list[str] = []
    book = book_of({"memory": 100, "cores": 10})
    book.on_room = told.append

    def change(memory: int, cores: int | None = None) -> list[str]:
        told.clear()
        book.set_quota(read_quota(make_quota("a", memory=memory, cores=cores), VENDORS)[0])
        return told

    assert change(memory=50, cores=10) == []
    assert change(memory=50) == ["default"], "cores are free now"
    assert change(memory=51) == ["default"]
    assert change(memory=51) == []
    book.charge("default", {N: Amount(memory=5)}, sign=1)
    assert told == []
    book.charge("default", {N: Amount(memory=5)}, sign=-1)
    assert told == ["default"]
    book.charge("elsewhere", {N: Amount(memory=5)}, sign=1)
    book.charge("elsewhere", {N: Amount(memory=5)}, sign=-1)
    book.remove_quota("default", "a")
    assert told == ["default", "default"], "who has no quota waits for none"


def test_duplicate_goes_its_own_way() -> None:
    book = book_of({"memory": 100})
    book.charge("default", {N: Amount(memory=5)}, sign=1)
    twin = book.duplicate()
    assert twin.room("default") == book.room("default")

    twin.charge("default", {N: Amount(memory=5)}, sign=1)
    twin.remove_quota("default", "a")

    assert room_of(book).of(N, Kind.MEMORY) == 95
    assert book.used("default") == {N: Amount(memory=5)}
