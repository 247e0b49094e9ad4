"""A kubelet that says what a test tells it to say about who holds which devices."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import grpc
import grpc.aio

from hami.nodeagent.proto.deviceplugin_pb2 import Empty, RegisterRequest
from hami.nodeagent.proto.deviceplugin_pb2_grpc import (
    RegistrationServicer,
    add_RegistrationServicer_to_server,
)
from hami.nodeagent.proto.podresources_pb2 import (
    ContainerDevices,
    ContainerResources,
    ListPodResourcesRequest,
    ListPodResourcesResponse,
    PodResources,
)
from hami.nodeagent.proto.podresources_pb2_grpc import (
    PodResourcesListerServicer,
    add_PodResourcesListerServicer_to_server,
)


class ScriptedKubelet(RegistrationServicer, PodResourcesListerServicer):
    """Takes registrations, never listens to a device, and tells of ``held`` to who asks."""

    def __init__(self) -> None:
        self.registered: list[RegisterRequest] = []
        self.held: dict[tuple[str, str], Sequence[str]] = {}
        """Device ids by names of pod and container, of namespace ``default``."""
        self.silent = False
        """Whether questions end in an error."""

    async def Register(self, request: RegisterRequest, context: Any) -> Empty:  # noqa: N802
        self.registered.append(request)
        return Empty()

    async def List(  # noqa: N802
        self, request: ListPodResourcesRequest, context: Any
    ) -> ListPodResourcesResponse:
        if self.silent:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the kubelet is not itself")
        return ListPodResourcesResponse(
            pod_resources=[
                PodResources(
                    name=pod,
                    namespace="default",
                    containers=[
                        ContainerResources(
                            name=container,
                            # each NUMA node's devices stand apart, as the real kubelet has it
                            devices=[
                                ContainerDevices(resource_name="nvidia.com/gpu", device_ids=[i])
                                for i in ids
                            ],
                        )
                    ],
                )
                for (pod, container), ids in self.held.items()
            ]
        )

    @asynccontextmanager
    async def serving(self, directory: Path) -> AsyncIterator[None]:
        """Both services at ``directory/kubelet.sock``."""
        await anyio.Path(directory).mkdir()
        server = grpc.aio.server()
        add_RegistrationServicer_to_server(self, server)  # type: ignore[no-untyped-call] # generated
        add_PodResourcesListerServicer_to_server(self, server)  # type: ignore[no-untyped-call] # generated
        server.add_insecure_port(f"unix:{directory}/kubelet.sock")
        await server.start()
        try:
            yield
        finally:
            await server.stop(0)
