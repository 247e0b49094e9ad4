"""A simulated node in a sandbox cluster, and short words to watch pods live on it."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskStatus

from hami.errors import NotFoundError
from hami.kube.client import KubeClient, connect
from hami.kube.resources import NODES, PODS, Resource
from hami.sandbox.apiserver import ApiServer
from hami.sandbox.kubelet import Kubelet, KubeletSettings
from hami.sandbox.runtime import Runtime
from tests.support.cluster import open_cluster
from tests.support.kube import SOON, until

NODE = "node-1"
R = TypeVar("R")


def make_pod(
    name: str,
    *containers: Mapping[str, Any],
    init: list[dict[str, Any]] | None = None,
    restart: str = "Never",
    node: str | None = NODE,
    grace: int = 1,
    **spec: Any,
) -> dict[str, Any]:
    """A pod that is bound to the node; its one container sleeps unless others are given."""
    bound = {"nodeName": node} if node else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            **bound,
            "restartPolicy": restart,
            "terminationGracePeriodSeconds": grace,
            **({"initContainers": init} if init else {}),
            "containers": list(containers) or [container(run="exec sleep 1000")],
            **spec,
        },
    }


def container(
    name: str = "main", *, run: str = "exec sleep 1000", cards: int = 0, **fields: Any
) -> dict[str, Any]:
    """A container that runs a line of shell, with this many of the test plugin's devices."""
    limits = {"limits": {"example.com/card": str(cards)}} if cards else {}
    return {
        "name": name,
        "image": "none",
        "command": ["/bin/sh", "-c", run],
        "resources": limits,
        **fields,
    }


@dataclass(slots=True)
class NodeBench:
    """An API server, one node on it, and how to follow them."""

    server: ApiServer
    client: KubeClient
    kubelet: Kubelet
    stop_kubelet: Callable[[], Awaitable[None]]
    """Ends the node's kubelet, and with it the node's containers."""

    @property
    def plugins(self) -> Path:
        return self.kubelet.settings.plugins

    async def create(self, body: dict[str, Any]) -> None:
        await self.client.post(PODS.path("default"), body)

    async def delete(self, name: str, *, grace: int | None = None) -> None:
        body = None if grace is None else {"gracePeriodSeconds": grace}
        await self.client.delete(PODS.path("default", name), body)

    def find(self, resource: Resource, name: str) -> dict[str, Any] | None:
        namespace = "default" if resource.namespaced else ""
        for obj in self.server.store.list(resource.plural):
            meta = obj["metadata"]
            if meta["name"] == name and meta.get("namespace", "") == namespace:
                return obj
        return None

    async def pod(self, name: str, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The pod, once the condition holds of it."""

        def holds() -> dict[str, Any] | None:
            pod = self.find(PODS, name)
            return pod if pod is not None and condition(pod) else None

        return await eventually(holds, lambda: self.find(PODS, name))

    async def phase(self, name: str, phase: str) -> dict[str, Any]:
        """The pod, once it has reached the phase."""
        return await self.pod(name, lambda pod: pod.get("status", {}).get("phase") == phase)

    async def gone(self, name: str) -> None:
        """Return once the API server has no such pod."""
        await eventually(lambda: self.find(PODS, name) is None, lambda: self.find(PODS, name))

    async def offers(self, resource: str, *, capacity: str, allocatable: str) -> None:
        """Return once the Node says that it has this much."""

        def said() -> tuple[str, str]:
            status = (self.find(NODES, NODE) or {}).get("status", {})
            return (
                status.get("capacity", {}).get(resource, ""),
                status.get("allocatable", {}).get(resource, ""),
            )

        await eventually(lambda: said() == (capacity, allocatable), said)

    async def log(self, name: str, container: str = "main") -> str:
        """What the container wrote; nothing while the node does not know the pod."""
        try:
            chunks = self.kubelet.read_log("default", name, container, lines=None, follow=False)
        except NotFoundError:
            return ""
        return b"".join([chunk async for chunk in chunks]).decode()

    async def logged(self, name: str, text: str, container: str = "main") -> str:
        """The container's log, once the text is in it."""
        log = ""

        async def holds() -> bool:
            nonlocal log
            log = await self.log(name, container)
            return text in log

        await until(holds)
        return log


async def eventually(condition: Callable[[], R | None], met: Callable[[], object]) -> R:
    """The condition's result, once it is true; what was met instead, if it does not become so."""
    try:
        with anyio.fail_after(SOON):
            while not (result := condition()):  # noqa: ASYNC110 - the store announces nothing
                await anyio.sleep(0.01)
    except TimeoutError as error:
        raise AssertionError(f"not within {SOON} s; met {met()}") from error
    return result


def container_state(pod: dict[str, Any], index: int = 0, *, init: bool = False) -> dict[str, Any]:
    """One container's state as the API server has it."""
    kind = "initContainerStatuses" if init else "containerStatuses"
    statuses = pod.get("status", {}).get(kind) or []
    state: dict[str, Any] = statuses[index]["state"] if index < len(statuses) else {}
    return state


@asynccontextmanager
async def open_node(
    *, runtime: Runtime | None = None, root: Path | None = None, **settings: Any
) -> AsyncIterator[NodeBench]:
    """A cluster of the sandbox's own with one running node, quick in everything that waits."""
    options: dict[str, Any] = {
        "node_name": NODE,
        "status_seconds": 0.2,
        "config_retry_seconds": 0.1,
        "restart_backoff_seconds": 0.1,
        "restart_backoff_cap_seconds": 0.4,
        "minimum_grace_seconds": 0.2,
        "plugin_dial_seconds": 5.0,
    } | settings
    # not pytest's own directory: a unix socket's path must be short
    with tempfile.TemporaryDirectory(prefix="hami-") as directory:
        async with open_cluster() as cluster, connect(cluster.settings) as client:
            kubelet = Kubelet(
                client,
                runtime or Runtime(),
                KubeletSettings(root=root or Path(directory), **options),
            )
            async with running(kubelet) as stop:
                yield NodeBench(cluster.sandbox, client, kubelet, stop)


@asynccontextmanager
async def running(kubelet: Kubelet) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """The kubelet runs until the block ends, or what it yields is called."""
    ended = anyio.Event()
    scope = anyio.CancelScope()

    async def run(*, task_status: TaskStatus[None]) -> None:
        with scope:
            await kubelet.run(task_status=task_status)
        ended.set()

    async def stop() -> None:
        scope.cancel()
        await ended.wait()

    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(SOON):
            await tasks.start(run)
        yield stop
        scope.cancel()


@asynccontextmanager
async def another_kubelet(bench: NodeBench) -> AsyncIterator[NodeBench]:
    """The node's kubelet is replaced by a new one, as after a reboot."""
    await bench.stop_kubelet()
    kubelet = Kubelet(bench.client, Runtime(), bench.kubelet.settings)
    async with running(kubelet) as stop:
        yield NodeBench(bench.server, bench.client, kubelet, stop)
