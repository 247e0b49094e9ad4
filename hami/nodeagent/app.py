"""The node agent's composition root: builds every part and starts them in order.

Serves the kubelet only once the pods are known, the devices have been read and the shim is in
place. All parts live in one task group: a part that fails ends the process, a signal ends them all.
"""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import msgspec
from prometheus_client import CollectorRegistry

from hami import crashpoints, health
from hami.config import NodeAgentSettings, Settings
from hami.core.objects import Node, Pod
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import ConfigError
from hami.kube.client import KubeClient, connect
from hami.kube.events import EventRecorder
from hami.kube.informer import Informer
from hami.kube.metrics import KubeMetrics
from hami.kube.reflector import Reflector
from hami.kube.resources import NODES, PODS
from hami.logs import get_logger
from hami.nodeagent import install
from hami.nodeagent.allocate import Shim
from hami.nodeagent.allocator import STEPS, Allocator
from hami.nodeagent.consume import PodWriter
from hami.nodeagent.counters import AgentMetrics
from hami.nodeagent.exporter import Exporter
from hami.nodeagent.finder import PodFinder
from hami.nodeagent.governor.loop import Governor
from hami.nodeagent.governor.residents import Residents
from hami.nodeagent.health import HealthTracker, XidPolicy
from hami.nodeagent.housekeeping import Housekeeper
from hami.nodeagent.identity import IdentityCheck
from hami.nodeagent.inventory import DeviceWatch, Inventory
from hami.nodeagent.nodepod import NodePod
from hami.nodeagent.nvml import Nvml, NvmlEvents
from hami.nodeagent.plugin import DevicePlugin
from hami.nodeagent.podresources import PodResources
from hami.nodeagent.regions import Regions
from hami.nodeagent.registrar import Registrar
from hami.nodeagent.registration import Registration
from hami.nodeagent.resizing import Resizing
from hami.site import vendor_table

log = get_logger(__name__)

COMPONENT: Final = "hami-node-agent"
REGIONS_DIR: Final = "containers"


async def run(settings: Settings) -> None:
    """Serve one node until a signal.

    Raises:
        HamiError: Something it cannot run without is missing.
    """
    if not settings.node_agent.node_name:
        raise ConfigError("node_agent.node_name: expected the name of this node, met nothing")
    if not settings.nvidia.count_name:
        raise ConfigError("nvidia.count_name: expected the resource this agent offers, met nothing")
    crashpoints.arm(os.environ.get(crashpoints.ENV), known=STEPS)
    registry = CollectorRegistry()
    async with connect(settings.kube, metrics=KubeMetrics(registry)) as client:
        agent = await build(settings, client, registry)
        await agent.serve()
    log.info("node_agent_stopped", node=settings.node_agent.node_name)


