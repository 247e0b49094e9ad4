"""Short words for tests that follow and change objects in a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import msgspec

from hami.core.objects import Pod
from hami.kube.client import KubeClient
from hami.kube.informer import Informer
from hami.kube.reflector import Reflector
from hami.kube.resources import PODS
from hami.kube.store import Store
from tests.support.cluster import make_pod

SOON = 10.0
"""Seconds in which anything that a test waits for happens, on a busy machine too."""

R = TypeVar("R")


def pod_reflector(client: KubeClient, namespace: str, **options: Any) -> Reflector[Pod]:
    decode = msgspec.json.Decoder(Pod).decode
    return Reflector(client, PODS, decode=decode, namespace=namespace, **options)


def pod_informer(client: KubeClient, namespace: str, **options: Any) -> Informer[Pod]:
    return Informer(pod_reflector(client, namespace, **options))


@asynccontextmanager
async def following(informer: Informer[Any]) -> AsyncIterator[None]:
    """The informer runs, and has synced, while the block does."""
    async with anyio.create_task_group() as group:
        with anyio.fail_after(SOON):
            await group.start(informer.run)
        yield
        group.cancel_scope.cancel()


async def eventually(informer: Informer[Any], condition: Callable[[], R | None]) -> R:
    """The condition's result, once the informer has seen what makes it true."""
    return await informer.wait_for(condition, timeout_seconds=SOON)


class Told:
    """Keeps what a handler is told, in order."""

    def __init__(self, followed: Informer[Pod] | Store[Pod]) -> None:
        self.calls: list[str] = []
        followed.add_handler(self.on_set, self.on_delete)

    def on_set(self, pod: Pod, old: Pod | None) -> None:
        note = pod.annotations.get("note", "-")
        before = old.annotations.get("note", "-") if old else "new"
        self.calls.append(f"{pod.metadata.name}: {before} -> {note}")

    def on_delete(self, pod: Pod) -> None:
        self.calls.append(f"{pod.metadata.name}: gone")


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return once the condition holds, of what announces no change."""
    with anyio.fail_after(SOON):
        while True:
            if await condition():
                return
            await anyio.sleep(0.02)


async def create_pod(client: KubeClient, name: str, namespace: str, **metadata: Any) -> Pod:
    body = make_pod(name, namespace=namespace, **metadata)
    return msgspec.json.decode(await client.post(PODS.path(namespace), body), type=Pod)


async def annotate(client: KubeClient, name: str, namespace: str, **annotations: str) -> Pod:
    body = {"metadata": {"annotations": annotations}}
    return msgspec.json.decode(await client.patch(PODS.path(namespace, name), body), type=Pod)


async def delete_pod(client: KubeClient, name: str, namespace: str) -> None:
    await client.delete(PODS.path(namespace, name), {"gracePeriodSeconds": 0})


def value_of(metric: Any, *labels: str) -> float:
    """A counter's value."""
    value: float = metric.labels(*labels)._value.get()
    return value
