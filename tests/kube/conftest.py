"""A cluster, and a client of it, for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hami.kube.client import KubeClient, connect
from tests.support import cluster as clusters

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        faults = item.get_closest_marker("faults") is not None
        if item.path.parent == HERE and (faults or "cluster" in getattr(item, "fixturenames", ())):
            clusters.mark(item, sandbox_only=clusters.FAULTS if faults else None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    clusters.tell_left_out(terminalreporter)


@pytest.fixture
async def cluster() -> AsyncIterator[clusters.Cluster]:
    async with clusters.open_cluster(bookmark_seconds=0.05) as opened:
        yield opened


@pytest.fixture
async def client(cluster: clusters.Cluster) -> AsyncIterator[KubeClient]:
    async with connect(cluster.settings) as connected:
        yield connected
