"""``hami resize``: ask for other amounts of a running pod's devices, and wait for what comes of it.

It writes the one annotation that people write (see docs/resize.md) and reads the other two.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import msgspec

from hami.config import KubeSettings
from hami.core import codec
from hami.core.allocation import BindPhase
from hami.core.codec_resize import (
    RESIZE_APPLIED_KEY,
    RESIZE_KEY,
    RESIZE_STATUS_KEY,
    Applied,
    Wanted,
    decode_applied,
    decode_decision,
    digest,
)
from hami.core.objects import Pod
from hami.core.wire import encode
from hami.errors import InquiryError, NotFoundError, SandboxError, UnavailableError
from hami.kube import client as kube_client
from hami.kube.client import KubeClient
from hami.kube.patching import patch_metadata
from hami.kube.resources import PODS, ObjectRef
from hami.sandbox import lifecycle

POLL_SECONDS: Final = 0.2
_POD: Final = msgspec.json.Decoder(Pod)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is asked for."""

    namespace: str
    name: str
    container: str | None
    """None: the pod's only one."""
    wanted: Wanted
    timeout_seconds: float


class Resized(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    namespace: str
    pod: str
    container: str
    gpumem: int
    """MiB of each device, now in force."""
    gpucores: int
    """Percent; 0: no limit."""
    blocked: int
    """MiB in use beyond that, on the worst device."""


@asynccontextmanager
async def api(
    kubeconfig: Path | None, sandbox: Path | None, environment: Mapping[str, str] = os.environ
) -> AsyncIterator[KubeClient]:
    """The API server: of a kubeconfig, of a sandbox on this machine, or of the environment.

    Raises:
        ConfigError: There is no way to one.
        SandboxError: A sandbox was named and does not run.
    """
    found = kubeconfig
    if found is None and (sandbox is not None or "KUBECONFIG" not in environment):
        try:
            found = Path(lifecycle.facts(lifecycle.directory(sandbox))["kubeconfig"])
        except SandboxError:
            if sandbox is not None:
                raise
    settings = KubeSettings(kubeconfig=None if found is None else str(found))
    async with kube_client.connect(settings, environment=environment) as client:
        yield client


async def resize(client: KubeClient, order: Order) -> Resized:
    """Ask, and wait until the amounts are in force.

    Raises:
        InquiryError: The pod cannot be asked this, or was denied; the message says why.
        UnavailableError: Nobody decided, or nobody put it into force, in time.
        KubeError: The API server refused.
    """
    pod = await _read(client, order)
    container = _container(pod, order)
    text = encode({container: order.wanted})
    ref = ObjectRef(resource=PODS, name=order.name, namespace=order.namespace)
    await patch_metadata(client, ref, annotations={RESIZE_KEY: text}, uid=pod.metadata.uid)
    missing = "no decision: is a controller running?"
    with anyio.move_on_after(order.timeout_seconds):
        while True:
            pod = await _read(client, order)
            decision = decode_decision(pod.annotations.get(RESIZE_STATUS_KEY, ""))
            if pod.annotations.get(RESIZE_KEY) != text:
                raise InquiryError(f"{_key(order)}: somebody else asks for other amounts by now")
            if decision is not None and decision.request == digest(text):
                if decision.state == "denied":
                    raise InquiryError(f"{_key(order)}: denied: {decision.reason}")
                missing = "accepted, and not in force yet: does its node's agent run?"
                said = decode_applied(pod.annotations.get(RESIZE_APPLIED_KEY, "")).get(container)
                if said is not None and said.number >= decision.number:
                    return _result(order, container, said)
            await anyio.sleep(POLL_SECONDS)
    raise UnavailableError(f"{_key(order)}: after {order.timeout_seconds:g} s {missing}")


async def _read(client: KubeClient, order: Order) -> Pod:
    ref = ObjectRef(resource=PODS, name=order.name, namespace=order.namespace)
    try:
        return _POD.decode(await client.get(ref.path()))
    except NotFoundError as error:
        raise InquiryError(f"{_key(order)}: there is no such pod") from error


def _container(pod: Pod, order: Order) -> str:
    """The container's name, of a pod that has its devices."""
    if pod.finished or pod.annotations.get(codec.BIND_PHASE_KEY) != BindPhase.SUCCESS:
        raise InquiryError(f"{_key(order)}: expected a running pod that has its devices")
    names = [container.name for container, _ in pod.containers()]
    if order.container is None and len(names) == 1:
        return names[0]
    if order.container not in names:
        met = "none was named" if order.container is None else repr(order.container[:80])
        raise InquiryError(
            f"{_key(order)}: --container: expected one of {', '.join(names)[:500]}; {met}"
        )
    return order.container


def _result(order: Order, container: str, said: Applied) -> Resized:
    return Resized(
        namespace=order.namespace,
        pod=order.name,
        container=container,
        gpumem=said.gpumem,
        gpucores=said.gpucores,
        blocked=said.blocked,
    )


def _key(order: Order) -> str:
    return f"pod {order.namespace}/{order.name}"
