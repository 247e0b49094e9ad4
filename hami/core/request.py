"""A pod's demand: from its spec and annotations to a PodRequest.

Every rule about what a resource list means stands here, once: admission, the extender and the
simulator all call ``read_request``. Nothing is guessed: a quantity that cannot be read is an error
that names the container and the resource.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from hami.core import codec
from hami.core.device import (
    ContainerRequest,
    DevicePolicy,
    DeviceRequest,
    NodePolicy,
    PodRequest,
    Role,
    Selection,
    Weights,
)
from hami.core.objects import Container, Pod
from hami.core.quantity import MAX_INT32, MiB, Percent, parse_whole
from hami.core.vendor import Vendor, VendorTable
from hami.errors import CodecError, QuantityError

MAX_DEVICES_PER_CONTAINER: Final = 1024
"""More than any node has; with the next two, a bound on what one pod can make the engine do."""
MAX_CONTAINERS: Final = 128
"""Of a pod that asks for devices; each container that asks is a look at every node."""
MAX_LISTED: Final = 256
"""Items in a list of models or UUIDs; each is compared with every model there is."""
WHOLE: Final = Percent(100)
_WEIGHT: Final = re.compile(r"\d{1,18}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What holds for pods that say nothing."""

    node_policy: NodePolicy = NodePolicy.BINPACK
    device_policy: DevicePolicy = DevicePolicy.SPREAD


def read_request(pod: Pod, vendors: VendorTable, defaults: Defaults) -> PodRequest:
    """What the pod asks for.

    Raises:
        QuantityError: A resource is no whole number or out of range.
        CodecError: The weights cannot be read, or a list or the pod is longer than any in earnest.
    """
    containers = tuple(
        ContainerRequest(
            name=container.name,
            role=role_of(container, among_init=among_init),
            requests=tuple(
                request
                for vendor in vendors.values()
                if (request := read_container(container, vendor)) is not None
            ),
        )
        for container, among_init in pod.containers()
    )
    if not any(container.requests for container in containers):
        return PodRequest(containers=containers)
    if len(containers) > MAX_CONTAINERS:
        raise CodecError(
            f"expected at most {MAX_CONTAINERS} containers in a pod that asks for devices, "
            f"met {len(containers)}"
        )
    annotations = pod.annotations
    asked = {request.vendor for container in containers for request in container.requests}
    return PodRequest(
        containers=containers,
        node_policy=_node_policy(annotations.get(codec.NODE_POLICY_KEY), defaults),
        device_policy=_device_policy(annotations.get(codec.DEVICE_POLICY_KEY), defaults),
        weights=_weights(annotations.get(codec.WEIGHTS_KEY)),
        selections=tuple(
            (name, selection)
            for name in sorted(asked)
            if (selection := _selection(pod, vendors[name])) != Selection()
        ),
    )


def role_of(container: Container, *, among_init: bool) -> Role:
    """When the container runs: an init container that restarts always is a sidecar."""
    if not among_init:
        return Role.APP
    return Role.SIDECAR if container.restart_policy == "Always" else Role.INIT


def roles_of(pod: Pod) -> tuple[Role, ...]:
    """The role of every container, in container order."""
    return tuple(role_of(c, among_init=among_init) for c, among_init in pod.containers())


def asks_for(container: Container, vendor: Vendor) -> bool:
    """Whether devices of the vendor are given to the container.

    For readers of records, to whom a request that cannot be read is none: who wrote the record
    either refused the pod or gave that container nothing.
    """
    try:
        return read_container(container, vendor) is not None
    except QuantityError:
        return False


