"""The device manager: gives containers their devices, with the plugins' consent.

Joins the book (who has what), the plugins (RPCs) and the checkpoint (what survives). The order of
checks and the messages are the kubelet's, since both are what users and other programs meet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anyio.abc import TaskGroup

from hami.core.quantity import parse_whole
from hami.errors import CodecError, QuantityError, SandboxError
from hami.logs import get_logger
from hami.nodeagent.proto.deviceplugin_pb2 import ContainerAllocateResponse, Device
from hami.sandbox.kubelet import checkpoint
from hami.sandbox.kubelet.book import DeviceBook, Holding
from hami.sandbox.kubelet.objects import Container, Pod
from hami.sandbox.kubelet.plugins import PluginEndpoint, PluginError, PluginServer
from hami.sandbox.kubelet.settings import KubeletSettings
from hami.sandbox.runtime import Mount

log = get_logger(__name__)

MAX_DEVICES = 1_000_000


class AllocationError(SandboxError):
    """The container cannot have its devices; the message is the kubelet's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the plugins' answers add to a container."""

    env: dict[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()


class DeviceManager:
    """The devices of one node and its plugins."""

    def __init__(
        self,
        settings: KubeletSettings,
        *,
        tasks: TaskGroup,
        on_change: Callable[[], None],
        is_running: Callable[[str, str], bool],
    ) -> None:
        """Begin with nothing; ``start`` restores and serves.

        Args:
            settings: Directories and deadlines.
            tasks: Owns the tasks that listen to plugins.
            on_change: Called when capacity may have changed.
            is_running: Whether the container (by pod uid and name) runs already.
        """
        self._settings = settings
        self._plugins = PluginServer(settings, self, tasks)
        self._book = DeviceBook(grace_seconds=settings.endpoint_grace_seconds)
        self._on_change = on_change
        self._is_running = is_running
        self._reusable: tuple[str, dict[str, set[str]]] = ("", {})

    @property
    def book(self) -> DeviceBook:
        """Who has what."""
        return self._book

    @property
    def _checkpoint(self) -> Path:
        return self._settings.plugins / checkpoint.FILE_NAME

    async def start(self) -> None:
        """Restore the checkpoint and serve, as a starting kubelet does."""
        self._book = DeviceBook(grace_seconds=self._settings.endpoint_grace_seconds)
        try:
            registered, holdings = checkpoint.read(self._checkpoint)
        except CodecError as error:
            log.warning("checkpoint_unreadable", node=self._settings.node_name, error=str(error))
        else:
            self._book.restore(registered, holdings, now=time.monotonic())
        await self._plugins.start()
        self._on_change()

    async def stop(self) -> None:
        """Hang up on plugins and stop serving."""
        await self._plugins.stop()

    def expire(self) -> None:
        """Forget the resources of plugins that have been away for too long."""
        expired = self._book.expire(now=time.monotonic())
        if expired:
            log.info("device_plugin_expired", node=self._settings.node_name, resource=expired)
            self._write()
            self._on_change()

    def free_all_but(self, pod_uids: Collection[str]) -> None:
        """Free the devices of all other pods."""
        if self._book.keep_only(pod_uids):
            self._write()

    # what plugins say

    def plugin_connected(self, endpoint: PluginEndpoint) -> None:
        """A plugin registered; see ``PluginEvents``."""
        self._book.connect(endpoint.resource)

    def plugin_reported(self, endpoint: PluginEndpoint, devices: Sequence[Device]) -> None:
        """A plugin sent its devices."""
        if self._plugins.is_current(endpoint):
            self._book.report(endpoint.resource, devices)
            self._write()
            self._on_change()

    def plugin_disconnected(self, endpoint: PluginEndpoint) -> None:
        """A plugin went away, unless another took its place already."""
        if self._plugins.is_current(endpoint):
            self._book.disconnect(endpoint.resource, now=time.monotonic())
            self._on_change()

    # what containers need

    async def allocate(self, pod: Pod, container: Container) -> None:
        """Give one container its devices; containers come in the order of admission.

        Devices that an init container had are used again by those after it.

        Raises:
            AllocationError: It cannot have them.
        """
        uid, reusable = self._reusable
        if uid != pod.uid:
            reusable = {}
            self._reusable = (pod.uid, reusable)
        await self._allocate(pod, container, reusable)
        is_init = container.name in {init.name for init in pod.spec.init_containers or ()}
        for holding in self._book.held_by(pod.uid, container.name):
            devices = reusable.setdefault(holding.resource, set())
            if is_init and not container.is_sidecar:
                devices.update(holding.devices)
            else:
                devices.difference_update(holding.devices)

    async def _allocate(
        self, pod: Pod, container: Container, reusable: dict[str, set[str]]
    ) -> None:
        for resource, quantity in container.limits.items():
            if not self._book.is_managed(resource):
                continue
            try:
                wanted = parse_whole(quantity, maximum=MAX_DEVICES)
            except QuantityError as error:
                raise AllocationError(f"container {container.name}: {resource}: {error}") from error
            devices = await self._choose(
                pod, container, resource, wanted=wanted, reusable=reusable.get(resource, set())
            )
            if not devices:
                continue
            response = await self._ask(resource, devices)
            self._book.hold(
                Holding(
                    pod_uid=pod.uid,
                    container=container.name,
                    resource=resource,
                    devices=tuple(devices),
                    response=response,
                )
            )
            self._write()

    async def _ask(self, resource: str, devices: Sequence[str]) -> ContainerAllocateResponse:
        endpoint = self._plugins.endpoint(resource)
        try:
            if endpoint is None:
                raise AllocationError(f"unknown Device Plugin {resource}")
            return await endpoint.allocate(devices)
        except PluginError as error:
            raise AllocationError(str(error)) from error
        finally:
            self._book.unreserve()

    async def _choose(
        self, pod: Pod, container: Container, resource: str, *, wanted: int, reusable: set[str]
    ) -> list[str]:
        """The devices to ask the plugin for; none where the container needs none or has them."""
        holding = self._book.holding(pod.uid, container.name, resource)
        held = holding.devices if holding else ()
        if held and len(held) != wanted:
            raise AllocationError(
                f"pod {pod.uid!r} container {container.name!r} changed request for resource "
                f"{resource!r} from {len(held)} to {wanted}"
            )
        if self._is_running(pod.uid, container.name) or wanted == 0:
            return []
        if not self._book.is_registered(resource):
            raise AllocationError(f"cannot allocate unregistered device {resource}")
        healthy = self._book.healthy(resource)
        if not healthy:
            raise AllocationError(
                f"no healthy devices present; cannot allocate unhealthy devices {resource}"
            )
        if not healthy.keys() >= set(held):
            raise AllocationError(
                "previously allocated devices are no longer healthy; cannot allocate unhealthy "
                f"devices {resource}"
            )
        if held:
            return []
        return await self._pick(resource, wanted=wanted, reusable=reusable)

    async def _pick(self, resource: str, *, wanted: int, reusable: set[str]) -> list[str]:
        """Reusable devices first, then those the plugin prefers, then any."""
        chosen = sorted(reusable)[:wanted]
        self._book.reserve(resource, chosen)
        missing = wanted - len(chosen)
        if missing == 0:
            return chosen
        free = self._book.free(resource)
        if len(free) < missing:
            raise AllocationError(
                f"requested number of devices unavailable for {resource}. "
                f"Requested: {missing}, Available: {len(free)}"
            )
        preferred = await self._preferred(resource, free, chosen, wanted)
        free = self._book.free(resource)  # devices may have fallen ill meanwhile
        chosen += sorted(preferred & free)[:missing]
        chosen += sorted(free - set(chosen))[: wanted - len(chosen)]
        if len(chosen) < wanted:
            raise AllocationError(
                "unexpectedly allocated less resources than required. "
                f"Requested: {wanted}, Got: {len(chosen)}"
            )
        self._book.reserve(resource, chosen)
        return chosen

    async def _preferred(
        self, resource: str, free: set[str], chosen: Sequence[str], wanted: int
    ) -> set[str]:
        endpoint = self._plugins.endpoint(resource)
        if endpoint is None or not endpoint.options.get_preferred_allocation_available:
            return set()
        try:
            return await endpoint.prefer(
                available=sorted(free | set(chosen)), must_include=sorted(chosen), size=wanted
            )
        except PluginError as error:
            self._book.unreserve()
            raise AllocationError(str(error)) from error

    async def run_options(self, pod: Pod, container: Container) -> RunOptions:
        """What to start the container with, after the plugins that want it were told.

        Raises:
            PluginError: A plugin refused the start.
            SandboxError: An answer asks for what the sandbox does not do.
        """
        holdings = list(self._book.held_by(pod.uid, container.name))
        for holding in holdings:
            endpoint = self._plugins.endpoint(holding.resource)
            if endpoint is not None and endpoint.options.pre_start_required:
                await endpoint.pre_start(holding.devices)
        env: dict[str, str] = {}
        mounts: dict[str, Mount] = {}
        for holding in holdings:
            response = holding.response
            if response.cdi_devices:
                names = ", ".join(device.name for device in response.cdi_devices)
                raise SandboxError(f"CDI devices are not supported by the sandbox: {names}")
            for name, value in response.envs.items():
                env.setdefault(name, value)
            for mount in _mounts(response):
                mounts.setdefault(mount.container_path, mount)
        return RunOptions(env=env, mounts=tuple(mounts.values()))

    def _write(self) -> None:
        """Save, as the kubelet does, with each change: a few kilobytes, so on this thread."""
        checkpoint.write(
            self._checkpoint, self._book.holdings(), registered=self._book.registered()
        )


def _mounts(response: ContainerAllocateResponse) -> Iterator[Mount]:
    """Mounts, and device nodes: for a process of this machine a device is a file as well."""
    for mount in response.mounts:
        yield Mount(
            host_path=mount.host_path,
            container_path=mount.container_path,
            read_only=mount.read_only,
        )
    for device in response.devices:
        yield Mount(host_path=device.host_path, container_path=device.container_path)
