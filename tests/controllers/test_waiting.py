"""The line of waiting pods: who is next, and that it stays true to what was added and removed."""

from __future__ import annotations

from hypothesis import given as forall
from hypothesis import strategies as st

from hami.controllers.waiting import GroupKey, Turn, WaitingLine
from tests.support.builders import asking, make_demand, make_pod_request


def key(memory: int, namespace: str = "default") -> GroupKey:
    return GroupKey(namespace, make_pod_request(asking(make_demand(memory=memory))))


def turn(uid: str, *, priority: int = 0, created: str = "t0") -> Turn:
    return Turn(priority=-priority, created=created, uid=uid)


def names(line: WaitingLine) -> list[str]:
    return [found.uid for _, found, _ in line.walk()]


def test_walk_goes_by_priority_then_by_age_across_groups() -> None:
    line = WaitingLine()
    line.add(key(1), turn("old", created="t0"))
    line.add(key(2), turn("important", priority=5, created="t9"))
    line.add(key(2), turn("young", created="t2"))
    line.add(key(1), turn("middle", created="t1"))

    assert names(line) == ["important", "old", "middle", "young"]


def test_dropped_group_is_left_out_from_there_on() -> None:
    line = WaitingLine()
    for i in range(4):
        line.add(key(1), turn(f"a{i}", created=f"t{i}"))
        line.add(key(2), turn(f"b{i}", created=f"t{i}"))

    seen = []
    for group, found, walk in line.walk():
        seen.append(found.uid)
        walk.over = group == key(1)

    assert seen == ["a0", "b0", "b1", "b2", "b3"]


def test_pods_that_leave_during_a_walk_are_not_met() -> None:
    line = WaitingLine()
    for i in range(4):
        line.add(key(1), turn(f"a{i}", created=f"t{i}"))

    seen = []
    for _, found, _ in line.walk():
        seen.append(found.uid)
        line.discard("a1")
        line.discard(found.uid)

    assert seen == ["a0", "a2", "a3"]
    assert (len(line), line.groups) == (0, 0)


@forall(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 3), st.booleans()),
        max_size=30,
    )
)
def test_line_is_what_was_added_and_not_removed(
    steps: list[tuple[int, int, int, bool]],
) -> None:
    line = WaitingLine()
    model: dict[str, tuple[GroupKey, Turn]] = {}
    for number, group, priority, adding in steps:
        uid = f"uid-{number}"
        if adding:
            model[uid] = key(group), turn(uid, priority=priority)
            line.add(*model[uid])
        else:
            model.pop(uid, None)
            line.discard(uid)

    walked = [(group, found) for group, found, _ in line.walk()]
    assert walked == sorted(model.values(), key=lambda item: item[1])
    assert line.groups == len({group for group, _ in model.values()})
    assert len(line) == len(model)
