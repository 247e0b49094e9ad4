"""The kubelet's device-plugin protocol, v1beta1, as a gRPC service: messages in, messages out.

Knows the wire and nothing else: what to answer comes from ``allocator`` and ``identity``, the
devices from ``inventory``. Every stream of ListAndWatch gets the full list at once and again after
each change. An error of ours becomes a gRPC status with its message, which the kubelet shows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Any, Final, TypeVar

import grpc

from hami.core.device import Device
from hami.errors import HamiError
from hami.logs import get_logger
from hami.nodeagent.allocate import Grant
from hami.nodeagent.allocator import Allocator
from hami.nodeagent.identity import IdentityCheck
from hami.nodeagent.inventory import Inventory
from hami.nodeagent.proto import deviceplugin_pb2 as messages
from hami.nodeagent.proto import deviceplugin_pb2_grpc as services

log = get_logger(__name__)

T = TypeVar("T")

VERSION: Final = "v1beta1"
HEALTHY: Final = "Healthy"
UNHEALTHY: Final = "Unhealthy"

Context = grpc.aio.ServicerContext[Any, Any]


def options() -> messages.DevicePluginOptions:
    """What this plugin wants to be asked."""
    return messages.DevicePluginOptions(
        pre_start_required=True, get_preferred_allocation_available=True
    )


class DevicePlugin(services.DevicePluginServicer):
    """The service that the kubelet dials back to."""

    def __init__(
        self, *, inventory: Inventory, allocator: Allocator, identity: IdentityCheck
    ) -> None:
        self._inventory = inventory
        self._allocator = allocator
        self._identity = identity
        self.streams = 0
        """How many kubelets listen to the devices now: one, unless it restarts."""

    async def GetDevicePluginOptions(  # noqa: N802 - the protocol's name
        self, request: messages.Empty, context: Context
    ) -> messages.DevicePluginOptions:
        """Tell what to ask."""
        del request, context
        return options()

    async def ListAndWatch(  # noqa: N802 - the protocol's name
        self, request: messages.Empty, context: Context
    ) -> AsyncIterator[messages.ListAndWatchResponse]:
        """Tell every state of the devices, from now on."""
        del request, context
        self.streams += 1
        log.info("device_stream_opened", streams=self.streams)
        try:
            while True:
                version = self._inventory.version
                yield list_devices(self._inventory.devices)
                await self._inventory.newer_than(version)
        finally:
            self.streams -= 1
            log.info("device_stream_closed", streams=self.streams)

    async def GetPreferredAllocation(  # noqa: N802 - the protocol's name
        self, request: messages.PreferredAllocationRequest, context: Context
    ) -> messages.PreferredAllocationResponse:
        """Tell which ids stand for the devices of the pod in line; an empty answer is: any."""
        answers = [
            await _answered(
                self._allocator.preferred(
                    frozenset(wanted.available_deviceIDs),
                    frozenset(wanted.must_include_deviceIDs),
                    size=wanted.allocation_size,
                ),
                context,
            )
            for wanted in request.container_requests
        ]
        return messages.PreferredAllocationResponse(
            container_responses=[
                messages.ContainerPreferredAllocationResponse(deviceIDs=ids) for ids in answers
            ]
        )

    async def Allocate(  # noqa: N802 - the protocol's name
        self, request: messages.AllocateRequest, context: Context
    ) -> messages.AllocateResponse:
        """Tell what each container gets with its devices; an error fails the pod."""
        grants = [
            await _answered(self._allocator.allocate(list(wanted.devices_ids)), context)
            for wanted in request.container_requests
        ]
        return messages.AllocateResponse(container_responses=[_encode(g) for g in grants])

    async def PreStartContainer(  # noqa: N802 - the protocol's name
        self, request: messages.PreStartContainerRequest, context: Context
    ) -> messages.PreStartContainerResponse:
        """Let the container start, unless it is not the one its devices were prepared for."""
        await _answered(self._identity.check(list(request.devices_ids)), context)
        return messages.PreStartContainerResponse()


def list_devices(devices: tuple[Device, ...]) -> messages.ListAndWatchResponse:
    """Every device as many times as it may be shared, with ids ``<uuid>-<number>``."""
    return messages.ListAndWatchResponse(
        devices=[
            messages.Device(
                ID=f"{device.uuid}-{number}",
                health=HEALTHY if device.healthy else UNHEALTHY,
                topology=messages.TopologyInfo(nodes=[messages.NUMANode(ID=device.numa)]),
            )
            for device in devices
            for number in range(device.slots)
        ]
    )


def _encode(grant: Grant) -> messages.ContainerAllocateResponse:
    return messages.ContainerAllocateResponse(
        envs=dict(grant.envs),
        mounts=[
            messages.Mount(
                host_path=mount.host_path,
                container_path=mount.container_path,
                read_only=mount.read_only,
            )
            for mount in grant.mounts
        ],
    )


async def _answered(answer: Awaitable[T], context: Context) -> T:
    """The answer; one of our errors ends the call with its message instead."""
    try:
        return await answer
    except HamiError as error:
        log.warning("kubelet_refused", error=str(error))
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        raise
