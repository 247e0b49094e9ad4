"""What-if questions are answered as if it were so, and change nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.core import whatif
from hami.core.allocation import Allocation, Charge
from hami.core.cache import AllocationCache
from hami.core.device import NodePolicy, PodRequest, Role
from hami.core.placement import Choice, Placer
from tests.support.builders import (
    asking,
    make_demand,
    make_device,
    make_devices,
    make_pod_request,
)
from tests.support.geometries import A30
from tests.support.strategies import charges, node_devices, pod_requests


def keep(cache: AllocationCache, name: str, pod: PodRequest, choice: Choice) -> None:
    cache.confirm(
        Allocation(
            uid=name,
            namespace="default",
            name=name,
            node=choice.node,
            containers=choice.containers,
            roles=pod.roles,
        )
    )


@forall(data=st.data(), pod=pod_requests())
def test_a_case_fits_exactly_if_it_fits_once_the_pods_are_gone(
    data: st.DataObject, pod: PodRequest
) -> None:
    devices = data.draw(node_devices())
    cache = AllocationCache()
    cache.set_node("node-0", devices)
    held = [
        {d.uuid: data.draw(charges) for d in devices if data.draw(st.booleans())} for _ in range(3)
    ]
    for charge in held:
        cache.table.charge("node-0", charge, sign=1)
    cases = data.draw(st.lists(st.lists(st.sampled_from(held), unique_by=id, max_size=3)))
    before = cache.table.used("node-0")

    answers = whatif.fits_without(cache.table, pod, "node-0", cases)

    assert cache.table.used("node-0") == before
    expected = []
    for case in cases:
        for charge in case:
            cache.table.charge("node-0", charge, sign=-1)
        expected.append(isinstance(Placer(cache.table).choose(pod, "node-0"), Choice))
        for charge in case:
            cache.table.charge("node-0", charge, sign=1)
    assert answers.tolist() == expected


def test_an_unknown_node_fits_nothing() -> None:
    table = AllocationCache().table
    pod = make_pod_request(asking(make_demand()))

    assert whatif.fits_without(table, pod, "node-0", [[], []]).tolist() == [False, False]
    assert whatif.copies(table, pod, ["node-0"], limit=5) == {"node-0": 0}


plain_pods = st.builds(
    lambda count, memory, cores, init: make_pod_request(
        *([asking(make_demand(count, memory=memory), role=Role.INIT)] if init else []),
        asking(make_demand(count, memory=memory, cores=cores)),
    ),
    st.integers(1, 2),
    st.sampled_from([3000, 9000, 20_000]),
    st.sampled_from([0, 30, 100]),
    st.booleans(),
)


@forall(pod=plain_pods, nodes=st.integers(1, 3), policy=st.sampled_from(NodePolicy))
def test_copies_are_those_that_could_really_be_kept_one_after_the_other(
    pod: PodRequest, nodes: int, policy: NodePolicy
) -> None:
    cache = AllocationCache()
    pod = replace(pod, node_policy=policy)
    names = [f"node-{i}" for i in range(nodes)]
    for name in names:
        cache.set_node(name, make_devices(2, prefix=f"GPU-{name}"))

    counts = whatif.copies(cache.table, pod, names, limit=1000)
    placer = Placer(cache.table)
    kept = dict.fromkeys(names, 0)
    while (best := placer.rank(pod, names).best) is not None:
        choice = placer.choose(pod, best)
        assert isinstance(choice, Choice)
        keep(cache, f"pod-{sum(kept.values())}", pod, choice)
        kept[best] += 1
    assert kept == counts


def test_counting_stops_at_the_limit() -> None:
    cache = AllocationCache()
    for i in range(10):
        cache.set_node(f"node-{i}", make_devices(8, prefix=f"GPU-{i}"))
    pod = make_pod_request(asking(make_demand(memory=1)))

    counts = whatif.copies(cache.table, pod, [f"node-{i}" for i in range(10)], limit=15)

    assert 15 <= sum(counts.values()) < 30


def test_mig_slices_come_back_in_the_question_only() -> None:

    device = replace(make_device("GPU-0", slots=4, memory=24_576, mode="mig"), mig_profiles=A30)
    cache = AllocationCache()
    cache.set_node("node-0", [device])
    whole = make_pod_request(asking(make_demand(percent=100)))
    choice = Placer(cache.table).choose(whole, "node-0")
    assert isinstance(choice, Choice)
    keep(cache, "first", whole, choice)
    kept = cache.get("first")
    assert kept is not None

    answers = whatif.fits_without(cache.table, whole, "node-0", [[], [kept.charges]])

    assert answers.tolist() == [False, True]
    assert cache.table.used("node-0") == {device.uuid: kept.charges[device.uuid]}
    assert np.count_nonzero(cache.table.columns.mig_mask) == 1
    assert kept.charges[device.uuid] != Charge()
