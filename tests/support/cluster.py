"""The cluster that API-facing tests run against: the sandbox's own, or a real one.

``HAMI_TEST_KUBECONFIG=FILE`` names a real cluster; each test gets a namespace of its own there,
removed afterwards. Pods made by ``make_pod`` name a scheduler that does not exist: they stay
Pending and never run. What such a cluster must not suffer, or cannot show, is skipped in words.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest

from hami.config import KubeSettings
from hami.errors import KubeError
from hami.kube.client import KubeClient, connect
from hami.kube.resources import NAMESPACES, PODS
from hami.sandbox.apiserver import ApiServer

VARIABLE = "HAMI_TEST_KUBECONFIG"
NOBODY = "hami-test-nobody"
READY_SECONDS = 30.0
FORBIDDEN = 403
FAULTS = f"injects faults, which the cluster of {VARIABLE} must not suffer"


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


def mark(item: pytest.Item, *, sandbox_only: str | None = None) -> None:
    """Mark a test as one against a cluster; skip it where that is a real one, if it says why."""
    item.add_marker(pytest.mark.cluster)
    if VARIABLE in os.environ and sandbox_only is not None:
        item.add_marker(pytest.mark.skip(reason=sandbox_only))


def sandbox_only(reason: str) -> pytest.MarkDecorator:
    """For tests that inject no faults and still cannot run against a real cluster."""
    return pytest.mark.skipif(VARIABLE in os.environ, reason=reason)


def tell_left_out(reporter: pytest.TerminalReporter) -> None:
    """How many tests a run against a real cluster left out, and why."""
    if VARIABLE not in os.environ:
        return
    skipped = reporter.stats.get("skipped", ())
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        reporter.write_line(f"left out {count}: {reason}")


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
            await _wait_until_it_takes_pods(client, namespace)
            yield Cluster(settings=settings, namespace=namespace, server=None)
        finally:
            with anyio.move_on_after(READY_SECONDS, shield=True):
                # No kubelet would ever end those that are bound, and the next test counts them.
                await client.delete(PODS.path(namespace), {"gracePeriodSeconds": 0})
                await client.delete(path)


async def _wait_until_it_takes_pods(client: KubeClient, namespace: str) -> None:
    """A new namespace refuses pods until its service account is made, which nothing announces."""
    probe = make_pod("probe", namespace=namespace)
    with anyio.fail_after(READY_SECONDS):
        while True:
            try:
                await client.post(PODS.path(namespace), probe, query={"dryRun": "All"})
            except KubeError as error:
                if error.status != FORBIDDEN:
                    raise
                await anyio.sleep(0.2)
            else:
                return
