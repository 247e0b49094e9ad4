"""Which nodes a pod may still have, where its namespace has a quota: as the devices would count."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from hami.core.allocation import Charge
from hami.core.device import (
    MODE_MIG,
    ContainerRequest,
    Device,
    DeviceRequest,
    PodRequest,
    Role,
)
from hami.core.placement import Choice, Placer
from hami.core.quota import Amount, QuotaBook, Room, read_quota
from hami.core.vendors.nvidia import NVIDIA
from hami.core.verdict import NodeReason, Verdict
from tests.support.builders import (
    VENDORS,
    make_demand,
    make_device,
    make_devices,
    make_quota,
    make_table,
)
from tests.support.geometries import A100
from tests.support.strategies import charges, node_devices, pod_requests


def room_for(*, memory: int | None = None, cores: int | None = None, used: int = 0) -> Room | None:
    book = QuotaBook()
    book.set_quota(read_quota(make_quota(memory=memory, cores=cores), VENDORS)[0])
    book.charge("default", {NVIDIA.name: Amount(memory=used)}, sign=1)
    return book.room("default")


def ask(*demands: DeviceRequest) -> PodRequest:
    return PodRequest(
        containers=tuple(
            ContainerRequest(name="c", role=Role.APP, requests=(demand,)) for demand in demands
        )
    )


def mig(uuid: str) -> Device:
    return replace(make_device(uuid, slots=7), mode=MODE_MIG, mig_profiles=A100)


def test_what_does_not_depend_on_devices_is_refused_everywhere() -> None:
    placer = Placer(make_table(make_devices(2), make_devices(2, memory=80_000)))
    request = ask(make_demand(2, memory=3000))

    assert placer.rank(request, ["node-0", "node-1"], room=room_for(memory=6000)).failed == {}
    ranking = placer.rank(request, ["node-0", "node-1"], room=room_for(memory=5999))
    assert ranking.failed == dict.fromkeys(["node-0", "node-1"], "ResourceQuotaNotFit")
    assert ranking.best is None


def test_share_is_judged_by_the_device_that_the_node_would_give() -> None:
    placer = Placer(make_table(make_devices(1), make_devices(1, memory=10_000)))
    request = ask(make_demand(percent=50))

    ranking = placer.rank(request, ["node-0", "node-1"], room=room_for(memory=15_000))

    assert ranking.feasible == ("node-1",)


def test_mig_instance_counts_as_its_profile() -> None:
    """Of 5000 MiB asked, a 2g.10gb of 9984 MiB comes; so do its cores."""
    placer = Placer(make_table([mig("M")], make_devices(1)))
    nodes = ["node-0", "node-1"]
    request = ask(make_demand(memory=5000))

    assert placer.rank(request, nodes, room=room_for(memory=9984)).failed == {}
    assert placer.rank(request, nodes, room=room_for(memory=9983)).feasible == ("node-1",)
    assert placer.rank(request, nodes, room=room_for(cores=28)).feasible == ("node-1",)
    verdict = placer.choose(request, "node-0", room=room_for(memory=9983))
    assert isinstance(verdict, Verdict)
    assert verdict.reason is NodeReason.QUOTA
    assert verdict.note.endswith("limits.nvidia.com/gpumem: needs 9984 MiB, 9983 of 9983 left")


def test_answer_follows_the_node_and_the_room() -> None:
    """Asked again it looks only at what changed: the next instance is of another profile."""
    table = make_table([mig("M")])
    placer, request = Placer(table), ask(make_demand(memory=3000))
    assert placer.rank(request, ["node-0"], room=room_for(memory=4864)).best == "node-0"
    assert placer.rank(request, ["node-0"], room=room_for(memory=4864, used=1)).best is None

    table.set_node("node-0", make_devices(1))
    assert placer.rank(request, ["node-0"], room=room_for(memory=3000)).best == "node-0"


rooms = st.builds(
    room_for,
    memory=st.none() | st.sampled_from([0, 100, 1000, 2000, 5000, 20_000]),
    cores=st.none() | st.sampled_from([0, 10, 60, 100, 400]),
    used=st.sampled_from([0, 0, 100, 30_000]),
)


@given(
    st.lists(node_devices(max_size=4), min_size=1, max_size=4),
    pod_requests(),
    rooms,
    st.booleans(),
    st.data(),
)
def test_node_is_feasible_exactly_if_devices_are_chosen_on_it(
    nodes: list[tuple[Device, ...]],
    request: PodRequest,
    room: Room | None,
    partitioned: bool,
    data: st.DataObject,
) -> None:
    if partitioned:
        nodes = [
            tuple(replace(d, mig_profiles=A100) if d.mode == MODE_MIG else d for d in devices)
            for devices in nodes
        ]
    table = make_table(*nodes)
    placer, names = Placer(table), [f"node-{i}" for i in range(len(nodes))]
    for _ in range(2):  # the second time from what is kept, but for the nodes that changed
        ranking = placer.rank(request, names, room=room)
        for name in names:
            choice = placer.choose(request, name, room=room)
            assert isinstance(choice, Choice) == (name in ranking.feasible), (name, choice)
            if isinstance(choice, Verdict) and choice.reason is NodeReason.QUOTA:
                assert ranking.failed[name] == NodeReason.QUOTA.value
        for number, devices in enumerate(nodes):
            changes = data.draw(st.booleans())
            if devices and changes:
                used: Charge = data.draw(charges)
                table.charge(f"node-{number}", {devices[0].uuid: used}, sign=1)
