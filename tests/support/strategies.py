"""Hypothesis strategies for clusters, pods and annotations.

Numbers are small and round, so that devices fill up, scores tie and rules meet often.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from hypothesis import strategies as st

from hami.core.allocation import Charge, ContainerDevice, Containers
from hami.core.device import (
    ContainerRequest,
    Device,
    DevicePolicy,
    DeviceRequest,
    DeviceUuid,
    MigPlacement,
    MigProfile,
    NodePolicy,
    PodRequest,
    Role,
    Selection,
    VendorName,
    Weights,
)
from hami.core.quantity import MAX_INT32, MiB, Percent
from hami.core.vendors.nvidia import NVIDIA
from tests.support.builders import OTHER, given, make_device

T = TypeVar("T")

int32 = st.integers(min_value=0, max_value=MAX_INT32)
wire_text = st.text(
    st.characters(codec="utf-8", exclude_characters=",:;", exclude_categories=["Cs"]), max_size=20
)
"""Text that the colon and comma forms can carry."""
wire_uuids = wire_text.filter(bool).map(DeviceUuid)
any_text = st.one_of(
    st.text(st.characters(), max_size=80),
    st.text(alphabet="GPU-0123456789,:;{}[]\"'.truefalsnid_ ", max_size=120),
)
"""What a hostile writer may put anywhere, lone surrogates included."""

MODELS = ("NVIDIA A100-SXM4-40GB", "NVIDIA T4", "NVIDIA H100 80GB HBM3")
MODES = ("hami-core", "mig", "mps", "")


@st.composite
def wire_devices(draw: st.DrawFn, uuid: st.SearchStrategy[DeviceUuid] = wire_uuids) -> Device:
    """Any device that both register forms can carry."""
    return Device(
        uuid=draw(uuid),
        vendor=NVIDIA.name,
        index=draw(int32),
        slots=draw(int32),
        memory=MiB(draw(int32)),
        cores=Percent(draw(int32)),
        model=draw(wire_text),
        numa=draw(st.integers(0, 100)),
        mode=draw(wire_text),
        healthy=draw(st.booleans()),
    )


mig_profiles = st.builds(
    MigProfile,
    name=st.sampled_from(["1g.10gb", "2g.20gb", "<&>"]),
    memory=int32.map(MiB),
    cores=st.integers(0, 100).map(Percent),
    slices=st.integers(0, 7),
    placements=st.lists(
        st.builds(MigPlacement, start=st.integers(0, 7), size=st.integers(1, 8)), max_size=3
    ).map(tuple),
)


def inventories(max_size: int = 4) -> st.SearchStrategy[tuple[Device, ...]]:
    """Registered devices of a node, each id once."""
    return st.lists(wire_devices(), min_size=1, max_size=max_size, unique_by=lambda d: d.uuid).map(
        tuple
    )


container_devices: st.SearchStrategy[ContainerDevice] = st.builds(
    ContainerDevice,
    uuid=wire_uuids,
    vendor=st.just(NVIDIA.name),
    memory=int32.map(MiB),
    cores=int32.map(Percent),
)
wire_containers: st.SearchStrategy[Containers] = st.lists(
    st.lists(container_devices, max_size=3).map(tuple), max_size=5
).map(tuple)


def mostly(usual: T, *others: T) -> st.SearchStrategy[T]:
    """The usual value five times out of six: one oddity at a time finds more than all at once."""
    return st.integers(0, 5).flatmap(
        lambda n: st.sampled_from(others) if n == 5 else st.just(usual)
    )


@st.composite
def node_devices(draw: st.DrawFn, *, prefix: str = "GPU", max_size: int = 6) -> tuple[Device, ...]:
    """A node's devices as the engine meets them: sick ones, other modes, models and makers."""
    return tuple(
        make_device(
            f"{prefix}-{i}",
            index=draw(st.integers(0, 2)),
            vendor=draw(mostly(NVIDIA.name, OTHER.name)),
            slots=draw(mostly(10, 0, 1, 2)),
            memory=draw(mostly(4000, 0, 1000, 2000)),
            cores=draw(mostly(100, 0, 200)),
            model=draw(st.sampled_from(MODELS)),
            numa=draw(st.integers(0, 2)),
            mode=draw(mostly("hami-core", "mig", "mps", "")),
            healthy=draw(mostly(True, False)),
        )
        for i in range(draw(mostly(max_size, *range(max_size))))
    )


