"""A small device plugin, as any vendor might write it: what the kubelet stand-in is tested with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import grpc
import grpc.aio

from hami.nodeagent.proto.deviceplugin_pb2 import (
    AllocateResponse,
    ContainerAllocateResponse,
    ContainerPreferredAllocationResponse,
    Device,
    DevicePluginOptions,
    Empty,
    ListAndWatchResponse,
    PreferredAllocationResponse,
    PreStartContainerResponse,
    RegisterRequest,
)
from hami.nodeagent.proto.deviceplugin_pb2_grpc import (
    DevicePluginServicer,
    RegistrationStub,
    add_DevicePluginServicer_to_server,
)
from tests.support.kube import SOON

RESOURCE = "example.com/card"


class DevicePlugin(DevicePluginServicer):
    """Serves one resource; remembers what it was asked."""

    def __init__(
        self,
        directory: Path,
        devices: list[str],
        *,
        resource: str = RESOURCE,
        preferred: Callable[[Any], list[str]] | None = None,
        pre_start: bool = False,
        numa: dict[str, int] | None = None,
    ) -> None:
        self.directory = directory
        self.resource = resource
        self.health = dict.fromkeys(devices, "Healthy")
        self.preferred = preferred
        self.numa = numa or {}
        self.options = DevicePluginOptions(
            get_preferred_allocation_available=preferred is not None,
            pre_start_required=pre_start,
        )
        self.response = ContainerAllocateResponse()
        self.refusal: str | None = None
        self.start_refusal: str | None = None
        self._released: anyio.Event | None = None
        self.asked = anyio.Event()
        self.allocations: list[list[str]] = []
        self.preferences: list[Any] = []
        self.starts: list[list[str]] = []
        self._changed = anyio.Event()
        self._closed = anyio.Event()

    @property
    def socket(self) -> Path:
        return self.directory / f"{self.resource.replace('/', '-')}.sock"

    def set_health(self, device: str, health: str) -> None:
        self.health[device] = health
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def hold_allocations(self) -> None:
        """Answer no Allocate until ``release_allocations``."""
        self._released = anyio.Event()

    def release_allocations(self) -> None:
        assert self._released is not None
        self._released.set()

    @asynccontextmanager
    async def serving(self, *, register: bool = True) -> AsyncIterator[DevicePlugin]:
        self.socket.unlink(missing_ok=True)
        self._closed = anyio.Event()
        server = grpc.aio.server()
        add_DevicePluginServicer_to_server(self, server)  # type: ignore[no-untyped-call]
        server.add_insecure_port(f"unix:{self.socket}")
        await server.start()
        try:
            if register:
                await self.register()
            yield self
        finally:
            with anyio.CancelScope(shield=True):
                self._closed.set()
                await server.stop(None)

    async def register(self, **changes: Any) -> None:
        request = RegisterRequest(
            version="v1beta1",
            endpoint=self.socket.name,
            resource_name=self.resource,
            options=self.options,
        )
        for name, value in changes.items():
            setattr(request, name, value)
        options = (("grpc.use_local_subchannel_pool", 1),)
        address = f"unix:{self.directory / 'kubelet.sock'}"
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            stub = RegistrationStub(channel)  # type: ignore[no-untyped-call]
            await stub.Register(request, timeout=SOON)

    async def GetDevicePluginOptions(self, request: Any, context: Any) -> DevicePluginOptions:  # noqa: N802
        return self.options

    async def ListAndWatch(self, request: Empty, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        while not self._closed.is_set():
            changed = self._changed
            yield ListAndWatchResponse(
                devices=[self._device(name, health) for name, health in self.health.items()]
            )
            await changed.wait()

    def _device(self, name: str, health: str) -> Device:
        device = Device(ID=name, health=health)
        if name in self.numa:
            device.topology.nodes.add(ID=self.numa[name])
        return device

    async def GetPreferredAllocation(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.preferences.extend(request.container_requests)
        assert self.preferred is not None
        answers = [self.preferred(each) for each in request.container_requests]
        return PreferredAllocationResponse(
            container_responses=[
                ContainerPreferredAllocationResponse(deviceIDs=answer) for answer in answers
            ]
        )

    async def Allocate(self, request: Any, context: Any) -> AllocateResponse:  # noqa: N802
        self.allocations.extend(list(each.devices_ids) for each in request.container_requests)
        self.asked.set()
        if self._released is not None:
            await self._released.wait()
        if self.refusal is not None:
            await context.abort(grpc.StatusCode.UNKNOWN, self.refusal)
        return AllocateResponse(container_responses=[self.response])

    async def PreStartContainer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.starts.append(list(request.devices_ids))
        if self.start_refusal is not None:
            await context.abort(grpc.StatusCode.UNKNOWN, self.start_refusal)
        return PreStartContainerResponse()
