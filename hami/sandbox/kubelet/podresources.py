"""The pod-resources API of one node: which container holds which devices.

Protocol: pod resources API v1 (``hami/nodeagent/proto/podresources.proto``). Answers come from the
device manager's book and the pods that are active now. As from the kubelet, every device is an
entry of its own (one a NUMA node where it has any), and init containers are not listed unless they
go on running.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from hami.nodeagent.proto.deviceplugin_pb2 import Device
from hami.nodeagent.proto.podresources_pb2 import (
    AllocatableResourcesRequest,
    AllocatableResourcesResponse,
    ContainerDevices,
    ContainerResources,
    GetPodResourcesRequest,
    GetPodResourcesResponse,
    ListPodResourcesRequest,
    ListPodResourcesResponse,
    NUMANode,
    PodResources,
    TopologyInfo,
)
from hami.nodeagent.proto.podresources_pb2_grpc import (
    PodResourcesListerServicer,
    add_PodResourcesListerServicer_to_server,
)
from hami.sandbox.kubelet.book import DeviceBook
from hami.sandbox.kubelet.objects import Pod
from hami.sandbox.kubelet.plugins import serve_unix

SOCKET: Final = "kubelet.sock"


class PodResourcesServer(PodResourcesListerServicer):
    """Answers who has what."""

    def __init__(
        self, directory: Path, *, book: Callable[[], DeviceBook], pods: Callable[[], list[Pod]]
    ) -> None:
        """Serve nothing yet.

        Args:
            directory: Where the socket is made.
            book: The book of devices as it is now.
            pods: The active pods as they are now.
        """
        self._directory = directory
        self._book = book
        self._pods = pods
        self._server: grpc.aio.Server | None = None

    @property
    def socket(self) -> Path:
        """Where it is served."""
        return self._directory / SOCKET

    async def start(self) -> None:
        """Serve.

        Raises:
            SandboxError: The socket cannot be made.
        """
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o750)
        self._server = await serve_unix(
            self.socket, partial(add_PodResourcesListerServicer_to_server, self)
        )

    async def stop(self) -> None:
        """Stop serving."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)
            self.socket.unlink(missing_ok=True)

    async def List(  # noqa: N802 - the protocol's name
        self,
        request: ListPodResourcesRequest,
        context: grpc.aio.ServicerContext[ListPodResourcesRequest, ListPodResourcesResponse],
    ) -> ListPodResourcesResponse:
        """All active pods."""
        return ListPodResourcesResponse(pod_resources=[self._of(pod) for pod in self._pods()])

    async def GetAllocatableResources(  # noqa: N802 - the protocol's name
        self,
        request: AllocatableResourcesRequest,
        context: grpc.aio.ServicerContext[
            AllocatableResourcesRequest, AllocatableResourcesResponse
        ],
    ) -> AllocatableResourcesResponse:
        """All healthy devices, whoever holds them."""
        book = self._book()
        entries = [
            entry
            for resource in book.registered()
            for device_id, device in sorted(book.healthy(resource).items())
            for entry in _entries(resource, device_id, device)
        ]
        return AllocatableResourcesResponse(devices=entries)

    async def Get(  # noqa: N802 - the protocol's name
        self,
        request: GetPodResourcesRequest,
        context: grpc.aio.ServicerContext[GetPodResourcesRequest, GetPodResourcesResponse],
    ) -> GetPodResourcesResponse:
        """One pod."""
        key = f"{request.pod_namespace}/{request.pod_name}"
        pod = next((pod for pod in self._pods() if pod.key == key), None)
        if pod is None:
            await context.abort(
                grpc.StatusCode.UNKNOWN,
                f"pod {request.pod_name} in namespace {request.pod_namespace} not found",
            )
        assert pod is not None  # abort() raises
        return GetPodResourcesResponse(pod_resources=self._of(pod))

    def _of(self, pod: Pod) -> PodResources:
        sidecars = [init for init in pod.spec.init_containers or () if init.is_sidecar]
        containers = [*sidecars, *(pod.spec.containers or ())]
        return PodResources(
            name=pod.metadata.name,
            namespace=pod.metadata.namespace,
            containers=[
                ContainerResources(name=name, devices=self._devices(pod.uid, name))
                for name in (container.name for container in containers)
            ],
        )

    def _devices(self, pod_uid: str, container: str) -> list[ContainerDevices]:
        book = self._book()
        return [
            entry
            for holding in book.held_by(pod_uid, container)
            for device_id in holding.devices
            for entry in _entries(
                holding.resource, device_id, book.device(holding.resource, device_id)
            )
        ]


def _entries(resource: str, device_id: str, device: Device | None) -> Iterator[ContainerDevices]:
    nodes = [node.ID for node in device.topology.nodes] if device is not None else []
    if not nodes:
        yield ContainerDevices(resource_name=resource, device_ids=[device_id])
    for node in nodes:
        yield ContainerDevices(
            resource_name=resource,
            device_ids=[device_id],
            topology=TopologyInfo(nodes=[NUMANode(ID=node)]),
        )
