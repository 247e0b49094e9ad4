"""The kubelet's side of the device-plugin protocol: the registration socket and the way back.

Owns the gRPC connections. Knows nothing of pods; what plugins say goes to whom it is given.
Protocol: device plugin API v1beta1 (``hami/nodeagent/proto/deviceplugin.proto``).
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, cast

import anyio
import anyio.lowlevel
import grpc
import grpc.aio
from anyio.abc import TaskGroup

from hami.errors import SandboxError
from hami.logs import get_logger
from hami.nodeagent.proto.deviceplugin_pb2 import (
    AllocateRequest,
    ContainerAllocateRequest,
    ContainerAllocateResponse,
    ContainerPreferredAllocationRequest,
    Device,
    DevicePluginOptions,
    Empty,
    ListAndWatchResponse,
    PreferredAllocationRequest,
    PreStartContainerRequest,
    RegisterRequest,
)
from hami.nodeagent.proto.deviceplugin_pb2_grpc import (
    DevicePluginStub,
    RegistrationServicer,
    add_RegistrationServicer_to_server,
)
from hami.sandbox.kubelet.settings import MAX_SOCKET_PATH, KubeletSettings

log = get_logger(__name__)

VERSION: Final = "v1beta1"
SOCKET: Final = "kubelet.sock"
MAX_MESSAGE_BYTES: Final = 16 * 2**20
STOP_SECONDS: Final = 5.0
END: Final = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs lack it

_NAME: Final = re.compile(
    r"(?=[^/]{1,253}/)[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?",
    re.ASCII,
)
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),
)
T = TypeVar("T")


def is_extended_resource(name: str) -> bool:
    """Whether the name is one that device plugins may serve: a domain that is not Kubernetes'."""
    domain = name.partition("/")[0]
    return (
        _NAME.fullmatch(name) is not None
        and domain != "kubernetes.io"
        and not domain.endswith(".kubernetes.io")
        and not name.startswith("requests.")
    )


class PluginError(SandboxError):
    """A plugin's answer to a call; the message is what the kubelet would have said."""


class PluginEvents(Protocol):
    """Who wants to know about plugins."""

    def plugin_connected(self, endpoint: PluginEndpoint) -> None:
        """It registered and was reached; an earlier one of its resource is replaced."""

    def plugin_reported(self, endpoint: PluginEndpoint, devices: Sequence[Device]) -> None:
        """It sent its devices, all of them."""

    def plugin_disconnected(self, endpoint: PluginEndpoint) -> None:
        """It can no longer be heard."""


