"""A real controller, in this process or in one of its own, and short words to talk to it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from hami import crashpoints
from hami.config import ControllerSettings, KubeSettings, LogSettings, Settings
from hami.controllers import app
from hami.core import codec
from hami.core.device import Device
from hami.core.vendors.nvidia import NVIDIA
from hami.loading import Loaded
from hami.sandbox.apiserver import ApiServer
from tests.support import builders
from tests.support.commands import Process, command
from tests.support.kube import until

SOON = 15.0
"""Seconds in which anything that a test waits for happens, on a busy machine too."""

Usage = dict[tuple[str, str], tuple[float, float, float]]
"""Slots, bytes and percent in use of each (node, device)."""


def settings_for(server: ApiServer, directory: Path, **controller: Any) -> Settings:
    """Settings of a controller of this API server, on free ports."""
    kubeconfig = directory / "kubeconfig"
    kubeconfig.write_text(server.kubeconfig())
    return Settings(
        log=LogSettings(format="json"),
        kube=KubeSettings(kubeconfig=str(kubeconfig), qps=1000.0, burst=1000),
        controller=ControllerSettings(
            host="127.0.0.1",
            port=0,
            health_host="127.0.0.1",
            health_port=0,
            **controller,
        ),
    )


@dataclass(slots=True, kw_only=True)
class Controller:
    """Speaks to a running controller as scheduler, API server and Prometheus do."""

    session: aiohttp.ClientSession
    url: str
    health_url: str
    tls: ssl.SSLContext | bool = True

    async def post(self, path: str, body: bytes | Mapping[str, Any]) -> tuple[int, Any]:
        """Status and decoded answer; None where the answer is no JSON."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        async with self.session.post(
            self.url + path,
            data=data,
            headers={"Content-Type": "application/json"},
            ssl=self.tls,
        ) as response:
            text = await response.read()
            is_json = response.content_type == "application/json"
            return response.status, msgspec.json.decode(text) if is_json else None

    async def filter(self, pod: Mapping[str, Any], nodes: Sequence[str]) -> Any:
        status, answer = await self.post("/filter", {"Pod": pod, "NodeNames": list(nodes)})
        assert status == 200
        return answer

    async def prioritize(self, pod: Mapping[str, Any], nodes: Sequence[str]) -> dict[str, int]:
        status, answer = await self.post("/prioritize", {"Pod": pod, "NodeNames": list(nodes)})
        assert status == 200
        return {row["Host"]: row["Score"] for row in answer}

    async def bind(self, pod: Mapping[str, Any], node: str) -> str:
        """The error text; empty for success."""
        meta = pod["metadata"]
        status, answer = await self.post(
            "/bind",
            {
                "PodName": meta["name"],
                "PodNamespace": meta["namespace"],
                "PodUID": meta["uid"],
                "Node": node,
            },
        )
        assert status == 200
        error: str = answer["Error"]
        return error

    async def metrics(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        async with self.session.get(self.health_url + "/metrics") as response:
            text = await response.text()
        found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = tuple(sorted(sample.labels.items()))
                found.setdefault(sample.name, {})[labels] = sample.value
        return found

    async def is_ready(self) -> bool:
        async with self.session.get(self.health_url + "/readyz") as response:
            return response.status == 200

    async def usage(self) -> Usage:
        """What the controller counts as used of each device, devices that are free left out."""
        metrics = await self.metrics()
        found: dict[tuple[str, str], list[float]] = {}
        for at, name in enumerate(
            (
                "hami_gpu_shared_count",
                "hami_gpu_memory_allocated_bytes",
                "hami_gpu_core_allocated_ratio",
            )
        ):
            for labels, value in metrics.get(name, {}).items():
                by_name = dict(labels)
                key = by_name["node"], by_name["device_uuid"]
                found.setdefault(key, [0.0, 0.0, 0.0])[at] = value
        return {key: (a, b, c) for key, (a, b, c) in found.items() if a or b or c}

    async def value(self, name: str, **labels: str) -> float:
        """A metric's value; 0 where it has none yet."""
        wanted = set(labels.items())
        found = (await self.metrics()).get(name, {})
        return sum(value for key, value in found.items() if wanted <= set(key))


async def place(
    server: ApiServer, controller: Controller, node: str, name: str, **asked: Any
) -> dict[str, Any]:
    """A pod that the controller bound to the node, and whose devices its agent has handed over."""
    pod = server.store.create(pod_object(name, **asked))
    await controller.filter(pod, [node])
    assert await controller.bind(pod, node) == ""
    bound = server.store.get("pods", name, pod["metadata"]["namespace"])
    bound["metadata"]["annotations"][codec.BIND_PHASE_KEY] = "success"
    return server.store.update(bound)


@asynccontextmanager
async def running(
    settings: Settings | Loaded, *, authority: ssl.SSLContext | None = None, ready: bool = True
) -> AsyncIterator[Controller]:
    """A controller in this process while the block runs; ready, unless that is not waited for."""
    scheme = "http" if authority is None else "https"
    async with aiohttp.ClientSession() as session, anyio.create_task_group() as group:
        with anyio.fail_after(SOON):
            ports: app.Ports = await group.start(partial(app.run, settings))
        controller = Controller(
            session=session,
            url=f"{scheme}://127.0.0.1:{ports.server}",
            health_url=f"http://127.0.0.1:{ports.health}",
            tls=authority or True,
        )
        if ready:
            await until(controller.is_ready)
        yield controller
        group.cancel_scope.cancel()


@asynccontextmanager
async def controller_process(
    settings: Settings,
    directory: Path,
    *,
    crash_at: str = "",
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[tuple[Controller, Process]]:
    """A ready controller in a process of its own."""
    variables = {crashpoints.ENV: crash_at, **(environment or {})}
    async with (
        aiohttp.ClientSession() as session,
        command("controller", settings, directory, environment=variables) as process,
    ):
        server = await process.logged("server_started")
        health = await process.logged("health_server_started")
        controller = Controller(
            session=session,
            url=f"http://127.0.0.1:{server['port']}",
            health_url=f"http://127.0.0.1:{health['port']}",
        )
        await until(controller.is_ready)
        yield controller, process


# -- what clusters are made of -----------------------------------------------------------------


def node_object(name: str, devices: Sequence[Device], **annotations: str) -> dict[str, Any]:
    """A Node that registered these devices, as the API server has it."""
    total = str(sum(device.slots for device in devices))
    registered = {NVIDIA.register_key: codec.encode_register(devices)} if devices else {}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": {**registered, **annotations}},
        "status": {
            "capacity": {NVIDIA.resources.count: total},
            "allocatable": {NVIDIA.resources.count: total},
        },
    }


def pod_object(
    name: str,
    *,
    gpus: int = 1,
    memory: int | None = 3000,
    cores: int | None = None,
    namespace: str = "default",
    annotations: Mapping[str, str] | None = None,
    containers: int = 1,
) -> dict[str, Any]:
    """A pod whose containers each ask for this."""
    names = NVIDIA.resources
    asked = {names.count: gpus, names.memory: memory, names.cores: cores}
    limits = {key: str(value) for key, value in asked.items() if value is not None}
    metadata: dict[str, Any] = {"name": name, "namespace": namespace}
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "schedulerName": "hami-scheduler",
            "containers": [
                {
                    "name": f"c{i}",
                    "image": "registry.k8s.io/pause:3.10",
                    "resources": {"limits": limits, "requests": limits},
                }
                for i in range(containers)
            ],
        },
    }


def quota_object(
    name: str, *, memory: int | str | None = None, cores: int | str | None = None
) -> dict[str, Any]:
    """A ResourceQuota on what the pods of the default namespace may have together."""
    names = NVIDIA.resources
    hard = {f"limits.{names.memory}": memory, f"limits.{names.cores}": cores}
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"hard": {key: str(value) for key, value in hard.items() if value is not None}},
    }


def gpus(node: str, count: int = 2, *, memory: int = 40_000) -> tuple[Device, ...]:
    """Devices whose names tell their node."""
    return builders.make_devices(count, prefix=f"GPU-{node}", memory=memory)
