"""A cluster, and a client of it, for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from hami.kube.client import KubeClient, connect
from tests.support import cluster as clusters


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    clusters.skip_faults(items)


@pytest.fixture
async def cluster() -> AsyncIterator[clusters.Cluster]:
    async with clusters.open_cluster(bookmark_seconds=0.05) as opened:
        yield opened


@pytest.fixture
async def client(cluster: clusters.Cluster) -> AsyncIterator[KubeClient]:
    async with connect(cluster.settings) as connected:
        yield connected
