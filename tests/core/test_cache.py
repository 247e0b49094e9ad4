"""The life of a reservation, step by step."""

from __future__ import annotations

import pytest

from hami.core.allocation import Charge
from hami.core.cache import AllocationCache, State
from hami.core.device import ContainerRequest, DeviceRequest, DeviceUuid, PodRequest, Role
from hami.core.quota import Amount, read_quota
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import QuotaExceededError, StaleSnapshotError
from tests.support.builders import (
    OTHER,
    VENDORS,
    given,
    make_allocation,
    make_demand,
    make_device,
    make_devices,
    make_quota,
)

A, B = DeviceUuid("GPU-0"), DeviceUuid("GPU-1")
POD = make_allocation([given(A, memory=1000, cores=10)])
ONE = Charge(slots=1, memory=1000, cores=10)


@pytest.fixture
def cache() -> AllocationCache:
    """Two nodes of two devices; the second's are GPU-x-0 and GPU-x-1."""
    built = AllocationCache()
    built.set_node("node-0", make_devices(2))
    built.set_node("node-1", make_devices(2, prefix="GPU-x"))
    return built


def reserve(cache: AllocationCache, allocation: object = POD, *, expires_at: float = 60.0) -> None:
    assert isinstance(allocation, type(POD))
    generation = cache.table.generation(allocation.node)
    cache.reserve(allocation, generation=generation, expires_at=expires_at)


def state(cache: AllocationCache, uid: str = "uid-pod") -> State | None:
    found = cache.get(uid)
    return None if found is None else found.state


def test_a_reservation_is_held_until_it_is_confirmed(cache: AllocationCache) -> None:
    cache.hold(POD, expires_at=1.0)
    assert state(cache) is State.HELD
    assert cache.table.used("node-0")[A] == ONE

    reserve(cache)
    assert state(cache) is State.RESERVED
    assert cache.table.used("node-0")[A] == ONE

    cache.confirm(POD)
    assert state(cache) is State.CONFIRMED
    assert cache.table.used("node-0")[A] == ONE
    assert cache.expire(1e9) == ()

    cache.forget("uid-pod")
    assert state(cache) is None
    assert cache.table.used("node-0")[A] == Charge()


def test_expired_reservation_frees_its_devices(cache: AllocationCache) -> None:
    reserve(cache, expires_at=60.0)
    cache.hold(make_allocation([given(B)], uid="uid-other"), expires_at=30.0)

    assert cache.expire(29.9) == ()
    assert [r.allocation.uid for r in cache.expire(30.0)] == ["uid-other"]
    assert [r.allocation.uid for r in cache.expire(61.0)] == ["uid-pod"]

    assert cache.table.used("node-0") == {A: Charge(), B: Charge()}
    assert len(cache) == 0


def test_a_renewed_hold_expires_later(cache: AllocationCache) -> None:
    cache.hold(POD, expires_at=1.0)
    cache.hold(POD, expires_at=5.0)

    assert cache.expire(2.0) == ()
    assert len(cache.expire(5.0)) == 1


def test_released_reservation_frees_its_devices_once(cache: AllocationCache) -> None:
    reserve(cache)

    assert cache.release("uid-pod")
    assert not cache.release("uid-pod")

    assert cache.table.used("node-0")[A] == Charge()


def test_release_leaves_a_confirmed_pod_alone(cache: AllocationCache) -> None:
    cache.confirm(POD)

    assert not cache.release("uid-pod")

    assert cache.table.used("node-0")[A] == ONE


def test_a_hold_does_not_replace_a_bind_under_way(cache: AllocationCache) -> None:
    reserve(cache)

    cache.hold(make_allocation([given(B)]), expires_at=1.0)

    assert state(cache) is State.RESERVED
    assert cache.table.used("node-0") == {A: ONE, B: Charge()}


def test_a_hold_replaces_an_earlier_one_on_another_node(cache: AllocationCache) -> None:
    cache.hold(POD, expires_at=1.0)

    cache.hold(make_allocation([given("GPU-x-0")], node="node-1"), expires_at=1.0)

    assert cache.table.used("node-0")[A] == Charge()
    assert cache.table.used("node-1")[DeviceUuid("GPU-x-0")].slots == 1
    assert [r.allocation.node for r in cache.reservations()] == ["node-1"]
    assert list(cache.reservations("node-0")) == []


def test_a_decision_on_a_node_that_changed_is_refused(cache: AllocationCache) -> None:
    generation = cache.table.generation("node-0")
    cache.hold(make_allocation([given(B)], uid="uid-other"), expires_at=1.0)

    with pytest.raises(
        StaleSnapshotError, match=f"node node-0: decided at generation {generation}"
    ):
        cache.reserve(POD, generation=generation, expires_at=1.0)

    assert state(cache) is None


