"""The device table: rows, growth, generations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.core.allocation import Charge
from hami.core.device import DeviceUuid
from hami.core.table import DeviceTable
from hami.core.words import Words
from tests.support.builders import MODEL, make_device, make_devices, make_table

GPU = DeviceUuid("GPU-0")


def test_a_new_table_is_empty() -> None:
    table = DeviceTable()

    assert len(table) == 0
    assert table.view().columns.present.shape[0] == 0
    assert table.devices("ghost") == ()
    assert table.used("ghost") == {}
    assert table.generation("ghost") == 0


def test_devices_stand_in_order_of_index_and_uuid() -> None:
    devices = [make_device("c", index=1), make_device("b", index=0), make_device("a", index=1)]

    table = make_table(devices)

    assert table.uuids[0] == ("b", "a", "c")
    assert [d.uuid for d in table.devices("node-0")] == ["b", "a", "c"]
    assert [table.view().uuid(0, i) for i in range(3)] == ["b", "a", "c"]


def test_columns_hold_what_the_devices_say() -> None:
    device = make_device(slots=3, memory=5, cores=7, numa=2, healthy=False, mode="mig", model="T4")
    table = DeviceTable()

    table.set_node(
        "node-0", [device, make_device("GPU-1", index=1)], cordoned=frozenset({GPU, "x"})
    )

    columns = table.view().columns
    assert columns.present[0].tolist()[:3] == [True, True, False]
    assert columns.healthy[0].tolist()[:2] == [False, True]
    assert columns.cordoned[0].tolist()[:2] == [True, False]
    shown = [getattr(columns, n)[0, 0] for n in ("slots", "memory", "cores", "numa")]
    assert shown == [3, 5, 7, 2]
    assert columns.model[0, 0] == table.words.number("T4")
    assert columns.mode[0, 0] == table.words.number("mig")
    assert columns.vendor[0, 0] == table.words.number("NVIDIA")


def test_rows_and_width_grow_and_keep_their_content() -> None:
    table = DeviceTable()
    for number in range(200):
        table.set_node(f"node-{number}", make_devices(1 + number % 30, prefix=f"GPU-{number}"))
        table.charge(
            f"node-{number}", {DeviceUuid(f"GPU-{number}-0"): Charge(slots=number)}, sign=1
        )

    columns = table.view().columns

    assert columns.present.shape[0] == len(table) == 200
    assert columns.present.sum(axis=1).tolist() == [1 + number % 30 for number in range(200)]
    assert columns.used_slots[:, 0].tolist() == list(range(200))
    assert table.view().generations.tolist() == table.generations[:200].tolist()


def test_a_removed_nodes_row_is_empty_and_used_again() -> None:
    table = make_table(make_devices(3), make_devices(2, prefix="OLD"), make_devices(1, prefix="X"))
    table.charge("node-1", {DeviceUuid("OLD-0"): Charge(slots=2, memory=3, cores=4)}, sign=1)

    generation = table.generations[1]
    table.remove_node("node-1")
    assert table.generations[1] > generation
    assert table.rows == {"node-0": 0, "node-2": 2}
    assert table.names == ["node-0", None, "node-2"]
    assert not table.view().columns.present[1].any()
    assert table.places(["OLD-0"]) == []

    table.set_node("node-9", make_devices(1, prefix="NEW"))
    assert table.rows["node-9"] == 1
    assert len(table) == 3
    assert table.used("node-9") == {"NEW-0": Charge()}


def test_removing_an_unknown_node_changes_nothing() -> None:
    table = make_table(make_devices(1))
    before = table.generation("node-0")

    table.remove_node("ghost")

    assert table.generation("node-0") == before


def test_a_smaller_inventory_leaves_nothing_of_the_larger() -> None:
    table = make_table(make_devices(4))
    table.charge("node-0", {DeviceUuid("GPU-3"): Charge(slots=1)}, sign=1)

    assert table.set_node("node-0", make_devices(1))

    assert table.view().columns.present[0].tolist()[:4] == [True, False, False, False]
    assert table.view().columns.used_slots.sum() == 0
    assert table.places(["GPU-3"]) == []


@pytest.mark.parametrize(
    ("devices", "cordoned", "changed"),
    [
        pytest.param([0, 1], {"GPU-1"}, False, id="the_same_devices_are_no_change"),
        pytest.param([1, 0], {"GPU-1", "x"}, False, id="nor_is_their_order_or_a_foreign_cordon"),
        pytest.param([0, 1], set(), True, id="a_lifted_cordon_is"),
        pytest.param([0, 1], {"GPU-0", "GPU-1"}, True, id="another_cordon_is"),
        pytest.param([0], {"GPU-1"}, True, id="a_missing_device_is"),
        pytest.param([0, 1, 2], {"GPU-1"}, True, id="a_new_device_is"),
    ],
)
def test_only_a_changed_inventory_moves_the_generation(
    devices: list[int], cordoned: set[str], changed: bool
) -> None:
    table = DeviceTable()
    all_devices = make_devices(3)
    table.set_node("node-0", all_devices[:2], cordoned=frozenset({"GPU-1"}))
    table.charge("node-0", {GPU: Charge(slots=1)}, sign=1)
    before = table.generation("node-0")

    done = table.set_node("node-0", [all_devices[i] for i in devices], cordoned=frozenset(cordoned))

    assert done is changed
    assert (table.generation("node-0") != before) is changed
    assert table.used("node-0")[GPU].slots == (0 if changed else 1)


def test_a_node_without_devices_is_known() -> None:
    table = DeviceTable()

    assert table.set_node("node-0", [])
    assert not table.set_node("node-0", [])

    assert table.rows == {"node-0": 0}
    assert table.generation("node-0") > 0


def test_generations_are_never_the_same_twice() -> None:
    table = DeviceTable()
    seen: list[int] = []

    for _ in range(3):
        table.set_node("node-0", make_devices(1))
        seen.append(table.generation("node-0"))
        table.charge("node-0", {GPU: Charge(slots=1)}, sign=1)
        seen.append(table.generation("node-0"))
        table.remove_node("node-0")

    assert len(set(seen)) == len(seen)


def test_charges_add_up_and_can_be_taken_back() -> None:
    table = make_table(make_devices(2))
    charge = Charge(slots=1, memory=100, cores=10)

    table.charge("node-0", {GPU: charge}, sign=1)
    table.charge("node-0", {GPU: charge}, sign=1)
    assert table.used("node-0") == {GPU: charge + charge, "GPU-1": Charge()}

    table.charge("node-0", {GPU: charge}, sign=-1)
    assert table.used("node-0")[GPU] == charge


def test_charges_of_unknown_devices_and_nodes_are_skipped() -> None:
    table = make_table(make_devices(1))

    table.charge("node-0", {DeviceUuid("GPU-x"): Charge(slots=1)}, sign=1)
    table.charge("ghost", {GPU: Charge(slots=1)}, sign=1)

    assert table.used("node-0") == {GPU: Charge()}
    assert "ghost" not in table.rows


def test_one_device_may_be_registered_on_several_nodes() -> None:
    table = make_table(make_devices(2), make_devices(1))

    assert sorted(table.places(["GPU-0", "GPU-1", "GPU-x"])) == [(0, 0), (0, 1), (1, 0)]


@forall(
    steps=st.lists(
        st.tuples(st.sampled_from(["node-0", "node-1", "node-2"]), st.booleans()), max_size=8
    )
)
def test_rows_of_the_same_names_follow_the_nodes(steps: list[tuple[str, bool]]) -> None:
    table = DeviceTable()
    names = ("node-1", "ghost", "node-0", "node-2", "node-1")

    for node, there in steps:
        if there:
            table.set_node(node, make_devices(1))
        else:
            table.remove_node(node)
        assert table.rows_of(names).tolist() == [table.rows.get(name, -1) for name in names]


def test_rows_of_other_names_are_looked_up_anew() -> None:
    table = make_table(make_devices(1), make_devices(1))

    assert table.rows_of(("node-1",)).tolist() == [1]
    assert table.rows_of(("node-0",)).tolist() == [0]


def test_a_copy_stays_as_it_is_and_a_view_moves_along() -> None:
    table = make_table(make_devices(1), make_devices(1, prefix="B"))
    copied, viewed = table.copy([1, 0]), table.view()

    table.charge("node-0", {GPU: Charge(slots=1)}, sign=1)

    assert copied.columns.used_slots.sum() == 0
    assert copied.rows.tolist() == [1, 0]
    assert copied.uuid(0, 0) == "B-0"
    assert viewed.columns.used_slots[0, 0] == 1
    assert copied.generations[1] < table.generation("node-0") == viewed.generations[0]


def test_words_that_no_device_has_any_more_are_forgotten() -> None:
    table = make_table(make_devices(2))
    for i in range(3000):
        table.set_node("liar", [make_device("x", model=f"made up {i}", mode=f"m{i}")])

    model = table.view().columns.model
    assert len(table.words) < 1100
    assert table.words.matching([MODEL.upper()])[model[0, :2]].all()
    assert table.words.matching(["MADE UP 2999"])[model[1, 0]]


def test_words_keep_their_number() -> None:
    words = Words()

    numbers = [words.number(word) for word in ("a", "b", "a", "")]

    assert numbers == [0, 1, 0, 2]


@forall(words=st.lists(st.text(max_size=5), max_size=5), texts=st.lists(st.text(max_size=3)))
def test_words_are_matched_as_substrings_either_way(words: list[str], texts: list[str]) -> None:
    table = Words()
    ordered = list(dict.fromkeys(words))
    for word in ordered:
        table.number(word)
    upper = [text.upper() for text in texts]

    found = table.matching(upper)
    inside = table.matching(texts, inside=True)

    assert found.dtype == inside.dtype == np.bool_
    assert found.tolist() == [any(text in word.upper() for text in upper) for word in ordered]
    assert inside.tolist() == [any(word in text for text in texts) for word in ordered]
