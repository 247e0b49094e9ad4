"""Serves the plugin to the kubelet and keeps it registered, whatever the kubelet does.

A restarted kubelet deletes every plugin's socket and makes its own anew. So both sockets are looked
at every second: where either is another than before, the plugin is served and registered again, as
it is when the kubelet has stopped listening without a word. One server at a time; its socket goes
with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Final, NamedTuple, NoReturn

import anyio
import grpc

from hami.config import NodeAgentSettings
from hami.errors import UnavailableError
from hami.kube.backoff import Backoff, Delays
from hami.logs import get_logger
from hami.nodeagent.counters import AgentMetrics
from hami.nodeagent.plugin import VERSION, DevicePlugin, options
from hami.nodeagent.proto import deviceplugin_pb2 as messages
from hami.nodeagent.proto import deviceplugin_pb2_grpc as services
from hami.nodeagent.rpc import answered

log = get_logger(__name__)

KUBELET_SOCKET: Final = "kubelet.sock"
REGISTER_SECONDS: Final = 10.0
STOP_SECONDS: Final = 3.0
BACKOFF: Final = Backoff(base_seconds=0.2, cap_seconds=15.0, reset_after_seconds=60.0)


class _Identity(NamedTuple):
    """Tells one file from another that took its name."""

    device: int
    inode: int
    changed_ns: int


class Registration:
    """One resource's presence with the kubelet."""

    def __init__(
        self,
        plugin: DevicePlugin,
        settings: NodeAgentSettings,
        *,
        resource: str,
        metrics: AgentMetrics,
    ) -> None:
        self._plugin = plugin
        self._settings = settings
        self._resource = resource
        self._metrics = metrics
        directory = Path(settings.kubelet_dir)
        self._kubelet = directory / KUBELET_SOCKET
        self._socket = directory / f"hami-{resource.replace('/', '-')}.sock"
        self.registered = False
        """Whether the kubelet took the last registration and both sockets still stand."""

    async def run(self) -> NoReturn:
        """Serve and stay registered until cancelled."""
        delays = Delays(BACKOFF)
        while True:
            await self._kubelet_is_there()
            try:
                async with self._serving():
                    await self._register()
                    await self._while_unchanged()
            except UnavailableError as error:
                delay = delays.after_failure()
                self._metrics.kubelet_registrations.labels("failed").inc()
                log.warning("kubelet_registration_failed", seconds=delay, error=str(error))
                await anyio.sleep(delay)
            finally:
                self.registered = False

    async def _kubelet_is_there(self) -> None:
        waited = False
        while _identity(self._kubelet) is None:
            if not waited:
                log.info("kubelet_awaited", path=str(self._kubelet))
                waited = True
            await anyio.sleep(self._settings.kubelet_poll_seconds)

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        """The plugin behind its socket.

        Raises:
            UnavailableError: The socket cannot be made.
        """
        server = grpc.aio.server()
        services.add_DevicePluginServicer_to_server(self._plugin, server)  # type: ignore[no-untyped-call] # generated
        try:
            server.add_insecure_port(f"unix:{self._socket}")
            await server.start()
        except (RuntimeError, OSError) as error:
            raise UnavailableError(f"serving at {self._socket}: {error}") from error
        try:
            yield
        finally:
            with anyio.move_on_after(STOP_SECONDS, shield=True):
                await server.stop(grace=0)
            self._socket.unlink(missing_ok=True)

    async def _register(self) -> None:
        """Tell the kubelet where the plugin is.

        Raises:
            UnavailableError: The kubelet does not answer, or refuses.
        """
        request = messages.RegisterRequest(
            version=VERSION,
            endpoint=self._socket.name,
            resource_name=self._resource,
            options=options(),
        )
        async with grpc.aio.insecure_channel(f"unix:{self._kubelet}") as channel:
            stub = services.RegistrationStub(channel)  # type: ignore[no-untyped-call] # generated
            await answered(
                stub.Register(request, timeout=REGISTER_SECONDS), f"kubelet at {self._kubelet}"
            )
        self.registered = True
        self._metrics.kubelet_registrations.labels("registered").inc()
        log.info("kubelet_registered", resource=self._resource, endpoint=self._socket.name)

    async def _while_unchanged(self) -> None:
        """Return when the registration cannot hold any more."""
        before = _identity(self._kubelet), _identity(self._socket)
        heard = monotonic()
        while True:
            await anyio.sleep(self._settings.kubelet_poll_seconds)
            if (_identity(self._kubelet), _identity(self._socket)) != before:
                log.info("kubelet_restarted", path=str(self._kubelet))
                return
            if self._plugin.streams:
                heard = monotonic()
            if monotonic() - heard > self._settings.kubelet_silence_seconds:
                log.warning("kubelet_not_listening", seconds=monotonic() - heard)
                return


def _identity(path: Path) -> _Identity | None:
    try:
        met = path.stat()
    except OSError:
        return None
    return _Identity(met.st_dev, met.st_ino, met.st_ctime_ns)
