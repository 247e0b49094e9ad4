"""An API server with two nodes of two devices each; the controller is opened by each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from hami.config import Settings
from hami.sandbox.apiserver import ApiServer
from tests.support import cluster as clusters
from tests.support import controller as controllers

NODES = ("n0", "n1")
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE and "server" in getattr(item, "fixturenames", ()):
            clusters.mark(item, sandbox_only=clusters.SEEDED)


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    async with ApiServer().running() as running:
        for name in NODES:
            running.store.create(controllers.node_object(name, controllers.gpus(name)))
        yield running


@pytest.fixture
def configure(server: ApiServer, tmp_path: Path) -> Callable[..., Settings]:
    """Makes settings for a controller of the API server."""

    def make(**controller: Any) -> Settings:
        return controllers.settings_for(server, tmp_path, **controller)

    return make
