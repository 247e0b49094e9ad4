from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
import anyio
import pytest
from prometheus_client import CollectorRegistry, Counter

from hami import health
from hami.errors import ConfigError


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[str]:
    """The server's address, while it runs."""
    arguments = {"ready": lambda: None, "registry": CollectorRegistry(), **options}
    async with anyio.create_task_group() as tasks:
        port = await tasks.start(partial(health.serve, host="127.0.0.1", port=0, **arguments))
        yield f"http://127.0.0.1:{port}"
        tasks.cancel_scope.cancel()


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def test_process_is_alive_before_it_is_ready() -> None:
    async with serving(ready=lambda: "pods have not been listed") as url:
        assert await get(f"{url}/healthz") == (200, "ok\n")
        assert await get(f"{url}/readyz") == (503, "not ready: pods have not been listed\n")


async def test_process_is_ready_once_nothing_is_missing() -> None:
    async with serving() as url:
        assert await get(f"{url}/readyz") == (200, "ok\n")


async def test_metrics_are_refreshed_for_each_scrape() -> None:
    registry = CollectorRegistry()
    counter = Counter("hami_test_refreshes", "Test.", registry=registry)

    async def refresh() -> None:
        counter.inc()

    async with serving(registry=registry, refresh=refresh) as url:
        await get(f"{url}/metrics")
        status, body = await get(f"{url}/metrics")

    assert status == 200
    assert "hami_test_refreshes_total 2.0" in body


async def test_slow_refresh_does_not_withhold_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "REFRESH_SECONDS", 0.01)
    async with serving(refresh=anyio.sleep_forever) as url:
        status, _ = await get(f"{url}/metrics")

    assert status == 200


async def test_taken_port_is_a_clear_error() -> None:
    async with serving() as url:
        port = int(url.rpartition(":")[2])
        with pytest.raises(ConfigError, match=str(port)):
            await health.serve(
                host="127.0.0.1", port=port, ready=lambda: None, registry=CollectorRegistry()
            )
