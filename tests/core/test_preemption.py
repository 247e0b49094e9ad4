"""Who has to go: stated cases, and the best of all choices on small clusters by trying each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given as forall
from hypothesis import settings
from hypothesis import strategies as st

from hami.core import mig, preemption, whatif
from hami.core.allocation import Charge
from hami.core.device import MODE_MIG, Device, DeviceUuid, MigPlacement, PodRequest
from hami.core.preemption import Plan
from hami.core.table import DeviceTable
from hami.core.victims import Budget, Victim
from tests.support.builders import (
    asking,
    make_demand,
    make_device,
    make_devices,
    make_pod_request,
    make_table,
)
from tests.support.geometries import A100
from tests.support.strategies import charges, node_devices, pod_requests

Nodes = dict[str, list[Victim]]
PREEMPTOR = 100


def victim(
    uid: str,
    *devices: str,
    memory: int = 10_000,
    cores: int = 10,
    priority: int = 0,
    started: float = 0,
    budgets: tuple[int, ...] = (),
) -> Victim:
    charge = Charge(slots=1, memory=memory, cores=cores)
    return Victim(
        uid=uid,
        pod=f"default/{uid}",
        priority=priority,
        started=started,
        charges={DeviceUuid(device): charge for device in devices},
        budgets=budgets,
    )


def table_of(nodes: Mapping[str, Sequence[Victim]], **device: Any) -> DeviceTable:
    """Nodes of two devices each, with these pods on them."""
    table = DeviceTable()
    for name, victims in nodes.items():
        table.set_node(name, [make_device(f"{name}/{i}", index=i, **device) for i in range(2)])
        for each in victims:
            table.charge(name, each.charges, sign=1)
    return table


def ask(count: int = 1, memory: int = 40_000, cores: int = 0) -> PodRequest:
    return make_pod_request(asking(make_demand(count, memory=memory, cores=cores)))


def chosen(
    nodes: Mapping[str, Sequence[Victim]],
    request: PodRequest | None = None,
    budgets: Sequence[Budget] = (),
) -> tuple[str, list[str], int] | None:
    plan = preemption.choose(table_of(nodes), request or ask(), PREEMPTOR, nodes, budgets)
    return None if plan is None else (plan.node, [v.uid for v in plan.victims], plan.violations)


# -- stated cases ------------------------------------------------------------------------------


def test_the_pod_gets_the_device_that_needs_the_fewest_victims() -> None:
    nodes = {"node-a": [victim("a", "node-a/0"), victim("b", "node-a/0"), victim("c", "node-a/1")]}

    assert chosen(nodes) == ("node-a", ["c"], 0)


def test_less_important_victims_are_better_than_fewer() -> None:
    nodes = {
        "node-a": [
            victim("a", "node-a/0", priority=50),
            victim("b", "node-a/1", priority=10),
            victim("c", "node-a/1", priority=20),
        ]
    }

    assert chosen(nodes) == ("node-a", ["b", "c"], 0)


def test_pods_of_the_same_or_a_higher_priority_stay() -> None:
    full = [victim("a", "node-a/0", priority=100), victim("b", "node-a/1", priority=101)]

    assert chosen({"node-a": full}) is None
    assert chosen({"node-a": [*full[:1], victim("b", "node-a/1", priority=99)]}) is not None


def test_a_budget_is_kept_even_if_a_more_important_pod_has_to_go() -> None:
    nodes = {
        "node-a": [
            victim("a", "node-a/0", priority=0, budgets=(0,)),
            victim("b", "node-a/1", priority=50),
        ]
    }

    assert chosen(nodes, budgets=[Budget(allowed=0)]) == ("node-a", ["b"], 0)
    assert chosen(nodes, budgets=[Budget(allowed=1)]) == ("node-a", ["a"], 0)


def test_a_budget_that_allows_one_of_two_is_not_broken_for_the_lower_level() -> None:
    """The lowest level would need both; a higher one needs neither."""
    nodes = {
        "node-a": [
            victim("a", "node-a/0", budgets=(0,)),
            victim("b", "node-a/0", budgets=(0,)),
            victim("c", "node-a/1", priority=50),
        ]
    }

    assert chosen(nodes, budgets=[Budget(allowed=1)]) == ("node-a", ["c"], 0)


def test_a_budget_is_broken_where_nothing_else_helps() -> None:
    nodes = {
        "node-a": [victim("a", "node-a/0", budgets=(0,)), victim("b", "node-a/1", priority=100)]
    }

    assert chosen(nodes, budgets=[Budget(allowed=-1)]) == ("node-a", ["a"], 1)


def test_among_equals_less_memory_is_freed_then_the_first_node_and_uid_by_name() -> None:
    nodes = {
        "node-b": [victim("b", "node-b/0"), victim("a", "node-b/1")],
        "node-a": [victim("c", "node-a/0"), victim("d", "node-a/1")],
    }
    assert chosen(nodes) == ("node-a", ["c"], 0)
    assert chosen(dict(reversed(nodes.items()))) == ("node-a", ["c"], 0)

    nodes["node-b"][1] = victim("a", "node-b/1", memory=9_000)
    assert chosen(nodes) == ("node-b", ["a"], 0)


def test_several_devices_need_several_victims() -> None:
    nodes = {"node-a": [victim("a", "node-a/0"), victim("b", "node-a/1")]}

    assert chosen(nodes, ask(2)) == ("node-a", ["a", "b"], 0)
    assert chosen(nodes, ask(3)) is None


def test_the_least_important_victim_comes_first() -> None:
    nodes = {
        "node-a": [
            victim("old", "node-a/0", started=1),
            victim("young", "node-a/0", started=2),
            victim("low", "node-a/0", priority=-5),
            victim("other", "node-a/1", priority=100),
        ]
    }

    assert chosen(nodes) == ("node-a", ["low", "young", "old"], 0)


def test_nodes_that_are_not_known_and_nodes_without_pods_are_no_answer() -> None:
    table = make_table(make_devices(1))

    cases: list[Nodes] = [{}, {"gone": [victim("a", "gone/0")]}, {"node-0": []}]
    for nodes in cases:
        assert preemption.choose(table, ask(), PREEMPTOR, nodes) is None


def test_a_device_of_the_wrong_kind_is_not_freed() -> None:
    nodes = {"node-a": [victim("a", "node-a/0"), victim("b", "node-a/1")]}
    table = table_of(nodes, healthy=False)

    assert preemption.choose(table, ask(), PREEMPTOR, nodes) is None


def test_the_table_stays_as_it_is() -> None:
    nodes = {"node-a": [victim("a", "node-a/0"), victim("b", "node-a/1")]}
    table = table_of(nodes)
    before, generation = table.used("node-a"), table.generation("node-a")

    assert preemption.choose(table, ask(), PREEMPTOR, nodes) is not None
    assert table.used("node-a") == before
    assert table.generation("node-a") == generation


# -- the best of all choices -------------------------------------------------------------------


def broken(victims: Sequence[Victim], budgets: Sequence[Budget]) -> int:
    return sum(
        max(0, sum(i in v.budgets for v in victims) - max(budget.allowed, 0))
        for i, budget in enumerate(budgets)
    )


def rank(node: str, victims: Sequence[Victim], budgets: Sequence[Budget]) -> tuple[Any, ...]:
    return (
        broken(victims, budgets),
        max((v.priority for v in victims), default=-(10**9)),
        len(victims),
        sum(charge.memory for v in victims for charge in v.charges.values()),
        node,
        sorted(v.uid for v in victims),
    )


def subsets(victims: Sequence[Victim]) -> Iterator[tuple[Victim, ...]]:
    for size in range(len(victims) + 1):
        yield from combinations(victims, size)


def every_choice(
    table: DeviceTable,
    request: PodRequest,
    nodes: Nodes,
    budgets: Sequence[Budget],
    given: Mapping[str, Sequence[Victim]] | None = None,
) -> list[tuple[Any, ...]]:
    """The rank of every choice that makes room."""
    ranks = []
    for name, victims in nodes.items():
        fixed = list((given or {}).get(name, ()))
        sets = [[*fixed, *more] for more in subsets([v for v in victims if v.priority < PREEMPTOR])]
        fits = whatif.fits_without(table, request, name, [[v.charges for v in s] for s in sets])
        ranks += [rank(name, s, budgets) for s, fit in zip(sets, fits, strict=True) if fit]
    return ranks


sometimes = st.integers(0, 4).map(lambda n: n == 4)


@st.composite
def crowds(draw: st.DrawFn, *, pods: int = 6, nodes: int = 3) -> tuple[Nodes, list[Budget]]:
    """Full nodes, with pods of all sizes on one device or both, and budgets over some."""
    budgets = draw(st.lists(st.integers(-1, 2).map(lambda n: Budget(allowed=n)), max_size=2))
    covered = st.lists(st.sampled_from(range(len(budgets))), unique=True, max_size=2)
    crowd: Nodes = {}
    for name in draw(st.permutations([f"node-{i}" for i in range(draw(st.integers(1, nodes)))])):
        crowd[name] = [
            victim(
                f"{name}-{i}",
                *(
                    f"{name}/{d}"
                    for d in draw(st.sampled_from([(0,), (1,), (0,), (1,), (0, 1), ()]))
                ),
                memory=draw(st.sampled_from([1000, 5000, 10_000, 20_000])),
                cores=draw(st.sampled_from([0, 10, 50, 100])),
                priority=draw(st.sampled_from([0, 0, 10, 20, 100])),
                started=draw(st.integers(0, 3)),
                budgets=tuple(draw(covered)) if bool(budgets) and draw(sometimes) else (),
            )
            for i in range(draw(st.integers(0, pods)))
        ]
    return crowd, budgets


asks = st.builds(
    ask,
    st.sampled_from([1, 1, 2]),
    memory=st.sampled_from([1000, 10_000, 25_000, 40_000, 50_000]),
    cores=st.sampled_from([0, 30, 100]),
)


def fits_already(table: DeviceTable, request: PodRequest, nodes: Nodes) -> bool:
    return any(whatif.fits_without(table, request, name, [[]])[0] for name in nodes)


@settings(deadline=None, max_examples=150)
@forall(crowd=crowds(), request=asks)
def test_no_other_choice_is_better(crowd: tuple[Nodes, list[Budget]], request: PodRequest) -> None:
    nodes, budgets = crowd
    table = table_of(nodes)
    if fits_already(table, request, nodes):
        return
    plan = preemption.choose(table, request, PREEMPTOR, nodes, budgets)
    ranks = every_choice(table, request, nodes, budgets)

    found = None if plan is None else rank(plan.node, plan.victims, budgets)
    assert found == min(ranks, default=None)
    assert plan is None or plan.violations == broken(plan.victims, budgets)


@settings(deadline=None, max_examples=20)
@forall(crowd=crowds(pods=12, nodes=1), request=asks)
def test_not_even_on_a_node_with_as_many_victims_as_are_tried_in_full(
    crowd: tuple[Nodes, list[Budget]], request: PodRequest
) -> None:
    nodes, budgets = crowd
    table = table_of(nodes)
    if fits_already(table, request, nodes):
        return
    plan = preemption.choose(table, request, PREEMPTOR, nodes, budgets)
    found = None if plan is None else rank(plan.node, plan.victims, budgets)
    assert found == min(every_choice(table, request, nodes, budgets), default=None)


@settings(deadline=None, max_examples=60)
@forall(crowd=crowds(pods=30, nodes=2), request=asks)
def test_on_crowded_nodes_the_choice_makes_room_and_nobody_goes_in_vain(
    crowd: tuple[Nodes, list[Budget]], request: PodRequest
) -> None:
    nodes, budgets = crowd
    table = table_of(nodes)
    if fits_already(table, request, nodes):
        return
    plan = preemption.choose(table, request, PREEMPTOR, nodes, budgets)
    everybody = {n: [v.charges for v in vs if v.priority < PREEMPTOR] for n, vs in nodes.items()}

    fitting = [
        whatif.fits_without(table, request, name, [charges])[0]
        for name, charges in everybody.items()
    ]
    assert (plan is not None) == any(fitting)
    if plan is None:
        return
    gone = [v.charges for v in plan.victims]
    one_stays = [[*gone[:i], *gone[i + 1 :]] for i in range(len(gone))]
    assert whatif.fits_without(table, request, plan.node, [gone]).all()
    assert not whatif.fits_without(table, request, plan.node, one_stays).any()
    assert all(v.priority < PREEMPTOR for v in plan.victims)


@settings(deadline=None, max_examples=60)
@forall(devices=node_devices(), request=pod_requests(), data=st.data())
def test_whatever_is_asked_of_whatever_node_the_choice_makes_room(
    devices: Sequence[Device], request: PodRequest, data: st.DataObject
) -> None:
    table = make_table(devices)
    pods = [
        Victim(uid=f"v{i}", pod=f"v{i}", priority=i % 3, started=i, charges={device.uuid: charge})
        for i, device in enumerate(devices)
        for charge in data.draw(st.lists(charges, max_size=3))
    ]
    pods = [replace(pod, uid=f"{pod.uid}-{i}") for i, pod in enumerate(pods)]
    for pod in pods:
        table.charge("node-0", pod.charges, sign=1)
    plan = preemption.choose(table, request, PREEMPTOR, {"node-0": pods})

    if plan is not None:
        gone = [v.charges for v in plan.victims]
        assert whatif.fits_without(table, request, "node-0", [gone]).all()


def test_on_a_crowded_node_the_easiest_device_is_freed() -> None:
    """Adding pods back by age alone would empty the device with the youngest pod."""
    crowd = [victim(f"a{i:02}", "node-a/0", memory=1000, cores=1, started=1) for i in range(9)]
    crowd += [victim("b", "node-a/1", started=1)]
    crowd += [victim(f"c{i:02}", "node-a/0", memory=1000, cores=1, started=2) for i in range(9)]
    nodes = {"node-a": crowd}
    table = table_of(nodes, slots=30)

    plan = preemption.choose(table, ask(), PREEMPTOR, nodes)

    assert plan is not None
    assert [v.uid for v in plan.victims] == ["b"]


# -- victims that somebody else chose ----------------------------------------------------------


def completed(
    nodes: Nodes, given: Mapping[str, Sequence[Victim]], request: PodRequest, **more: Any
) -> dict[str, list[str]]:
    plans = preemption.complete(table_of(nodes), request, PREEMPTOR, given, nodes, **more)
    return {name: [v.uid for v in plan.victims] for name, plan in plans.items()}


def test_victims_that_make_room_are_the_answer_and_others_are_completed() -> None:
    nodes = {name: [victim(f"{name}{i}", f"{name}/{i}") for i in range(2)] for name in "abc"}
    nodes["c"] = [victim(f"c{i}", f"c/{i}", priority=200) for i in range(2)]
    given = {"c": [nodes["c"][0]], "b": [], "a": nodes["a"][:1], "unknown": []}

    assert completed(nodes, given, ask()) == {"c": ["c0"], "b": ["b0"], "a": ["a0"]}
    assert completed(nodes, given, ask(2)) == {"b": ["b0", "b1"], "a": ["a0", "a1"]}


def test_more_nodes_than_are_completed_are_left_out() -> None:
    names = [f"node-{i:02}" for i in range(40)]
    nodes = {name: [victim(name, f"{name}/0"), victim(f"{name}x", f"{name}/1")] for name in names}
    given: dict[str, list[Victim]] = {name: [] for name in names}
    given["node-39"] = nodes["node-39"][:1]

    assert list(completed(nodes, given, ask())) == [
        *names[: preemption.NODES_COMPLETED],
        "node-39",
    ]


@settings(deadline=None, max_examples=60)
@forall(crowd=crowds(), request=asks, data=st.data())
def test_no_other_completion_is_better(
    crowd: tuple[Nodes, list[Budget]], request: PodRequest, data: st.DataObject
) -> None:
    nodes, budgets = crowd
    given = {n: [v for v in vs if data.draw(sometimes)] for n, vs in nodes.items()}
    others = {n: [v for v in vs if v not in given[n]] for n, vs in nodes.items()}
    table = table_of(nodes)
    plans = preemption.complete(table, request, PREEMPTOR, given, nodes, budgets)

    for name, fixed in given.items():
        if whatif.fits_without(table, request, name, [[v.charges for v in fixed]])[0]:
            assert {v.uid for v in plans[name].victims} == {v.uid for v in fixed}
            continue
        ranks = every_choice(table, request, {name: others[name]}, budgets, given)
        assert (name in plans) == bool(ranks)
        if ranks:
            plan: Plan = plans[name]
            further = [v for v in plan.victims if v not in fixed]
            best = min(
                (
                    rank(name, [*fixed, *s], budgets)[:1] + rank(name, s, budgets)[1:]
                    for s in subsets([v for v in others[name] if v.priority < PREEMPTOR])
                    if whatif.fits_without(
                        table, request, name, [[v.charges for v in [*fixed, *s]]]
                    )[0]
                ),
            )
            found = rank(name, plan.victims, budgets)[:1] + rank(name, further, budgets)[1:]
            assert found == best


# -- devices in parts --------------------------------------------------------------------------


def instance(uid: str, start: int, size: int, *, priority: int = 0) -> Victim:
    held = mig.counters_of(MigPlacement(start=start, size=size))
    charge = Charge(slots=1, memory=5000 * size, cores=14 * size, mig=held)
    return Victim(
        uid=uid, pod=uid, priority=priority, started=0, charges={DeviceUuid("GPU-0"): charge}
    )


def test_on_a_partitioned_device_those_go_whose_slices_are_needed() -> None:
    victims = [instance(f"v{i}", i, 1) for i in range(3)] + [instance("w", 4, 4)]
    table = DeviceTable()
    device = replace(make_device("GPU-0", mode=MODE_MIG, slots=7), mig_profiles=A100)
    table.set_node("node-a", [device])
    for each in victims:
        table.charge("node-a", each.charges, sign=1)

    def gone(memory: int) -> list[str]:
        plan = preemption.choose(table, ask(memory=memory), PREEMPTOR, {"node-a": victims})
        return [] if plan is None else [v.uid for v in plan.victims]

    assert gone(8000) == ["v2"]
    assert gone(20_000) == ["w"]
    assert gone(40_000) == ["v0", "v1", "v2", "w"]


def test_a_slice_with_two_holders_is_free_when_both_are_gone() -> None:
    victims = [instance("a", 0, 8), instance("b", 0, 8)]
    table = DeviceTable()
    device = replace(make_device("GPU-0", mode=MODE_MIG, slots=7), mig_profiles=A100)
    table.set_node("node-a", [device])
    for each in victims:
        table.charge("node-a", each.charges, sign=1)
    plan = preemption.choose(table, ask(memory=1000), PREEMPTOR, {"node-a": victims})

    assert plan is not None
    assert sorted(v.uid for v in plan.victims) == ["a", "b"]


# -- many cases --------------------------------------------------------------------------------


def test_many_cases_are_asked_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hami.core.relief.CASES_AT_ONCE", 2)
    nodes = {f"node-{i}": [victim(f"a{i}", f"node-{i}/0", f"node-{i}/1")] for i in range(9)}
    nodes["node-7"] = [victim("a7", "node-7/0", "node-7/1", memory=5000)]

    assert chosen(nodes) == ("node-7", ["a7"], 0)
