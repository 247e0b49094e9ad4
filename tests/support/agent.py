"""A node agent on a simulated node: API server, kubelet and driver are the sandbox's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import grpc
import grpc.aio
from prometheus_client import CollectorRegistry

from hami.config import NodeAgentSettings, Settings
from hami.core import codec
from hami.core.device import Device
from hami.core.vendors.nvidia import NVIDIA
from hami.kube.client import connect
from hami.kube.resources import NODES, PODS
from hami.nodeagent import app
from hami.nodeagent.proto.deviceplugin_pb2_grpc import DevicePluginStub
from hami.sandbox.kubelet import KubeletSettings
from tests.support.builders import given
from tests.support.gpus import Gpus, simulated_gpus
from tests.support.node import NODE, NodeBench, container, eventually, open_node

RESOURCE = "nvidia.com/gpu"
SOCKET = "hami-nvidia.com-gpu.sock"
Layout = Sequence[Sequence[tuple[str, int]]]
"""For each container its devices: uuid and MiB."""


def agent_settings(kubelet: KubeletSettings, host_dir: Path, **changes: Any) -> NodeAgentSettings:
    """Quick in everything that waits."""
    return NodeAgentSettings(
        **{
            "node_name": NODE,
            "kubelet_dir": str(kubelet.plugins),
            "pod_resources_socket": str(kubelet.pod_resources / "kubelet.sock"),
            "host_dir": str(host_dir),
            "health_host": "127.0.0.1",
            "health_port": 0,
            "device_poll_seconds": 0.1,
            "health_calm_seconds": 0.3,
            "pending_pod_seconds": 1.0,
            "kubelet_poll_seconds": 0.05,
            "reconcile_seconds": 0.1,
            **changes,
        }
    )


def bound_pod(
    name: str,
    layout: Layout,
    *,
    run: str = "exec sleep 1000",
    bind_time: int = 100,
    init: int = 0,
    node: str = NODE,
    annotations: dict[str, str | None] | None = None,
    restart: str = "Never",
) -> dict[str, Any]:
    """A pod as the controller leaves it: bound, with its allocation in its annotations.

    The first ``init`` containers of the layout are init containers.
    """
    record = codec.encode_allocation(
        [[given(uuid, memory=memory) for uuid, memory in devices] for devices in layout],
        NVIDIA.name,
    )
    written = {
        codec.NODE_KEY: node,
        codec.BIND_TIME_KEY: str(bind_time),
        codec.BIND_PHASE_KEY: "allocating",
        NVIDIA.to_allocate_key: record,
        NVIDIA.allocated_key: record,
        **(annotations or {}),
    }
    containers = [
        container(f"c{index}", run="true" if index < init else run)
        | {"resources": {"limits": {RESOURCE: str(len(devices))}} if devices else {}}
        for index, devices in enumerate(layout)
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "default",
            "annotations": {key: value for key, value in written.items() if value is not None},
        },
        "spec": {
            "nodeName": node,
            "restartPolicy": restart,
            "terminationGracePeriodSeconds": 1,
            "initContainers": containers[:init],
            "containers": containers[init:],
        },
    }


@dataclass(slots=True)
class AgentBench:
    """An agent at work, and everything around it."""

    node: NodeBench
    gpus: Gpus
    settings: NodeAgentSettings
    agent: app.Agent

    @property
    def regions(self) -> Path:
        return Path(self.settings.host_dir) / app.REGIONS_DIR

    def annotation(self, pod: str, key: str) -> str | None:
        obj = self.node.find(PODS, pod)
        assert obj is not None
        value: str | None = obj["metadata"].get("annotations", {}).get(key)
        return value

    def node_annotation(self, key: str) -> str | None:
        obj = self.node.find(NODES, NODE)
        assert obj is not None
        value: str | None = obj["metadata"].get("annotations", {}).get(key)
        return value

    def registered_devices(self) -> tuple[Device, ...]:
        """As the Node says."""
        text = self.node_annotation(NVIDIA.register_key)
        return codec.decode_register(text, NVIDIA.name) if text else ()

    async def registered(self, *health: bool) -> tuple[Device, ...]:
        """The Node's devices, once it says just this of their health."""

        def said() -> tuple[Device, ...] | None:
            devices = self.registered_devices()
            return devices if tuple(d.healthy for d in devices) == health else None

        return await eventually(said, self.registered_devices)

    async def allocatable(self, count: int) -> None:
        """Return once the kubelet offers so many devices."""

        def said() -> str:
            node = self.node.find(NODES, NODE) or {}
            value: str = node.get("status", {}).get("allocatable", {}).get(RESOURCE, "")
            return value

        await eventually(lambda: said() == str(count), said)

    def count(self, name: str, **labels: str) -> float:
        """A counter's value."""
        return self.agent.registry.get_sample_value(name, labels) or 0.0

    async def events(self, reason: str) -> list[dict[str, Any]]:
        """The events with this reason, once there is one."""

        def said() -> list[dict[str, Any]]:
            events: list[dict[str, Any]] = self.node.server.store.list("events")
            return [event for event in events if event["reason"] == reason]

        return await eventually(said, lambda: self.node.server.store.list("events"))

    @asynccontextmanager
    async def plugin(self) -> AsyncIterator[DevicePluginStub]:
        """The plugin, as a kubelet calls it."""
        socket = Path(self.settings.kubelet_dir) / SOCKET
        async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
            yield DevicePluginStub(channel)  # type: ignore[no-untyped-call] # generated

    async def get(self, path: str) -> tuple[int, str]:
        """The answer of the agent's own HTTP server."""
        url = f"http://127.0.0.1:{self.agent.port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()


@asynccontextmanager
async def open_agent(
    *, node_options: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[AgentBench]:
    """A node whose kubelet offers the agent's devices."""
    gpus = simulated_gpus()
    options = {"environment": gpus.environment} | (node_options or {})
    async with open_node(**options) as node:
        root = node.kubelet.settings.root
        agent_config = agent_settings(node.kubelet.settings, root / "vgpu", **settings)
        async with running_agent(node, gpus, agent_config) as bench:
            await bench.allocatable(len(gpus.uuids) * agent_config.split_count)
            yield bench


@asynccontextmanager
async def running_agent(
    node: NodeBench, gpus: Gpus, settings: NodeAgentSettings
) -> AsyncIterator[AgentBench]:
    """An agent that is ready, on a node that runs already."""
    async with connect(node.client.settings) as client, anyio.create_task_group() as tasks:
        agent = await app.build(Settings(node_agent=settings), client, CollectorRegistry())
        tasks.start_soon(agent.serve)
        await eventually(lambda: agent.missing() is None, agent.missing)
        yield AgentBench(node, gpus, settings, agent)
        tasks.cancel_scope.cancel()
