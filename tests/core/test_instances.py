"""MIG devices among others: instances are chosen, counted, recorded and given back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.core import record
from hami.core.allocation import Allocation, Charge, ContainerDevice
from hami.core.cache import AllocationCache
from hami.core.device import Device, DevicePolicy, DeviceUuid, PodRequest, Role, Selection
from hami.core.placement import Choice, Placer
from hami.core.verdict import Reason, Verdict
from tests.support.builders import (
    VENDORS,
    asking,
    make_container,
    make_demand,
    make_device,
    make_pod,
    make_pod_request,
)
from tests.support.geometries import A30, A100, H100_ALL, Profiles


def mig_device(uuid: str, profiles: Profiles = A100, *, index: int = 0) -> Device:
    plain = make_device(uuid, index=index, slots=7, memory=40_960, mode="mig")
    return replace(plain, mig_profiles=profiles)


def cache_of(*devices: Device) -> AllocationCache:
    cache = AllocationCache()
    cache.set_node("node-0", devices)
    return cache


def put(cache: AllocationCache, name: str, pod: PodRequest) -> Choice | Verdict:
    """Place the pod and keep it, if it fits."""
    choice = Placer(cache.table).choose(pod, "node-0")
    if isinstance(choice, Choice):
        cache.confirm(
            Allocation(
                uid=name,
                namespace="default",
                name=name,
                node="node-0",
                containers=choice.containers,
                roles=pod.roles,
            )
        )
    return choice


def only(choice: Choice | Verdict) -> ContainerDevice:
    assert isinstance(choice, Choice)
    ((device,),) = choice.containers
    return device


def slices(device: ContainerDevice) -> tuple[str, int]:
    assert device.mig is not None
    return device.mig.profile, device.mig.placement.start


ONE = make_pod_request(asking(make_demand(memory=4000)))


def test_seven_small_instances_fill_a_device_and_the_eighth_is_told_why() -> None:
    cache = cache_of(mig_device("GPU-0"))

    taken = [slices(only(put(cache, f"pod-{i}", ONE))) for i in range(7)]
    refused = put(cache, "pod-7", replace(ONE, node_policy=ONE.node_policy))

    assert sorted(start for _, start in taken) == list(range(7))
    assert {profile for profile, _ in taken} == {"1g.5gb"}
    assert isinstance(refused, Verdict)
    assert [d.reason for d in refused.devices] == [Reason.SLOTS]


def test_an_instance_has_its_profiles_memory_and_cores() -> None:
    device = only(put(cache_of(mig_device("GPU-0")), "pod", ONE))

    assert (device.memory, device.cores) == (4864, 15)


@pytest.mark.parametrize(
    ("demand", "expected"),
    [
        pytest.param(make_demand(memory=4000), "1g.5gb", id="the_smallest_that_holds_it"),
        pytest.param(make_demand(memory=4864), "1g.5gb", id="exactly"),
        pytest.param(make_demand(memory=4865), "2g.10gb", id="one_mib_more"),
        pytest.param(make_demand(memory=4000, cores=30), "3g.20gb", id="cores_count_too"),
        pytest.param(make_demand(percent=100), "7g.40gb", id="all_of_it_is_the_largest"),
        pytest.param(make_demand(percent=100, cores=100), "7g.40gb", id="exclusive_is_the_largest"),
        pytest.param(make_demand(percent=20), "2g.10gb", id="a_share_of_the_whole_device"),
    ],
)
def test_a_request_gets_the_smallest_profile_that_holds_it(demand: object, expected: str) -> None:
    pod = make_pod_request(asking(demand))  # type: ignore[arg-type] # each case is a demand

    assert slices(only(put(cache_of(mig_device("GPU-0")), "pod", pod)))[0] == expected


def test_several_instances_for_one_container_may_be_of_one_device() -> None:
    cache = cache_of(mig_device("GPU-0"))

    choice = put(cache, "pod", make_pod_request(asking(make_demand(3, memory=9000))))

    assert isinstance(choice, Choice)
    assert sorted(slices(d)[1] for d in choice.containers[0]) == [0, 2, 4]
    assert {d.uuid for d in choice.containers[0]} == {"GPU-0"}


def test_more_instances_than_there_is_room_for_do_not_fit() -> None:
    cache = cache_of(mig_device("GPU-0"))

    assert isinstance(
        put(cache, "pod", make_pod_request(asking(make_demand(4, memory=9000)))), Verdict
    )


def test_containers_of_one_pod_get_different_slices() -> None:
    cache = cache_of(mig_device("GPU-0"))
    two = asking(make_demand(memory=18_000))

    choice = put(cache, "pod", make_pod_request(two, two))

    assert isinstance(choice, Choice)
    assert sorted(slices(own[0])[1] for own in choice.containers) == [0, 4]


def test_a_node_may_mix_shared_and_mig_devices_and_pods_choose_by_mode() -> None:
    cache = cache_of(mig_device("GPU-mig"), make_device("GPU-shared", index=1))

    def where(mode: str) -> str:
        pod = make_pod_request(asking(make_demand(memory=4000)), selection=Selection(modes=mode))
        return only(put(cache, f"pod-{mode}", pod)).uuid

    assert where("mig") == "GPU-mig"
    assert where("hami-core") == "GPU-shared"


def test_the_device_that_loses_least_is_preferred_whatever_the_policy() -> None:
    """The first instance costs a device its largest profile; the next ones beside it do not."""
    cache = cache_of(mig_device("GPU-a"), mig_device("GPU-b", index=1))
    spread = replace(ONE, device_policy=DevicePolicy.SPREAD)

    places = [only(put(cache, f"pod-{i}", spread)) for i in range(3)]
    half = make_pod_request(asking(make_demand(memory=20_000)))

    assert len({device.uuid for device in places}) == 1
    assert isinstance(put(cache, "another", half), Choice)
    assert isinstance(put(cache, "third", half), Choice)
    assert isinstance(put(cache, "fourth", half), Choice)


def test_a_pod_without_a_readable_reservation_holds_its_whole_device() -> None:
    cache = cache_of(mig_device("GPU-0"), mig_device("GPU-1", index=1))
    legacy = ContainerDevice(
        uuid=DeviceUuid("GPU-0"),
        vendor=next(iter(VENDORS)),
        memory=ONE.containers[0].requests[0].memory,
        cores=ONE.containers[0].requests[0].cores,
    )
    cache.confirm(
        Allocation(
            uid="legacy",
            namespace="d",
            name="legacy",
            node="node-0",
            containers=((legacy,),),
            roles=(Role.APP,),
        )
    )

    assert {only(put(cache, f"pod-{i}", ONE)).uuid for i in range(7)} == {"GPU-1"}
    cache.forget("legacy")
    assert only(put(cache, "after", ONE)).uuid == "GPU-0"


def test_a_device_that_changes_to_mig_counts_what_runs_on_it_as_taken_whole() -> None:
    cache = cache_of(make_device("GPU-0"))
    put(cache, "soft", ONE)

    cache.set_node("node-0", [mig_device("GPU-0")])

    assert isinstance(put(cache, "pod", ONE), Verdict)
    cache.forget("soft")
    assert isinstance(put(cache, "pod", ONE), Choice)


demands = st.builds(
    make_demand,
    st.integers(1, 3),
    memory=st.sampled_from([0, 1000, 4864, 9000, 15_000, 20_000, 40_000]),
    percent=st.just(100),
    cores=st.sampled_from([0, 10, 30, 100]),
)
steps = st.lists(st.tuples(st.integers(0, 5), st.none() | demands), max_size=30)


@forall(profiles=st.sampled_from([A100, A30, H100_ALL]), steps=steps)
def test_no_slice_is_ever_given_twice_and_all_come_back(
    profiles: Profiles, steps: list[tuple[int, object]]
) -> None:
    cache = cache_of(mig_device("GPU-0", profiles), mig_device("GPU-1", profiles, index=1))
    held: dict[str, list[tuple[str, int]]] = {}
    for number, demand in steps:
        name = f"pod-{number}"
        if demand is None or name in held:
            cache.forget(name)
            held.pop(name, None)
            continue
        pod = make_pod_request(asking(demand))  # type: ignore[arg-type] # drawn as demands
        choice = put(cache, name, pod)
        if isinstance(choice, Choice):
            held[name] = [
                (d.uuid, at)
                for d in choice.containers[0]
                if d.mig is not None
                for at in range(d.mig.placement.start, d.mig.placement.start + d.mig.placement.size)
            ]
        everything = [place for own in held.values() for place in own]
        assert len(everything) == len(set(everything))
    for name in list(held):
        cache.forget(name)
    assert set(cache.table.used("node-0").values()) == {Charge()}
    assert not cache.table.columns.mig_mask.any()


def test_reservations_are_recorded_and_read_back() -> None:
    cache = cache_of(mig_device("GPU-0"))
    pod = make_pod_request(asking(), asking(make_demand(2, memory=9000)))
    put(cache, "pod", pod)
    kept = cache.get("pod")
    assert kept is not None
    written = record.annotations_for(kept.allocation, VENDORS, now_seconds=1, scheduled_by="x/1")

    read = record.allocation_of(
        make_pod(
            "pod",
            uid="pod",
            annotations=written,
            containers=[make_container("a"), make_container("b", gpus=2)],
        ),
        VENDORS,
    )

    assert read is not None
    assert read.containers == kept.allocation.containers
    assert read.charges() == kept.charges
    assert '"containerIndex":1,"deviceIndex":1' in written["hami.io/vgpu-mig-allocations"]


def test_a_reservation_of_no_device_holds_its_slices_and_a_malformed_one_is_told() -> None:
    key = "hami.io/vgpu-mig-allocations"
    annotations = {
        "hami.io/vgpu-node": "node-0",
        "hami.io/vgpu-devices-allocated": "GPU-0,NVIDIA,4864,15:;",
        key: '[{"containerIndex":3,"deviceIndex":0,"gpuUUID":"GPU-1","profile":"1g.5gb",'
        '"placement":{"start":2,"size":1}}]',
    }
    pod = make_pod("pod", annotations=annotations)

    loose = record.allocation_of(pod, VENDORS)

    assert loose is not None
    assert loose.containers[0][0].mig is None
    assert loose.charges()[DeviceUuid("GPU-1")].mig
    assert record.problems(pod, VENDORS) == ()
    broken = make_pod("pod", annotations=annotations | {key: "[{}]"})
    assert record.allocation_of(broken, VENDORS) is not None
    assert key in record.problems(broken, VENDORS)[0]
