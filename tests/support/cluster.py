"""The cluster that API-facing tests run against: the sandbox's own, or a real one.

``HAMI_TEST_KUBECONFIG=FILE`` names a real cluster; each test gets a namespace of its own there,
removed afterwards. Pods made by ``make_pod`` name a scheduler that does not exist: they stay
Pending and never run. Tests marked ``faults`` need the sandbox, and are skipped in words elsewhere.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest

from hami.config import KubeSettings
from hami.errors import NotFoundError
from hami.kube.client import connect
from hami.kube.resources import NAMESPACES
from hami.sandbox.apiserver import ApiServer

VARIABLE = "HAMI_TEST_KUBECONFIG"
NOBODY = "hami-test-nobody"
READY_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a test needs to reach its cluster; ``server`` is None where that is a real one."""

    settings: KubeSettings
    namespace: str
    server: ApiServer | None

    @property
    def sandbox(self) -> ApiServer:
        """The sandbox's API server, for tests marked ``faults``."""
        assert self.server is not None, "a test that needs the sandbox must be marked `faults`"
        return self.server


@asynccontextmanager
async def open_cluster(**server_options: Any) -> AsyncIterator[Cluster]:
    """A cluster with a fresh namespace. ``server_options`` concern the sandbox's server alone."""
    kubeconfig = os.environ.get(VARIABLE)
    if kubeconfig:
        async with _real_cluster(kubeconfig) as cluster:
            yield cluster
        return
    async with ApiServer(**server_options).running() as server:
        with TemporaryDirectory() as directory:
            file = Path(directory) / "kubeconfig"
            file.write_text(server.kubeconfig())
            settings = KubeSettings(kubeconfig=str(file), qps=1000.0, burst=1000)
            yield Cluster(settings=settings, namespace="default", server=server)


def skip_faults(items: Iterable[pytest.Item]) -> None:
    """To be called by ``pytest_collection_modifyitems``."""
    if VARIABLE not in os.environ:
        return
    reason = f"injects faults, which the cluster of {VARIABLE} must not suffer"
    for item in items:
        if item.get_closest_marker("faults"):
            item.add_marker(pytest.mark.skip(reason=reason))


def make_pod(name: str, *, namespace: str = "default", **metadata: Any) -> dict[str, Any]:
    """A pod that nobody schedules."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "spec": {
            "schedulerName": NOBODY,
            "containers": [{"name": "main", "image": "registry.k8s.io/pause:3.10"}],
        },
    }


@asynccontextmanager
async def _real_cluster(kubeconfig: str) -> AsyncIterator[Cluster]:
    settings = KubeSettings(kubeconfig=kubeconfig)
    namespace = f"hami-test-{uuid.uuid4().hex[:8]}"
    path = NAMESPACES.path(name=namespace)
    async with connect(settings) as client:
        await client.post(
            NAMESPACES.path(),
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        )
        try:
            await _wait_until_there(client.get, f"{path}/serviceaccounts/default")
            yield Cluster(settings=settings, namespace=namespace, server=None)
        finally:
            with anyio.move_on_after(READY_SECONDS, shield=True):
                await client.delete(path)


async def _wait_until_there(get: Any, path: str) -> None:
    """A new namespace takes no pods until its service account is made, which nothing announces."""
    with anyio.fail_after(READY_SECONDS):
        while True:
            try:
                await get(path)
            except NotFoundError:
                await anyio.sleep(0.2)
            else:
                return
