"""Waiting for what the kubelet answers: gRPC's ways to fail, as ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import anyio.lowlevel
import grpc

from hami.errors import UnavailableError

T = TypeVar("T")


async def answered(call: Awaitable[T], what: str) -> T:
    """The answer to a call under way.

    gRPC turns a cancellation of the waiting task into a bare ``CancelledError`` of its own, which
    no cancel scope would know as its own: a deadline would end the task instead of the wait.

    Raises:
        UnavailableError: It was refused, not answered in time, or the connection is gone.
    """
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise UnavailableError(f"{what}: {error.code().name}: {error.details()}") from error
    except asyncio.CancelledError as error:
        await anyio.lowlevel.checkpoint_if_cancelled()  # raises again in a scope that is cancelled
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise UnavailableError(f"{what}: the connection was closed") from error
