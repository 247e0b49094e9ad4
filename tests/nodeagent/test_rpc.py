"""Questions to a kubelet that hangs: deadlines and cancellations stay those of who asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import grpc.aio
import pytest

from hami.errors import UnavailableError
from hami.nodeagent.podresources import PodResources
from hami.nodeagent.proto.podresources_pb2_grpc import (
    PodResourcesListerServicer,
    add_PodResourcesListerServicer_to_server,
)


class HangingKubelet(PodResourcesListerServicer):
    def __init__(self) -> None:
        self.asked = anyio.Event()

    async def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        del request, context
        self.asked.set()
        await anyio.sleep_forever()


@asynccontextmanager
async def hanging(directory: Path) -> AsyncIterator[tuple[HangingKubelet, PodResources]]:
    kubelet, server = HangingKubelet(), grpc.aio.server()
    add_PodResourcesListerServicer_to_server(kubelet, server)  # type: ignore[no-untyped-call] # generated
    socket = directory / "k.sock"
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        yield kubelet, PodResources(str(socket), resource="nvidia.com/gpu")
    finally:
        await server.stop(0)


async def test_deadline_of_the_caller_ends_the_wait_and_not_the_task(tmp_path: Path) -> None:
    async with hanging(tmp_path) as (_, resources):
        with pytest.raises(TimeoutError), anyio.fail_after(0.05):
            await resources.holdings()


async def test_cancelled_scope_ends_the_wait_within_it_and_the_task_goes_on(tmp_path: Path) -> None:
    async with hanging(tmp_path) as (kubelet, resources), anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def cancel_when_asked() -> None:
            await kubelet.asked.wait()
            scope.cancel()

        tasks.start_soon(cancel_when_asked)
        with scope:
            await resources.holdings()
        assert scope.cancelled_caught


async def test_kubelet_that_goes_away_is_unavailable(tmp_path: Path) -> None:
    async with hanging(tmp_path) as (_, resources):
        pass
    with pytest.raises(UnavailableError, match="pod-resources at"):
        await resources.holdings()