charges = st.builds(
    Charge,
    slots=mostly(1, 0, 2),
    memory=mostly(100, 0, 1000, 4000),
    cores=mostly(10, 0, 50, 100),
)


@st.composite
def device_requests(draw: st.DrawFn, vendor: VendorName = NVIDIA.name) -> DeviceRequest:
    """One container's demand of one vendor."""
    memory = draw(mostly(100, 0, 500, 1000, 2500))
    percent = 0 if memory else draw(st.sampled_from([10, 33, 50, 100]))
    return DeviceRequest(
        vendor=vendor,
        count=draw(mostly(1, 2, 3)),
        memory=MiB(memory),
        memory_percent=Percent(percent),
        cores=Percent(draw(mostly(10, 0, 30, 100))),
    )


@st.composite
def container_requests(draw: st.DrawFn, role: Role) -> ContainerRequest:
    """A container that asks for nothing, one vendor's devices, or two vendors'."""
    vendors = draw(mostly((NVIDIA.name,), (), (OTHER.name,), (NVIDIA.name, OTHER.name)))
    return ContainerRequest(
        name=draw(st.sampled_from(["a", "b"])),
        role=role,
        requests=tuple(draw(device_requests(vendor)) for vendor in vendors),
    )


init_roles = st.lists(st.sampled_from([Role.INIT, Role.SIDECAR]), max_size=3)


@st.composite
def pod_roles(draw: st.DrawFn) -> tuple[Role, ...]:
    """Roles in container order: init containers and sidecars mixed, then app containers."""
    return (*draw(init_roles), *[Role.APP] * draw(st.integers(0, 3)))


selections = st.builds(
    Selection,
    use_types=st.sampled_from([(), (), ("A100",), ("T4", "H100"), ("NOTHING",)]),
    avoid_types=st.sampled_from([(), (), ("T4",)]),
    use_uuids=st.sampled_from([frozenset[str](), frozenset({"GPU-0", "GPU-1"}), frozenset({"x"})]),
    avoid_uuids=st.sampled_from([frozenset[str](), frozenset({"GPU-0"})]),
    modes=st.sampled_from(["", "", "hami-core", "hami-core,mps", "mig"]),
)


DEVICE_POLICIES = (
    "binpack",
    "spread",
    "mutex",
    "numa",
    "numa,binpack",
    "spread,numa",
    "mutex,numa",
)


@st.composite
def pod_requests(draw: st.DrawFn) -> PodRequest:
    """A pod of up to six containers, with every policy and selection."""
    selection = draw(selections) if draw(mostly(False, True)) else Selection()
    selection = replace(selection, numa_bind=draw(st.booleans()))
    return PodRequest(
        containers=tuple(draw(container_requests(role)) for role in draw(pod_roles())),
        node_policy=draw(st.sampled_from(NodePolicy)),
        device_policy=DevicePolicy.parse(draw(st.sampled_from(DEVICE_POLICIES))),
        weights=draw(st.sampled_from([Weights(), Weights(memory=3), Weights(slots=0, cores=2)])),
        selections=() if selection == Selection() else ((NVIDIA.name, selection),),
    )


small_shares: st.SearchStrategy[ContainerDevice] = st.builds(
    given,
    st.sampled_from(["GPU-0", "GPU-1", "GPU-2"]),
    memory=st.sampled_from([0, 100, 3000]),
    cores=st.sampled_from([0, 10, 100]),
)
"""Shares of few devices, so that containers meet on them."""
small_containers: st.SearchStrategy[Containers] = st.lists(
    st.lists(small_shares, max_size=3).map(tuple), max_size=6
).map(tuple)