class Agent:
    """Every part, wired."""

    def __init__(
        self, settings: Settings, client: KubeClient, registry: CollectorRegistry, shim: Shim
    ) -> None:
        agent, vendors = settings.node_agent, vendor_table(settings)
        vendor, metrics = vendors[NVIDIA.name], AgentMetrics(registry)
        self.settings, self.registry, name = agent, registry, agent.node_name
        self.port = agent.health_port
        self.events = EventRecorder(client, component=COMPONENT, instance=name)
        self.pods: Informer[Pod] = Informer(
            Reflector(
                client,
                PODS,
                decode=msgspec.json.Decoder(NodePod).decode,
                field_selector=f"spec.nodeName={name}",
            )
        )
        self.nodes = Informer(
            Reflector(
                client,
                NODES,
                decode=msgspec.json.Decoder(Node).decode,
                field_selector=f"metadata.name={name}",
            )
        )
        self.inventory = Inventory()
        nvml = Nvml(agent)
        self.devices = DeviceWatch(
            self.inventory,
            nvml=nvml,
            events=NvmlEvents(agent),
            tracker=HealthTracker(
                failures=agent.health_failures, calm_seconds=agent.health_calm_seconds
            ),
            xids=_xids(agent),
            poll_seconds=agent.device_poll_seconds,
        )
        self.regions = Regions(Path(agent.host_dir) / REGIONS_DIR, metrics=metrics)
        self.registrar = Registrar(
            client,
            node_name=name,
            vendor=vendor,
            nodes=self.nodes,
            inventory=self.inventory,
            metrics=metrics,
        )
        resources = PodResources(agent.pod_resources_socket, resource=vendor.resources.count)
        finder = PodFinder(
            agent,
            vendor=vendor,
            pods=self.pods,
            regions=self.regions,
            resources=resources,
            metrics=metrics,
        )
        allocator = Allocator(
            settings,
            vendor=vendor,
            finder=finder,
            writer=PodWriter(client, vendor=vendor, vendors=vendors),
            regions=self.regions,
            inventory=self.inventory,
            shim=shim,
            events=self.events,
            metrics=metrics,
        )
        identity = IdentityCheck(
            vendor=vendor,
            pods=self.pods,
            regions=self.regions,
            finder=finder,
            allocator=allocator,
            resources=resources,
            events=self.events,
            metrics=metrics,
            settings=agent,
        )
        self.registration = Registration(
            DevicePlugin(inventory=self.inventory, allocator=allocator, identity=identity),
            agent,
            resource=vendor.resources.count,
            metrics=metrics,
        )
        self.housekeeper = Housekeeper(
            agent,
            pods=self.pods,
            regions=self.regions,
            finder=finder,
            allocator=allocator,
            resources=resources,
            shim=shim,
            metrics=metrics,
        )
        self.resizing = Resizing(
            client,
            vendor=vendor,
            pods=self.pods,
            regions=self.regions,
            limits=allocator.limits,
        )
        self.residents = Residents(
            agent,
            regions=self.regions,
            pods=self.pods,
            events=self.events,
            heed=self.resizing.heed,
        )
        self.governor = Governor(self.residents, nvml, agent, report=self.residents.report)
        self.exporter = Exporter(
            node_name=name,
            nvml=nvml,
            governor=self.governor,
            inventory=self.inventory,
            regions=self.regions,
            pods=self.pods,
        )
        registry.register(self.exporter)

    async def serve(self) -> None:
        """Start everything in order; return after a signal."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_stop_on_signal, tasks.cancel_scope, name="signals")
            self.port = await tasks.start(
                partial(
                    health.serve,
                    host=self.settings.health_host,
                    port=self.settings.health_port,
                    ready=self.missing,
                    registry=self.registry,
                    refresh=self.exporter.refresh,
                ),
                name="health",
            )
            await tasks.start(self.events.run, name="events")
            await tasks.start(self.pods.run, name="pods")
            await tasks.start(self.nodes.run, name="nodes")
            await tasks.start(self.devices.probe, name="devices")
            tasks.start_soon(self.governor.run, name="governor")
            tasks.start_soon(self.resizing.run, name="resizing")
            tasks.start_soon(self.devices.listen, name="device-events")
            tasks.start_soon(self.registrar.run, name="registrar")
            tasks.start_soon(self.registration.run, name="kubelet")
            tasks.start_soon(self.housekeeper.run, name="housekeeping")

    def missing(self) -> str | None:
        """What there is yet to come before this agent is of use; None when it is."""
        if not self.pods.synced or not self.nodes.synced:
            return "pods and nodes have not been listed"
        if not self.inventory.devices:
            return "no device has been read"
        if not self.registration.registered:
            return "not registered with the kubelet"
        return None


async def build(settings: Settings, client: KubeClient, registry: CollectorRegistry) -> Agent:
    """The agent, with the shim installed and the regions of an earlier process found."""
    host_dir, fail_open = Path(settings.node_agent.host_dir), settings.node_agent.fail_open
    put = partial(install.install, install.PACKAGED, host_dir, fail_open=fail_open)
    shim = await anyio.to_thread.run_sync(put)
    agent = Agent(settings, client, registry, shim)
    await agent.regions.load()
    return agent


async def _stop_on_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for met in signals:
            log.info("signal_received", signal=met.name)
            scope.cancel()
            return


def _xids(settings: NodeAgentSettings) -> XidPolicy:
    """From the settings, else from the variables that NVIDIA's own plugin reads."""
    return XidPolicy.parse(
        disable=settings.health_disable_xids or os.environ.get("DP_DISABLE_HEALTHCHECKS", ""),
        enable=settings.health_enable_xids or os.environ.get("DP_ENABLE_HEALTHCHECKS", ""),
    )
