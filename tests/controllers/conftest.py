"""An API server with two nodes of two devices each; the controller is opened by each test.

It is the sandbox's, or what a real cluster can offer of it (tests.support.remote).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hami.config import Settings
from hami.sandbox.apiserver import ApiServer
from tests.support import cluster as clusters
from tests.support import controller as controllers
from tests.support.remote import RemoteServer, remote_server

NODES = ("n0", "n1")
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE and "server" in getattr(item, "fixturenames", ()):
            faults = item.get_closest_marker("faults") is not None
            clusters.mark(item, sandbox_only=clusters.FAULTS if faults else None)


@pytest.fixture
async def server() -> AsyncIterator[ApiServer | RemoteServer]:
    async with _open_server() as opened:
        for name in NODES:
            opened.store.create(controllers.node_object(name, controllers.gpus(name)))
        yield opened


@asynccontextmanager
async def _open_server() -> AsyncIterator[ApiServer | RemoteServer]:
    if clusters.VARIABLE not in os.environ:
        async with ApiServer().running() as running:
            yield running
        return
    async with clusters.open_cluster() as cluster:
        with remote_server(cluster) as remote:
            yield remote


@pytest.fixture
def configure(server: ApiServer, tmp_path: Path) -> Callable[..., Settings]:
    """Makes settings for a controller of the API server."""

    def make(**controller: Any) -> Settings:
        return controllers.settings_for(server, tmp_path, **controller)

    return make
