"""Rankings and choices: what a pod gets, why not, and that the answers kept are never stale."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.core import placement
from hami.core.allocation import Charge
from hami.core.cache import AllocationCache
from hami.core.device import DeviceUuid, NodePolicy, PodRequest, Role, Selection
from hami.core.placement import Choice, Placer, Ranking
from hami.core.table import DeviceTable
from hami.core.verdict import DeviceVerdict, Reason, Unit, Verdict
from tests.support.builders import (
    OTHER,
    asking,
    given,
    make_allocation,
    make_demand,
    make_device,
    make_devices,
    make_pod_request,
    make_table,
)
from tests.support.strategies import node_devices, pod_requests, small_containers

SMALL = make_pod_request(asking(make_demand(memory=1000)))
NODES = ("node-0", "node-1", "node-2")


def used_table(*memory: int) -> DeviceTable:
    """Nodes of one device with so much memory used."""
    table = make_table(*([make_device(f"GPU-{i}")] for i in range(len(memory))))
    for i, used in enumerate(memory):
        table.charge(f"node-{i}", {table.uuids[i][0]: Charge(slots=1, memory=used)}, sign=1)
    return table


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        pytest.param(NodePolicy.BINPACK, "node-1", id="binpack_prefers_the_fullest"),
        pytest.param(NodePolicy.SPREAD, "node-2", id="spread_prefers_the_emptiest"),
    ],
)
def test_node_policy_decides_among_nodes(policy: NodePolicy, expected: str) -> None:
    placer = Placer(used_table(2000, 3000, 1000))

    ranking = placer.rank(
        make_pod_request(asking(make_demand(memory=1)), node_policy=policy), NODES
    )

    assert ranking.feasible == NODES
    assert ranking.best == expected


def test_the_first_by_name_is_the_best_of_equals_whatever_the_order_asked() -> None:
    placer = Placer(used_table(1000, 1000, 1000))

    rankings = [placer.rank(SMALL, order) for order in (NODES, NODES[::-1], NODES[:0:-1])]

    assert [ranking.best for ranking in rankings] == ["node-0", "node-0", "node-1"]
    assert rankings[1].feasible == ("node-2", "node-1", "node-0")


def test_priorities_give_ten_to_the_best_and_less_to_its_equals() -> None:
    ranking = Placer(used_table(1000, 3000, 3000)).rank(SMALL, NODES[::-1])

    assert ranking.priorities() == {"node-2": 9, "node-1": 10, "node-0": 0}


def test_a_ranking_without_feasible_nodes_has_no_best() -> None:
    ranking = Placer(make_table()).rank(SMALL, ["ghost"])

    assert ranking.best is None
    assert ranking.priorities() == {}
    assert ranking.failed == {"ghost": "node unregistered"}


def test_every_node_asked_is_feasible_or_failed_with_its_reason() -> None:
    table = make_table(
        make_devices(2),
        [make_device("GPU-s", healthy=False), make_device("GPU-f", memory=500, index=1)],
        [],
        [make_device("NPU", vendor=OTHER.name)],
    )

    ranking = Placer(table).rank(SMALL, ["node-3", "ghost", "node-0", "node-1", "node-2"])

    assert ranking.feasible == ("node-0",)
    assert ranking.failed == {
        "node-1": "1/2 CardInsufficientMemory, 1/2 CardNotHealth",
        "node-2": "node unregistered",
        "node-3": "node unregistered",
        "ghost": "node unregistered",
    }


def test_nodes_that_fail_at_different_containers_do_not_share_a_reason() -> None:
    table = make_table(
        [make_device("GPU-0"), make_device("GPU-1", index=1, memory=500)],
        [make_device("GPU-2"), make_device("GPU-3", index=1, memory=1500)],
    )
    pod = make_pod_request(asking(make_demand(2, memory=1000)), asking(make_demand(3, memory=1000)))

    ranking = Placer(table).rank(pod, ["node-0", "node-1"])

    assert ranking.failed == {
        "node-0": "1/2 AllocatedCardsInsufficientRequest, 1/2 CardInsufficientMemory",
        "node-1": "NodeInsufficientDevice 3 of 2",
    }


def test_a_choice_names_devices_amounts_and_generation() -> None:
    table = make_table(make_devices(2), make_devices(2, prefix="OTHER"))
    pod = make_pod_request(
        asking(make_demand(percent=10, cores=5), role=Role.INIT),
        asking(),
        asking(make_demand(2, memory=7)),
    )

    choice = Placer(table).choose(pod, "node-0")

    assert choice == Choice(
        node="node-0",
        generation=table.generation("node-0"),
        containers=(
            (given("GPU-1", memory=4000, cores=5),),
            (),
            (given("GPU-1", memory=7), given("GPU-0", memory=7)),
        ),
    )


def test_an_unknown_node_gets_a_verdict_without_devices() -> None:
    verdict = Placer(make_table()).choose(SMALL, "ghost")

    assert verdict == Verdict(node="ghost")
    assert str(verdict) == "node unregistered"


def test_a_verdict_tells_of_each_device_what_failed_and_by_how_much() -> None:
    table = make_table(
        [
            make_device("GPU-0", index=0, memory=500),
            make_device("GPU-1", index=1, healthy=False),
            make_device("GPU-2", index=2),
            make_device("NPU-0", index=3, vendor=OTHER.name),
        ]
    )
    pod = make_pod_request(asking(make_demand(2, memory=1000), name="train"))

    verdict = Placer(table).choose(pod, "node-0")

    assert verdict == Verdict(
        node="node-0",
        container="train",
        needed=2,
        devices=(
            DeviceVerdict(
                uuid=given("GPU-0").uuid,
                reason=Reason.MEMORY,
                needed=1000,
                free=500,
                unit=Unit.MIB,
            ),
            DeviceVerdict(uuid=given("GPU-1").uuid, reason=Reason.UNHEALTHY),
            DeviceVerdict(uuid=given("GPU-2").uuid, reason=None),
        ),
    )


def test_a_lack_counts_what_the_pods_other_containers_take() -> None:
    table = make_table([make_device(memory=40_000)])
    half = asking(make_demand(memory=30_000), name="first")
    pod = make_pod_request(half, asking(make_demand(memory=30_000), name="second"))

    verdict = Placer(table).choose(pod, "node-0")

    assert isinstance(verdict, Verdict)
    assert verdict.container == "second"
    assert [(d.needed, d.free) for d in verdict.devices] == [(30_000, 10_000)]


def test_a_verdict_is_about_the_vendor_that_lacks_devices() -> None:
    table = make_table([make_device("GPU-0"), make_device("NPU-0", vendor=OTHER.name, memory=5)])
    pod = make_pod_request(
        asking(make_demand(memory=10), make_demand(memory=10, vendor=OTHER.name))
    )

    verdict = Placer(table).choose(pod, "node-0")

    assert isinstance(verdict, Verdict)
    assert [(d.uuid, d.needed, d.free) for d in verdict.devices] == [("NPU-0", 10, 5)]


def test_a_choice_and_a_ranking_give_the_same_reason() -> None:
    table = make_table(make_devices(3, memory=10))
    placer = Placer(table)

    assert placer.rank(SMALL, ["node-0"]).failed["node-0"] == str(placer.choose(SMALL, "node-0"))


def test_the_least_recently_asked_signature_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "SIGNATURES_KEPT", 2)
    placer = Placer(make_table(make_devices(1)))
    pods = [make_pod_request(asking(make_demand(memory=memory))) for memory in (1, 2, 3)]

    for pod in (pods[0], pods[1], pods[0], pods[2]):
        assert placer.rank(pod, ["node-0"]).best == "node-0"

    assert list(placer._answers) == [pods[0], pods[2]]


# -- laws ----------------------------------------------------------------------------------------

Change = Callable[[AllocationCache], None]


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """One change of the cluster."""
    node = draw(st.sampled_from(NODES))
    uid = draw(st.sampled_from(["uid-a", "uid-b", "uid-c"]))
    devices = draw(node_devices(prefix=draw(st.sampled_from(["GPU", "NEW"]))))
    allocation = make_allocation(*draw(small_containers), uid=uid, node=node)
    cordoned = draw(st.frozensets(st.sampled_from(["GPU-0", "GPU-1"])))
    options: list[Change] = [
        lambda cache: cache.set_node(node, devices, cordoned=cordoned),
        lambda cache: cache.remove_node(node),
        lambda cache: cache.confirm(allocation),
        lambda cache: cache.forget(uid),
    ]
    return draw(st.sampled_from(options))


def shown(ranking: Ranking) -> tuple[object, ...]:
    return ranking.feasible, ranking.preference.tolist(), ranking.failed, ranking.best


@forall(
    pods=st.lists(pod_requests(), min_size=1, max_size=2),
    steps=st.lists(st.lists(changes(), max_size=3), max_size=6),
)
def test_kept_answers_are_those_of_a_fresh_placer(
    pods: list[PodRequest], steps: list[list[Change]]
) -> None:
    cache = AllocationCache()
    placer = Placer(cache.table)

    for step in steps:
        for change in step:
            change(cache)
        for pod in pods:
            fresh = Placer(cache.table)
            assert shown(placer.rank(pod, NODES)) == shown(fresh.rank(pod, NODES))


@forall(pod=pod_requests(), steps=st.lists(changes(), max_size=6))
def test_a_node_is_feasible_exactly_if_a_choice_can_be_made_there(
    pod: PodRequest, steps: list[Change]
) -> None:
    cache = AllocationCache()
    for change in steps:
        change(cache)
    placer = Placer(cache.table)

    ranking = placer.rank(pod, NODES)

    for node in NODES:
        choice = placer.choose(pod, node)
        assert isinstance(choice, Choice) == (node in ranking.feasible)
        if isinstance(choice, Verdict):
            assert str(choice) == ranking.failed[node]


@forall(pod=pod_requests(), steps=st.lists(changes(), max_size=6))
def test_a_choice_that_is_reserved_fits_and_never_overfills_a_device(
    pod: PodRequest, steps: list[Change]
) -> None:
    cache = AllocationCache()
    for change in steps:
        change(cache)

    for node in NODES:
        before = cache.table.used(node)
        choice = Placer(cache.table).choose(pod, node)
        if isinstance(choice, Verdict):
            continue
        roles = [container.role for container in pod.containers]
        allocation = make_allocation(*choice.containers, uid="uid-new", node=node, roles=roles)
        cache.reserve(allocation, generation=choice.generation, expires_at=1.0)

        after = cache.table.used(node)
        for device in cache.table.devices(node):
            if after[device.uuid] != before[device.uuid]:
                assert after[device.uuid].slots <= device.slots
                assert after[device.uuid].memory <= device.memory
                assert after[device.uuid].cores <= device.cores
        cache.release("uid-new")
        assert cache.table.used(node) == before


def test_a_selection_is_part_of_the_signature() -> None:
    placer = Placer(make_table([make_device("GPU-a")], [make_device("GPU-b")]))
    wanted = Selection(use_uuids=frozenset({"GPU-b"}))
    chosen = make_pod_request(asking(make_demand(memory=1000)), selection=wanted)

    assert placer.rank(SMALL, NODES[:2]).feasible == ("node-0", "node-1")
    assert placer.rank(chosen, NODES[:2]).feasible == ("node-1",)


def test_a_ranking_without_some_nodes_has_the_best_of_the_others() -> None:
    table = make_table(*(make_devices(2, prefix=f"GPU-{i}") for i in range(3)))
    table.charge("node-1", {DeviceUuid("GPU-1-0"): Charge(slots=1)}, sign=1)
    ranking = Placer(table).rank(
        make_pod_request(asking(make_demand(memory=1))), ["node-0", "node-1", "node-2"]
    )

    left = ranking.without({"node-1", "ghost"}, "NodeBusy")

    assert ranking.best == "node-1"
    assert (left.feasible, left.best) == (("node-0", "node-2"), "node-0")
    assert left.failed == {"node-1": "NodeBusy"}
    assert ranking.without({"node-0", "node-1", "node-2"}, "NodeBusy") is ranking
    assert ranking.without(set(), "NodeBusy") is ranking