class PluginEndpoint:
    """One registered plugin."""

    def __init__(self, resource: str, socket: Path, settings: KubeletSettings) -> None:
        self.resource = resource
        self.options = DevicePluginOptions()
        self._settings = settings
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=_OPTIONS)
        self._stub = DevicePluginStub(self._channel)  # type: ignore[no-untyped-call]
        self._scope = anyio.CancelScope()

    async def connect(self) -> None:
        """Reach the plugin and learn its options.

        Raises:
            PluginError: It does not answer in time, or refuses.
        """
        seconds = self._settings.plugin_dial_seconds
        try:
            with anyio.fail_after(seconds):
                await _answer(self._channel.channel_ready())
        except TimeoutError as error:
            raise PluginError(f"failed to dial device plugin after {seconds:.0f} s") from error
        self.options = await self._call(
            "GetDevicePluginOptions", self._stub.GetDevicePluginOptions, Empty(), seconds=seconds
        )

    async def follow(self, events: PluginEvents) -> None:
        """Pass on what the plugin sends until it goes away or ``stop`` is called."""
        with self._scope:
            stream = self._stub.ListAndWatch(Empty())
            try:
                while (response := await _answer(stream.read())) is not END:
                    events.plugin_reported(self, cast(ListAndWatchResponse, response).devices)
            except PluginError as error:
                log.info("device_plugin_lost", resource=self.resource, error=str(error))
            finally:
                stream.cancel()
        await self.close()
        events.plugin_disconnected(self)

    def stop(self) -> None:
        """Hang up."""
        self._scope.cancel()

    async def close(self) -> None:
        """Hang up on a plugin that is not followed."""
        with anyio.move_on_after(STOP_SECONDS, shield=True):
            await self._channel.close(None)

    async def prefer(
        self, *, available: Sequence[str], must_include: Sequence[str], size: int
    ) -> set[str]:
        """Which devices the plugin would rather see together; empty if it does not say.

        Raises:
            PluginError: It refuses.
        """
        request = PreferredAllocationRequest(
            container_requests=[
                ContainerPreferredAllocationRequest(
                    available_deviceIDs=available,
                    must_include_deviceIDs=must_include,
                    allocation_size=size,
                )
            ]
        )
        seconds = self._settings.plugin_call_seconds
        try:
            response = await self._call(
                "GetPreferredAllocation",
                self._stub.GetPreferredAllocation,
                request,
                seconds=seconds,
            )
        except PluginError as error:
            raise PluginError(
                f"device plugin GetPreferredAllocation rpc failed with err: {error}"
            ) from error
        answers = response.container_responses
        return set(answers[0].deviceIDs) if answers else set()

    async def allocate(self, devices: Sequence[str]) -> ContainerAllocateResponse:
        """Tell the plugin that a container gets these devices; what the container needs for that.

        Raises:
            PluginError: It refuses, or answers for no container.
        """
        request = AllocateRequest(
            container_requests=[ContainerAllocateRequest(devices_ids=devices)]
        )
        seconds = self._settings.plugin_call_seconds
        response = await self._call("Allocate", self._stub.Allocate, request, seconds=seconds)
        if not response.container_responses:
            raise PluginError("no containers return in allocation response")
        return cast(ContainerAllocateResponse, response.container_responses[0])

    async def pre_start(self, devices: Sequence[str]) -> None:
        """Tell the plugin that the container with these devices is about to start.

        Raises:
            PluginError: It refuses.
        """
        request = PreStartContainerRequest(devices_ids=devices)
        seconds = self._settings.pre_start_seconds
        try:
            await self._call(
                "PreStartContainer", self._stub.PreStartContainer, request, seconds=seconds
            )
        except PluginError as error:
            raise PluginError(
                f"device plugin PreStartContainer rpc failed with err: {error}"
            ) from error

    async def _call(
        self,
        what: str,
        method: Callable[..., Awaitable[Any]],
        request: object,
        *,
        seconds: float,
    ) -> Any:  # noqa: ANN401 - the method's own answer
        try:
            return await _answer(method(request, timeout=seconds))
        except (PluginError, grpc.aio.UsageError) as error:
            log.warning(
                "device_plugin_refused", call=what, resource=self.resource, error=str(error)
            )
            if isinstance(error, PluginError):
                raise
            # hung up between the endpoint's being looked up and this call
            raise PluginError(f"endpoint of {self.resource} is gone: {error}") from error