def test_a_decision_on_an_unknown_node_is_refused(cache: AllocationCache) -> None:
    lost = make_allocation([given(A)], node="ghost")

    with pytest.raises(StaleSnapshotError, match="node ghost: decided at generation 0, now at 0"):
        cache.reserve(lost, generation=0, expires_at=1.0)


def test_a_bound_pod_is_not_reserved_again(cache: AllocationCache) -> None:
    cache.confirm(POD)

    with pytest.raises(StaleSnapshotError, match="pod default/pod: already bound to node node-0"):
        reserve(cache, make_allocation([given("GPU-x-0")], node="node-1"))

    assert state(cache) is State.CONFIRMED
    assert cache.table.used("node-0")[A] == ONE


def test_what_the_watch_shows_replaces_what_was_reserved(cache: AllocationCache) -> None:
    reserve(cache)

    cache.confirm(make_allocation([given("GPU-x-0")], node="node-1"))

    assert cache.table.used("node-0")[A] == Charge()
    assert cache.table.used("node-1")[DeviceUuid("GPU-x-0")].slots == 1


def test_init_containers_give_back_their_devices_when_done(cache: AllocationCache) -> None:
    pod = make_allocation(
        [given(A, memory=9000)], [given(A, memory=1000)], roles=[Role.INIT, Role.APP]
    )
    cache.confirm(pod)
    assert cache.table.used("node-0")[A].memory == 9000

    cache.confirm(pod, init_done=True)

    assert cache.table.used("node-0")[A].memory == 1000


def test_a_changed_inventory_keeps_what_is_held(cache: AllocationCache) -> None:
    cache.confirm(POD)

    cache.set_node("node-0", [make_device("GPU-0", memory=10), make_device("GPU-9", index=1)])

    assert cache.table.used("node-0") == {A: ONE, "GPU-9": Charge()}


def test_a_device_that_comes_back_is_used_as_before(cache: AllocationCache) -> None:
    cache.confirm(POD)

    cache.set_node("node-0", make_devices(2)[1:])
    cache.set_node("node-0", make_devices(2))

    assert cache.table.used("node-0")[A] == ONE


def test_a_node_that_comes_back_is_used_as_before(cache: AllocationCache) -> None:
    cache.confirm(POD)

    cache.remove_node("node-0")
    assert cache.table.used("node-0") == {}
    assert [r.allocation.uid for r in cache.reservations("node-0")] == ["uid-pod"]

    cache.set_node("node-0", make_devices(2))
    assert cache.table.used("node-0")[A] == ONE


def test_a_pod_may_be_known_before_its_node(cache: AllocationCache) -> None:
    cache.confirm(make_allocation([given("GPU-late")], node="late"))

    cache.set_node("late", [make_device("GPU-late")])

    assert cache.table.used("late")[DeviceUuid("GPU-late")].slots == 1


def test_a_pod_that_ends_while_its_node_is_away_leaves_nothing(cache: AllocationCache) -> None:
    cache.confirm(POD)
    cache.remove_node("node-0")

    cache.forget("uid-pod")
    cache.set_node("node-0", make_devices(2))

    assert cache.table.used("node-0") == {A: Charge(), B: Charge()}


def test_a_decision_made_before_a_node_was_replaced_is_refused(cache: AllocationCache) -> None:
    generation = cache.table.generation("node-0")
    cache.remove_node("node-0")
    cache.set_node("node-0", make_devices(2))

    with pytest.raises(StaleSnapshotError):
        cache.reserve(POD, generation=generation, expires_at=1.0)


def test_an_unchanged_node_does_not_make_decisions_stale(cache: AllocationCache) -> None:
    generation = cache.table.generation("node-0")

    cache.set_node("node-0", make_devices(2))

    cache.reserve(POD, generation=generation, expires_at=1.0)
    assert state(cache) is State.RESERVED


def test_forgetting_an_unknown_pod_changes_nothing(cache: AllocationCache) -> None:
    cache.forget("uid-ghost")

    assert len(cache) == 0


def test_reservations_come_in_order(cache: AllocationCache) -> None:
    for uid in ("uid-b", "uid-a", "uid-c"):
        cache.confirm(make_allocation([given(A)], uid=uid))

    assert [r.allocation.uid for r in cache.reservations()] == ["uid-b", "uid-a", "uid-c"]
    assert [r.allocation.uid for r in cache.reservations("node-0")] == ["uid-b", "uid-a", "uid-c"]