def read_container(container: Container, vendor: Vendor) -> DeviceRequest | None:
    """What one container asks of one vendor; None if it asks for none of its devices.

    Limits win over requests. Explicit memory wins over a percentage; neither means the vendor's
    default, or the whole device.

    Raises:
        QuantityError: A resource is no whole number or out of range.
    """
    names = vendor.resources
    count = _whole(container, names.count, maximum=MAX_DEVICES_PER_CONTAINER)
    if not count:
        return None
    memory = _whole(container, names.memory, maximum=MAX_INT32 // vendor.memory_factor) or 0
    memory *= vendor.memory_factor
    percent = min(_whole(container, names.memory_percentage) or 0, WHOLE)
    if not memory and not percent:
        memory, percent = vendor.default_memory, 0 if vendor.default_memory else WHOLE
    cores = _whole(container, names.cores)
    return DeviceRequest(
        vendor=vendor.name,
        count=count,
        memory=MiB(memory),
        memory_percent=Percent(0 if memory else percent),
        cores=Percent(min(vendor.default_cores if cores is None else cores, 100)),
        skipped_rules=vendor.skipped_rules,
    )


def _find(container: Container, name: str) -> str | int | float | None:
    resources = container.resources
    if resources is None or not name:
        return None
    for source in (resources.limits, resources.requests):
        if source and name in source:
            return source[name]
    return None


def _whole(container: Container, name: str, *, maximum: int = MAX_INT32) -> int | None:
    value = _find(container, name)
    if value is None:
        return None
    try:
        return parse_whole(value, maximum=maximum)
    except QuantityError as error:
        raise QuantityError(f"container {container.name!r}, {name}: {error}") from error


def _node_policy(text: str | None, defaults: Defaults) -> NodePolicy:
    if text is None:
        return defaults.node_policy
    return NodePolicy.SPREAD if text == NodePolicy.SPREAD else NodePolicy.BINPACK


def _device_policy(text: str | None, defaults: Defaults) -> DevicePolicy:
    return defaults.device_policy if text is None else DevicePolicy.parse(text)


def _weights(text: str | None) -> Weights:
    """Weights in the form ``slot=1,core=1,memory=1``, all three, in any order.

    Raises:
        CodecError: Another form, a negative number, or all zero.
    """
    if text is None:
        return Weights()
    expected = "expected slot=<n>,core=<n>,memory=<n>, whole numbers of which one is above 0"
    found: dict[str, int] = {}
    for part in text.split(","):
        key, equals, number = (piece.strip() for piece in part.partition("="))
        if not equals or key in found or _WEIGHT.fullmatch(number) is None:
            raise CodecError(f"{codec.WEIGHTS_KEY}: {expected}, met {text[:60]!r}")
        found[key] = int(number)
    if set(found) != {"slot", "core", "memory"} or not any(found.values()):
        raise CodecError(f"{codec.WEIGHTS_KEY}: {expected}, met {text[:60]!r}")
    return Weights(slots=found["slot"], cores=found["core"], memory=found["memory"])


def _is_true(text: str | None) -> bool:
    """As on the wire, what is not a truth value counts as false."""
    try:
        return text is not None and codec.parse_bool(text)
    except CodecError:
        return False


def _selection(pod: Pod, vendor: Vendor) -> Selection:
    keys = vendor.selection_keys
    return Selection(
        use_types=tuple(model.upper() for model in _listed(pod, keys.use_type)),
        avoid_types=tuple(model.upper() for model in _listed(pod, keys.avoid_type)),
        use_uuids=frozenset(_listed(pod, keys.use_uuid)),
        avoid_uuids=frozenset(_listed(pod, keys.avoid_uuid)),
        modes=pod.annotations.get(keys.mode, "").strip(),
        numa_bind=_is_true(pod.annotations.get(keys.numa_bind)),
    )


def _listed(pod: Pod, key: str) -> tuple[str, ...]:
    """The items of a list annotation.

    Raises:
        CodecError: They are too many.
    """
    items = codec.split_list(pod.annotations.get(key))
    if len(items) > MAX_LISTED:
        raise CodecError(f"{key}: expected at most {MAX_LISTED} items, met {len(items)}")
    return items