class PluginServer(RegistrationServicer):
    """The kubelet's registration socket, and the endpoints of who registered."""

    def __init__(self, settings: KubeletSettings, events: PluginEvents, tasks: TaskGroup) -> None:
        """Serve nothing yet.

        Args:
            settings: Where the sockets are, and deadlines.
            events: Who wants to know.
            tasks: Owns the tasks that listen to plugins.
        """
        self._settings = settings
        self._events = events
        self._tasks = tasks
        self._server: grpc.aio.Server | None = None
        self._endpoints: dict[str, PluginEndpoint] = {}

    @property
    def socket(self) -> Path:
        """Where plugins register."""
        return self._settings.plugins / SOCKET

    async def start(self) -> None:
        """Clean the directory as a starting kubelet does, and serve.

        Raises:
            SandboxError: The socket cannot be made.
        """
        self._settings.plugins.mkdir(parents=True, exist_ok=True, mode=0o750)
        for entry in self._settings.plugins.iterdir():
            if entry.is_socket():
                entry.unlink(missing_ok=True)
        self._server = await serve_unix(
            self.socket, partial(add_RegistrationServicer_to_server, self)
        )

    async def stop(self) -> None:
        """Stop serving and hang up on every plugin; their sockets stay where they are."""
        server, self._server = self._server, None
        endpoints, self._endpoints = self._endpoints, {}
        for endpoint in endpoints.values():
            endpoint.stop()
        if server is not None:
            await server.stop(None)

    def endpoint(self, resource: str) -> PluginEndpoint | None:
        """The plugin that serves the resource now."""
        return self._endpoints.get(resource)

    async def Register(  # noqa: N802 - the protocol's name
        self,
        request: RegisterRequest,
        context: grpc.aio.ServicerContext[RegisterRequest, Empty],
    ) -> Empty:
        """A plugin asks to serve a resource: dial it back before answering, as the kubelet does."""
        name = request.resource_name
        log.info("device_plugin_registering", resource=name, endpoint=request.endpoint)
        if request.version != VERSION:
            await context.abort(
                grpc.StatusCode.UNKNOWN,
                f"requested API version {request.version!r} is not supported by kubelet. "
                f"Supported version is [{VERSION!r}]",
            )
        if not is_extended_resource(name):
            await context.abort(grpc.StatusCode.UNKNOWN, f"the ResourceName {name!r} is invalid")
        if not request.endpoint or "/" in request.endpoint:
            await context.abort(
                grpc.StatusCode.UNKNOWN,
                f"endpoint {request.endpoint!r} is not the name of a socket beside the kubelet's",
            )
        server = self._server
        endpoint = PluginEndpoint(name, self._settings.plugins / request.endpoint, self._settings)
        try:
            await endpoint.connect()
        except PluginError as error:
            await endpoint.close()
            await context.abort(grpc.StatusCode.UNKNOWN, str(error))
        if server is None or self._server is not server:
            await endpoint.close()  # the kubelet restarted meanwhile
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the kubelet is stopping")
        self._adopt(endpoint)
        return Empty()

    def _adopt(self, endpoint: PluginEndpoint) -> None:
        old = self._endpoints.get(endpoint.resource)
        self._endpoints[endpoint.resource] = endpoint
        self._events.plugin_connected(endpoint)
        if old is not None:
            old.stop()
        self._tasks.start_soon(
            endpoint.follow, self._events, name=f"device plugin {endpoint.resource}"
        )

    def is_current(self, endpoint: PluginEndpoint) -> bool:
        """Whether this is the one that serves its resource, not one that was replaced."""
        return self._endpoints.get(endpoint.resource) is endpoint


async def serve_unix(socket: Path, add: Callable[[grpc.aio.Server], object]) -> grpc.aio.Server:
    """Serve gRPC on a new unix socket.

    Raises:
        SandboxError: The socket cannot be made there.
    """
    if len(os.fsencode(socket)) > MAX_SOCKET_PATH:
        raise SandboxError(
            f"socket {socket}: expected a path of at most {MAX_SOCKET_PATH} bytes, "
            f"met {len(os.fsencode(socket))}: give the node a shorter directory"
        )
    socket.unlink(missing_ok=True)  # noqa: ASYNC240 - a local file, in microseconds
    server = grpc.aio.server(options=(("grpc.max_send_message_length", MAX_MESSAGE_BYTES),))
    add(server)
    try:
        server.add_insecure_port(f"unix:{socket}")
        await server.start()
    except RuntimeError as error:
        raise SandboxError(f"socket {socket}: {error}") from error
    return server


async def _answer(call: Awaitable[T]) -> T:
    """What the plugin answers.

    gRPC turns a cancellation of the waiting task into a bare ``CancelledError`` of its own, which
    no cancel scope would know as its own: it would end the task.

    Raises:
        PluginError: It refused, or is gone.
    """
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise PluginError(_text(error)) from error
    except asyncio.CancelledError as error:
        await anyio.lowlevel.checkpoint()  # raises in a scope that was cancelled
        raise PluginError("rpc error: code = Canceled desc = the connection was closed") from error


def _text(error: grpc.aio.AioRpcError) -> str:
    """As Go prints it, for messages that users know."""
    words = error.code().name.replace("_", " ").title().replace(" ", "")
    return f"rpc error: code = {words} desc = {error.details() or ''}"
