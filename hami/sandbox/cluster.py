"""The whole system on one machine: wiring, start order, stop order.

In this process: API server, scheduler and one kubelet a node. As processes of their own, exactly as
in a cluster: the controller, a node agent a node, and every container.
"""

from __future__ import annotations

import base64
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import anyio
import yaml
from anyio.abc import TaskGroup

from hami import certs, logs
from hami.config import KubeSettings, LogSettings, Settings
from hami.core.codec import decode_register
from hami.core.quantity import parse_quantity
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import CodecError, SandboxError
from hami.kube import client as kube_client
from hami.kube.client import KubeClient
from hami.logs import get_logger
from hami.sandbox import lifecycle
from hami.sandbox.apiserver import ApiServer, answers
from hami.sandbox.apiserver.bodies import LogQuery
from hami.sandbox.daemon import Daemon
from hami.sandbox.gpu import catalogue
from hami.sandbox.gpu import node as gpu_node
from hami.sandbox.kubelet import Kubelet, KubeletSettings
from hami.sandbox.runtime import Runtime
from hami.sandbox.scheduler import Scheduler, load_config
from hami.sandbox.spec import Layout, NodeGroup
from hami.site import vendor_table

log = get_logger(__name__)

TRIES: Final = 2
"""A process that ends more often than this before it was ever ready will not become so."""
_POLL_SECONDS: Final = 0.05
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class SandboxNode:
    """One simulated node."""

    name: str
    root: Path
    gpu_state: Path
    kubelet: Kubelet
    agent: Daemon | None
    """None on a node without GPUs."""


@dataclass(kw_only=True)
class Sandbox:
    """A running sandbox: its parts, for the command line and for tests."""

    place: Path
    api: ApiServer
    kubeconfig: Path
    client: KubeClient
    controller: Daemon
    controller_url: str
    controller_health_url: str
    runtime: Runtime
    nodes: dict[str, SandboxNode] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, str]:
        """What others need to know to use it."""
        return {
            "kubeconfig": str(self.kubeconfig),
            "logs": str(self.place / "logs"),
            "controller": self.controller_url,
            "health": self.controller_health_url,
            "metrics": f"{self.controller_health_url}/metrics",
            "isolation": self.runtime.isolation.value,
        }


async def run_foreground(place: Path, layout: Layout, *, mode: str) -> None:
    """Run a sandbox until SIGINT or SIGTERM; says on disk when it is ready."""
    logs.configure(LogSettings())
    with lifecycle.claim(place):
        async with running(place, layout, mode=mode) as sandbox:
            lifecycle.announce(place, sandbox.facts)
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for number in signals:
                    log.info("sandbox_stopping", signal=number.name)
                    break


@asynccontextmanager
async def running(
    place: Path,
    layout: Layout,
    *,
    mode: str = "cooperative",
    settings: dict[str, Any] | None = None,
    progress: Progress = lambda _: None,
) -> AsyncIterator[Sandbox]:
    """A sandbox that is ready for pods while the block lasts.

    Args:
        place: State directory; short, for it holds sockets.
        layout: The nodes.
        mode: Placement mode of the controller.
        settings: More of the controller's and the agents' settings, as in a settings file.
        progress: Told each step, for people.

    Raises:
        SandboxError: Something did not come up in time; says what.
    """
    lifecycle.check_room(place, layout)
    (place / "logs").mkdir(exist_ok=True)
    common = _merged({"kube": {"qps": 1000, "burst": 1000, "urgent_qps": 1000}}, settings or {})
    async with ApiServer().running() as api:
        progress(f"API server at {api.url}")
        kubeconfig = place / "kubeconfig"
        kubeconfig.write_text(api.kubeconfig(), encoding="utf-8")
        common["kube"]["kubeconfig"] = str(kubeconfig)
        kube = KubeSettings(
            kubeconfig=str(kubeconfig), qps=5000, burst=5000, in_flight=90, urgent_qps=5000
        )
        async with kube_client.connect(kube) as client, anyio.create_task_group() as tasks:
            sandbox = _sandbox(
                place,
                api,
                kubeconfig,
                client=client,
                settings=_merged(common, {"controller": {"mode": mode}}),
            )
            api.log_reader = partial(_read_log, sandbox)
            await tasks.start(sandbox.controller.run)
            for name, group in layout.names():
                sandbox.nodes[name] = _node(sandbox, name, group, client=client, settings=common)
                await _start_node(sandbox.nodes[name], tasks)
            deadline = anyio.current_time() + lifecycle.start_seconds(layout)
            await _until_serving(sandbox, deadline=deadline)
            api.store.create(_webhook(sandbox))
            progress(f"controller at {sandbox.controller_url}")
            scheduler = Scheduler(client, load_config(_scheduler_config(sandbox)))
            await tasks.start(scheduler.run)
            for name, group in layout.names():
                await _until_registered(sandbox, name, group, deadline=deadline)
                progress(f"node {name}: {_words(group)}")
            yield sandbox
            tasks.cancel_scope.cancel()


