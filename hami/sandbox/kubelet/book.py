"""Which devices there are and who holds them: the kubelet's device manager without its RPCs.

Pure: no socket, no file, no clock. The rules are those of the kubelet's ``devicemanager``: what a
plugin reports replaces what it reported before; a plugin that goes away makes its devices
unhealthy, and after a grace its resource has no capacity; what a container holds it keeps until its
pod is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from hami.nodeagent.proto.deviceplugin_pb2 import ContainerAllocateResponse, Device

HEALTHY: Final = "Healthy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """The devices of one resource that one container holds, and what the plugin said to them."""

    pod_uid: str
    container: str
    resource: str
    devices: tuple[str, ...]
    response: ContainerAllocateResponse


@dataclass(slots=True, kw_only=True)
class _Resource:
    """One resource that a plugin registered."""

    healthy: dict[str, Device] = field(default_factory=dict)
    unhealthy: dict[str, Device] = field(default_factory=dict)
    lost_at: float | None = None
    """When its plugin went away; None while it is connected."""


class DeviceBook:
    """The devices of one node."""

    def __init__(self, *, grace_seconds: float) -> None:
        """Begin with nothing; devices of a lost plugin stay in the capacity for the grace."""
        self._grace_seconds = grace_seconds
        self._resources: dict[str, _Resource] = {}
        self._removed: set[str] = set()
        self._holdings: dict[tuple[str, str, str], Holding] = {}
        self._reserved: dict[str, set[str]] = {}

    # plugins

    def connect(self, resource: str) -> None:
        """A plugin for the resource is there; what is known of its devices stays until it tells."""
        self._resources.setdefault(resource, _Resource()).lost_at = None
        self._removed.discard(resource)

    def report(self, resource: str, devices: Iterable[Device]) -> None:
        """Replace the resource's devices by what its plugin sent."""
        entry = self._resources.setdefault(resource, _Resource())
        entry.healthy, entry.unhealthy = {}, {}
        for device in devices:
            kind = entry.healthy if device.health == HEALTHY else entry.unhealthy
            kind[device.ID] = device

    def disconnect(self, resource: str, *, now: float) -> None:
        """The plugin went away: none of its devices is healthy any more."""
        entry = self._resources.get(resource)
        if entry is not None and entry.lost_at is None:
            entry.unhealthy |= entry.healthy
            entry.healthy = {}
            entry.lost_at = now

    def restore(
        self, registered: Iterable[str], holdings: Iterable[Holding], *, now: float
    ) -> None:
        """Take over a checkpoint: resources without devices until their plugins are back."""
        for resource in registered:
            self._resources[resource] = _Resource(lost_at=now)
        for holding in holdings:
            self.hold(holding)

    def expire(self, *, now: float) -> list[str]:
        """Forget the resources whose plugins have been away for longer than the grace."""
        expired = [
            resource
            for resource, entry in self._resources.items()
            if entry.lost_at is not None and now - entry.lost_at >= self._grace_seconds
        ]
        for resource in expired:
            del self._resources[resource]
            self._removed.add(resource)
        return expired

    def capacity(self) -> dict[str, int]:
        """All devices by resource; 0 for a resource that is known no longer."""
        return dict.fromkeys(self._removed, 0) | {
            resource: len(entry.healthy) + len(entry.unhealthy)
            for resource, entry in self._resources.items()
        }

    def allocatable(self) -> dict[str, int]:
        """The healthy devices by resource."""
        return dict.fromkeys(self._removed, 0) | {
            resource: len(entry.healthy) for resource, entry in self._resources.items()
        }

    def registered(self) -> dict[str, list[str]]:
        """The healthy device ids by resource, for the checkpoint."""
        return {resource: sorted(entry.healthy) for resource, entry in self._resources.items()}

    def is_managed(self, resource: str) -> bool:
        """Whether a plugin serves the resource, or once gave some of it away."""
        return resource in self._resources or resource in self._reserved

    def is_registered(self, resource: str) -> bool:
        """Whether a plugin for the resource is, or was of late, there."""
        return resource in self._resources

    def healthy(self, resource: str) -> dict[str, Device]:
        """The resource's healthy devices by id."""
        entry = self._resources.get(resource)
        return dict(entry.healthy) if entry else {}

    def device(self, resource: str, device_id: str) -> Device | None:
        """What is known of a device."""
        entry = self._resources.get(resource)
        if entry is None:
            return None
        return entry.healthy.get(device_id) or entry.unhealthy.get(device_id)

    # containers

    def free(self, resource: str) -> set[str]:
        """The healthy devices that nobody holds."""
        return set(self.healthy(resource)) - self._reserved.get(resource, set())

    def in_use(self) -> dict[str, int]:
        """How many devices of each resource are held."""
        return {resource: len(devices) for resource, devices in self._reserved.items()}

    def reserve(self, resource: str, devices: Iterable[str]) -> None:
        """Keep the devices from others while their plugin is asked."""
        self._reserved.setdefault(resource, set()).update(devices)

    def unreserve(self) -> None:
        """Give back what was reserved and is not held."""
        self._reserved = {}
        for holding in self._holdings.values():
            self.reserve(holding.resource, holding.devices)

    def hold(self, holding: Holding) -> None:
        """The container has the devices."""
        self._holdings[(holding.pod_uid, holding.container, holding.resource)] = holding
        self.reserve(holding.resource, holding.devices)

    def holding(self, pod_uid: str, container: str, resource: str) -> Holding | None:
        """What the container holds of the resource."""
        return self._holdings.get((pod_uid, container, resource))

    def held_by(self, pod_uid: str, container: str) -> Iterator[Holding]:
        """Everything the container holds, in the order it was given."""
        for (uid, name, _), holding in self._holdings.items():
            if (uid, name) == (pod_uid, container):
                yield holding

    def holdings(self) -> Collection[Holding]:
        """Everything that is held."""
        return self._holdings.values()

    def keep_only(self, pod_uids: Collection[str]) -> bool:
        """Free what other pods hold; whether there was any."""
        gone = [key for key in self._holdings if key[0] not in pod_uids]
        for key in gone:
            del self._holdings[key]
        if gone:
            self.unreserve()
        return bool(gone)
