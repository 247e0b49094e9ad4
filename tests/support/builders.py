"""Keyword factories: say what the test is about, the rest is filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hami.core import codec
from hami.core.allocation import Allocation, ContainerDevice
from hami.core.device import (
    MODE_SHARED,
    ContainerRequest,
    Device,
    DevicePolicy,
    DeviceRequest,
    DeviceUuid,
    NodePolicy,
    PodRequest,
    Role,
    Selection,
    VendorName,
    Weights,
)
from hami.core.objects import (
    Container,
    ContainerState,
    ContainerStateTerminated,
    ContainerStatus,
    Node,
    NodeStatus,
    ObjectMeta,
    Pod,
    PodSpec,
    PodStatus,
    ResourceQuota,
    ResourceQuotaSpec,
    ResourceRequirements,
)
from hami.core.quantity import MiB, Percent
from hami.core.table import DeviceTable
from hami.core.vendor import ResourceNames, Vendor, VendorTable, table
from hami.core.vendors.nvidia import NVIDIA

Quantity = str | int | float

MODEL = "NVIDIA A100-SXM4-40GB"
VENDORS: VendorTable = table([NVIDIA])

OTHER = Vendor(
    name=VendorName("OTHER"),
    resources=ResourceNames(count="other.com/npu", memory="other.com/npumem"),
    register_key="hami.io/node-other-register",
    to_allocate_key="hami.io/other-devices-to-allocate",
    allocated_key="hami.io/other-devices-allocated",
)
"""A second vendor, for what must hold between several."""


def make_device(
    uuid: str = "GPU-0",
    *,
    vendor: str = NVIDIA.name,
    index: int = 0,
    slots: int = 10,
    memory: int = 40_000,
    cores: int = 100,
    model: str = MODEL,
    numa: int = 0,
    mode: str = MODE_SHARED,
    healthy: bool = True,
) -> Device:
    """A healthy, empty, shareable device."""
    return Device(
        uuid=DeviceUuid(uuid),
        vendor=VendorName(vendor),
        index=index,
        slots=slots,
        memory=MiB(memory),
        cores=Percent(cores),
        model=model,
        numa=numa,
        mode=mode,
        healthy=healthy,
    )


def make_devices(count: int, *, prefix: str = "GPU", memory: int = 40_000) -> tuple[Device, ...]:
    """``GPU-0``, ``GPU-1``, … of one model, half of them on each of two NUMA nodes."""
    return tuple(
        make_device(f"{prefix}-{i}", index=i, numa=i * 2 // count, memory=memory)
        for i in range(count)
    )


def make_table(*nodes: Sequence[Device]) -> DeviceTable:
    """A table of ``node-0``, ``node-1``, … with these devices."""
    built = DeviceTable()
    for number, devices in enumerate(nodes):
        built.set_node(f"node-{number}", devices)
    return built


def make_demand(
    count: int = 1,
    *,
    memory: int = 0,
    percent: int = 0,
    cores: int = 0,
    vendor: str = NVIDIA.name,
) -> DeviceRequest:
    """What one container asks of one vendor."""
    return DeviceRequest(
        vendor=VendorName(vendor),
        count=count,
        memory=MiB(memory),
        memory_percent=Percent(percent),
        cores=Percent(cores),
    )


def asking(*requests: DeviceRequest, role: Role = Role.APP, name: str = "main") -> ContainerRequest:
    """A container with these demands."""
    return ContainerRequest(name=name, role=role, requests=requests)


def make_pod_request(
    *containers: ContainerRequest,
    device_policy: DevicePolicy = DevicePolicy.SPREAD,
    node_policy: NodePolicy = NodePolicy.BINPACK,
    numa_bind: bool = False,
    weights: Weights | None = None,
    selection: Selection | None = None,
) -> PodRequest:
    """A pod of these containers."""
    bound = replace(selection or Selection(), numa_bind=numa_bind)
    return PodRequest(
        containers=containers,
        device_policy=device_policy,
        node_policy=node_policy,
        weights=weights or Weights(),
        selections=((NVIDIA.name, bound),) if bound != Selection() else (),
    )


def make_container(
    name: str = "main",
    *,
    limits: Mapping[str, Quantity] | None = None,
    requests: Mapping[str, Quantity] | None = None,
    gpus: Quantity | None = None,
    memory: Quantity | None = None,
    percent: Quantity | None = None,
    cores: Quantity | None = None,
    restart_policy: str | None = None,
) -> Container:
    """A container; ``gpus``, ``memory``, ``percent`` and ``cores`` go into its limits."""
    names = NVIDIA.resources
    asked = {
        names.count: gpus,
        names.memory: memory,
        names.memory_percentage: percent,
        names.cores: cores,
    }
    full = {**(limits or {}), **{key: v for key, v in asked.items() if v is not None}}
    return Container(
        name=name,
        resources=ResourceRequirements(limits=full or None, requests=dict(requests or {}) or None),
        restart_policy=restart_policy,
    )


def make_pod(
    name: str = "pod",
    *,
    namespace: str = "default",
    uid: str | None = None,
    containers: Sequence[Container] | None = None,
    init_containers: Sequence[Container] = (),
    annotations: Mapping[str, str] | None = None,
    node: str | None = None,
    ended_init: Mapping[str, int] | None = None,
    gpus: Quantity | None = 1,
    memory: Quantity | None = None,
    percent: Quantity | None = None,
    cores: Quantity | None = None,
) -> Pod:
    """A pod; without ``containers`` it has one that asks for ``gpus`` and so on.

    ``ended_init`` maps init containers that have ended to their exit codes.
    """
    if containers is None:
        containers = [make_container(gpus=gpus, memory=memory, percent=percent, cores=cores)]
    statuses = [
        ContainerStatus(
            name=container,
            state=ContainerState(terminated=ContainerStateTerminated(exit_code=code)),
        )
        for container, code in (ended_init or {}).items()
    ]
    return Pod(
        metadata=ObjectMeta(
            name=name,
            namespace=namespace,
            uid=f"uid-{name}" if uid is None else uid,
            annotations=dict(annotations or {}) or None,
        ),
        spec=PodSpec(
            node_name=node,
            init_containers=list(init_containers) or None,
            containers=list(containers),
        ),
        status=PodStatus(phase="Pending", init_container_statuses=statuses or None),
    )


def make_node(
    name: str = "node-0",
    *,
    devices: Sequence[Device] = (),
    annotations: Mapping[str, str] | None = None,
    allocatable: int | None = None,
) -> Node:
    """A node that registered these devices; ``allocatable`` defaults to their slots."""
    registered = {NVIDIA.register_key: codec.encode_register(devices)} if devices else {}
    total = sum(d.slots for d in devices) if allocatable is None else allocatable
    return Node(
        metadata=ObjectMeta(
            name=name, uid=f"uid-{name}", annotations=registered | dict(annotations or {})
        ),
        status=NodeStatus(
            allocatable={NVIDIA.resources.count: str(total)},
        ),
    )


def make_quota(
    name: str = "gpus",
    *,
    namespace: str = "default",
    memory: Quantity | None = None,
    cores: Quantity | None = None,
    hard: Mapping[str, Quantity] | None = None,
) -> ResourceQuota:
    """A quota of ``memory`` and ``cores`` of the first vendor, and of other keys as they are."""
    names = NVIDIA.resources
    asked = {f"limits.{names.memory}": memory, f"limits.{names.cores}": cores, **(hard or {})}
    return ResourceQuota(
        metadata=ObjectMeta(name=name, namespace=namespace, uid=f"uid-{name}"),
        spec=ResourceQuotaSpec(
            hard={key: value for key, value in asked.items() if value is not None}
        ),
    )


def given(
    uuid: str, *, memory: int = 1000, cores: int = 0, vendor: str = NVIDIA.name
) -> ContainerDevice:
    """One device, or a share of it, given to a container."""
    return ContainerDevice(
        uuid=DeviceUuid(uuid),
        vendor=VendorName(vendor),
        memory=MiB(memory),
        cores=Percent(cores),
    )


def make_allocation(
    *containers: Sequence[ContainerDevice],
    uid: str = "uid-pod",
    namespace: str = "default",
    node: str = "node-0",
    roles: Sequence[Role] | None = None,
) -> Allocation:
    """The allocation of a pod of these containers, app containers unless ``roles`` says else."""
    return Allocation(
        uid=uid,
        namespace=namespace,
        name=uid.removeprefix("uid-"),
        node=node,
        containers=tuple(tuple(devices) for devices in containers),
        roles=tuple(roles) if roles is not None else (Role.APP,) * len(containers),
    )