async def _start_node(node: SandboxNode, tasks: TaskGroup) -> None:
    await tasks.start(node.kubelet.run)
    if node.agent is not None:
        await tasks.start(node.agent.run)


def _sandbox(
    place: Path,
    api: ApiServer,
    kubeconfig: Path,
    *,
    client: KubeClient,
    settings: dict[str, Any],
) -> Sandbox:
    port, health_port = _free_port(), _free_port()
    bundle = certs.create(place / "certs", ["127.0.0.1", "localhost"], now=datetime.now(UTC))
    addresses = {
        "host": "127.0.0.1",
        "port": port,
        "health_host": "127.0.0.1",
        "health_port": health_port,
        "cert_file": str(bundle.cert_file),
        "key_file": str(bundle.key_file),
    }
    file = _settings_file(place / "controller.yaml", _merged(settings, {"controller": addresses}))
    return Sandbox(
        place=place,
        api=api,
        kubeconfig=kubeconfig,
        client=client,
        controller=Daemon(
            "controller",
            ["controller", "--config", str(file)],
            environment={},
            log_file=place / "logs" / "controller.log",
        ),
        controller_url=f"https://127.0.0.1:{port}",
        controller_health_url=f"http://127.0.0.1:{health_port}",
        runtime=Runtime(),
    )


def _webhook(sandbox: Sandbox) -> dict[str, Any]:
    authority = (sandbox.place / "certs" / "ca.crt").read_bytes()
    return certs.webhook_configuration(
        ca_bundle=base64.b64encode(authority).decode(), url=f"{sandbox.controller_url}/webhook"
    )


def _scheduler_config(sandbox: Sandbox) -> str:
    """The configuration a stock kube-scheduler would be given."""
    rows = vendor_table(Settings()).values()
    names = [name for row in rows for name in row.resources.all()]
    extender = {
        "urlPrefix": sandbox.controller_url,
        "enableHTTPS": True,
        "tlsConfig": {"insecure": True},
        "filterVerb": "filter",
        "prioritizeVerb": "prioritize",
        "bindVerb": "bind",
        "nodeCacheCapable": True,
        "weight": 1,
        "httpTimeout": "30s",
        "managedResources": [{"name": name, "ignoredByScheduler": True} for name in names],
    }
    return yaml.safe_dump(
        {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "profiles": [
                {"schedulerName": "default-scheduler"},
                {"schedulerName": "hami-scheduler"},
            ],
            "extenders": [extender],
        }
    )


def _node(
    sandbox: Sandbox, name: str, group: NodeGroup, *, client: KubeClient, settings: dict[str, Any]
) -> SandboxNode:
    root = sandbox.place / "nodes" / name
    root.mkdir(parents=True, exist_ok=True)
    models = [catalogue.get(gpus.model) for gpus in group.gpus for _ in range(gpus.count)]
    state = root / "gpus"
    gpu_node.create_node_state(state, models, node_name=name)
    driver = {gpu_node.NODE_ENV: str(state), "LD_LIBRARY_PATH": str(gpu_node.LIBRARY_DIR)}
    kubelet = KubeletSettings(
        node_name=name,
        root=root,
        plugin_dir=root / "dp",
        pod_resources_dir=root / "pr",
        cpus=int(parse_quantity(group.cpu)),
        memory_bytes=int(parse_quantity(group.memory)),
        labels=group.labels,
        annotations={k: v.replace("{node}", name) for k, v in group.annotations.items()},
        devices=group.devices,
        environment={**driver, "PATH": f"{gpu_node.LIBRARY_DIR}:{_PATH}"} if models else {},
    )
    return SandboxNode(
        name=name,
        root=root,
        gpu_state=state,
        kubelet=Kubelet(client, sandbox.runtime, kubelet),
        agent=_agent(sandbox, kubelet, group, _merged(settings, {}), driver) if models else None,
    )