# -- quotas -------------------------------------------------------------------------------------


def limit(cache: AllocationCache, memory: int) -> None:
    quota, _ = read_quota(make_quota(memory=memory), VENDORS)
    cache.quotas.set_quota(quota)


def used(cache: AllocationCache) -> Amount:
    return dict(cache.quotas.used("default")).get(NVIDIA.name, Amount())


def test_what_breaks_a_quota_is_refused_and_changes_nothing(cache: AllocationCache) -> None:
    limit(cache, 1500)
    cache.hold(POD, expires_at=1.0)
    larger = make_allocation([given(A, memory=1600)])

    with pytest.raises(QuotaExceededError, match="needs 1600 MiB, 1500 of 1500 left"):
        cache.hold(larger, expires_at=2.0)
    with pytest.raises(QuotaExceededError, match="pod default/pod: quota default/gpus: "):
        reserve(cache, larger)

    kept = cache.get("uid-pod")
    assert kept is not None
    assert (kept.state, kept.allocation, kept.expires_at) == (State.HELD, POD, 1.0)
    assert used(cache) == Amount(memory=1000, cores=10)


def test_pod_does_not_stand_in_its_own_way(cache: AllocationCache) -> None:
    limit(cache, 1500)
    cache.hold(POD, expires_at=1.0)
    cache.hold(make_allocation([given(B, memory=1500)]), expires_at=1.0)

    reserve(cache, make_allocation([given(A, memory=1400)]))

    assert used(cache) == Amount(memory=1400)


def test_what_the_api_server_shows_counts_whatever_a_quota_says(cache: AllocationCache) -> None:
    limit(cache, 0)

    cache.confirm(POD)

    assert used(cache) == Amount(memory=1000, cores=10)
    cache.forget("uid-pod")
    assert used(cache) == Amount()


def test_pods_of_nodes_that_are_gone_count(cache: AllocationCache) -> None:
    cache.confirm(POD)
    cache.remove_node("node-0")

    assert used(cache).memory == 1000


def test_reservation_that_moves_counts_once(cache: AllocationCache) -> None:
    reserve(cache)
    reserve(cache, make_allocation([given("GPU-x-0", memory=2000)], node="node-1"))

    assert used(cache) == Amount(memory=2000)


def test_pod_whose_devices_stay_but_whose_namespace_does_not_is_moved_in_the_book(
    cache: AllocationCache,
) -> None:
    """No API server would do that, but whoever asks for holds can say anything."""
    cache.hold(POD, expires_at=1.0)

    cache.hold(make_allocation([given(A, memory=1000, cores=10)], namespace="b"), expires_at=1.0)

    assert used(cache) == Amount()
    assert cache.quotas.used("b") == {NVIDIA.name: Amount(memory=1000, cores=10)}


def ask(demand: DeviceRequest) -> PodRequest:
    return PodRequest(containers=(ContainerRequest(name="c", role=Role.APP, requests=(demand,)),))


def test_shares_lack_what_they_would_on_the_smallest_device(cache: AllocationCache) -> None:
    cache.set_node("small", [make_device("GPU-s", memory=8000)])
    cache.set_node("other", [make_device("NPU", memory=10, vendor=OTHER.name)])
    limit(cache, 4000)

    assert cache.lack("default", ask(make_demand(1, percent=50))) is None
    lack = cache.lack("default", ask(make_demand(1, percent=51)))

    assert lack is not None
    assert (lack.needed, lack.left) == (4080, 4000)
    assert cache.lack("elsewhere", ask(make_demand(1, percent=51))) is None


def test_shares_of_devices_that_nobody_has_lack_nothing() -> None:
    cache = AllocationCache()
    limit(cache, 0)

    assert cache.lack("default", ask(make_demand(1, percent=100))) is None


def test_a_reservation_says_whether_its_node_has_changed_since() -> None:
    cache = AllocationCache()
    cache.set_node("node-0", make_devices(2))
    cache.hold(make_allocation([given("GPU-0")], uid="a"), expires_at=1.0)
    kept = cache.get("a")
    assert kept is not None
    assert kept.generation == cache.table.generation("node-0")

    cache.reserve(kept.allocation, generation=kept.generation, expires_at=2.0)
    renewed = cache.get("a")
    assert renewed is not None
    assert renewed.generation == kept.generation == cache.table.generation("node-0")

    cache.hold(make_allocation([given("GPU-1")], uid="b"), expires_at=1.0)
    assert renewed.generation != cache.table.generation("node-0")