def _agent(
    sandbox: Sandbox,
    kubelet: KubeletSettings,
    group: NodeGroup,
    settings: dict[str, Any],
    driver: dict[str, str],
) -> Daemon:
    name = kubelet.node_name
    own = {
        "node_name": name,
        "kubelet_dir": str(kubelet.plugins),
        "pod_resources_socket": str(kubelet.pod_resources / "kubelet.sock"),
        "host_dir": str(kubelet.root / "vgpu"),
        "split_count": group.split_count,
        "memory_scaling": group.memory_scaling,
        "health_host": "127.0.0.1",
        "health_port": 0,
    }
    file = _settings_file(kubelet.root / "agent.yaml", _merged(settings, {"node_agent": own}))
    return Daemon(
        f"node-agent {name}",
        ["node-agent", "--config", str(file)],
        environment=driver,
        log_file=sandbox.place / "logs" / f"{name}.log",
    )


async def _read_log(
    sandbox: Sandbox, namespace: str, name: str, container: str, query: LogQuery
) -> AsyncGenerator[bytes, None]:
    """The output of a container, from the kubelet that runs it.

    Raises:
        StatusError: No kubelet knows the pod.
    """
    for node in sandbox.nodes.values():
        if node.kubelet.has_pod(namespace, name):
            return node.kubelet.read_log(
                namespace, name, container, lines=query.tail_lines, follow=query.follow
            )
    raise answers.not_found("pods", name)


async def _until_serving(sandbox: Sandbox, *, deadline: float) -> None:
    async with aiohttp.ClientSession() as session:

        async def ready() -> bool:
            try:
                async with session.get(f"{sandbox.controller_health_url}/readyz") as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

        await _wait(ready, sandbox.controller, "to be ready", deadline=deadline)


async def _until_registered(
    sandbox: Sandbox, name: str, group: NodeGroup, *, deadline: float
) -> None:
    agent = sandbox.nodes[name].agent
    if agent is not None:
        condition = partial(_registered, sandbox, name, group)
        await _wait(condition, agent, "to register its devices", deadline=deadline)


async def _registered(sandbox: Sandbox, name: str, group: NodeGroup) -> bool:
    """Whether the node's inventory is complete and the kubelet offers its devices."""
    expected = sum(gpus.count for gpus in group.gpus)
    node = sandbox.api.store.find("nodes", name)
    if node is None:
        return False
    text = (node["metadata"].get("annotations") or {}).get(NVIDIA.register_key, "")
    try:
        devices = decode_register(text, NVIDIA.name)
    except CodecError:
        return False
    offered = (node["status"].get("allocatable") or {}).get(NVIDIA.resources.count, "0")
    return len(devices) == expected and int(offered) == expected * group.split_count


async def _wait(
    condition: Callable[[], Awaitable[bool]], daemon: Daemon, what: str, *, deadline: float
) -> None:
    """Ask again and again until it is so; nothing could wake us, for it is another process."""
    while not await condition():
        if daemon.restarts > TRIES:
            words = lifecycle.last_words(daemon.log_file)
            raise SandboxError(f"{daemon.name} ended {daemon.restarts} times: {words}")
        if anyio.current_time() > deadline:
            raise SandboxError(f"waited in vain for {daemon.name} {what}; see {daemon.log_file}")
        await anyio.sleep(_POLL_SECONDS)


def _words(group: NodeGroup) -> str:
    return ", ".join(f"{gpus.count} x {gpus.model}" for gpus in group.gpus) or "no GPUs"


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Groups of settings, key by key, the second winning."""
    return {group: {**base.get(group, {}), **over.get(group, {})} for group in {**base, **over}}


def _settings_file(file: Path, settings: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return file


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
