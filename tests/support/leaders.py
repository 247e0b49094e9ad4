"""Several controllers of one cluster, of which one leads."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Any

from hami.config import Settings
from hami.core import codec
from hami.core.vendors.nvidia import NVIDIA
from hami.sandbox.apiserver import ApiServer
from tests.support.commands import Process
from tests.support.controller import Controller, pod_object, settings_for

STEADY = {"lease_duration_seconds": 30.0, "lease_renew_seconds": 20.0, "lease_retry_seconds": 1.0}
"""No stall of a busy machine loses such a Lease."""
BRIEF = {"lease_duration_seconds": 3.0, "lease_renew_seconds": 2.0, "lease_retry_seconds": 0.5}
"""For tests in which one is to be lost."""


def candidate_settings(server: ApiServer, directory: Path, **controller: Any) -> Settings:
    """Settings of one of several controllers; the directory is its own."""
    directory.mkdir(exist_ok=True)
    wanted = {"leader_elect": True, "lease_namespace": "default", **STEADY, **controller}
    return settings_for(server, directory, **wanted)


async def role(controller: Controller) -> str:
    """What the controller says of itself."""
    async with controller.session.get(controller.health_url + "/readyz") as response:
        return response.headers["X-Hami-Role"]


async def leads(controller: Controller) -> bool:
    """Whether it answers the scheduler."""
    answer = await controller.filter(UNBOUND, ["n0"])
    return not answer["Error"]


UNBOUND = {
    **pod_object("asked"),
    "metadata": {"name": "asked", "namespace": "default"},
}
"""A pod without a uid: it is asked about, and nothing is held for it."""


def pause(process: Process) -> None:
    process.process.send_signal(signal.SIGSTOP)


def resume(process: Process) -> None:
    process.process.send_signal(signal.SIGCONT)


def memory_given(server: ApiServer) -> dict[tuple[str, str], int]:
    """MiB of each (node, device) that the records of bound pods add up to."""
    total: Counter[tuple[str, str]] = Counter()
    for pod in server.store.list("pods"):
        node = pod["spec"].get("nodeName")
        text = (pod["metadata"].get("annotations") or {}).get(NVIDIA.allocated_key, "")
        for devices in codec.decode_allocation(text, NVIDIA.name) if node else ():
            for device in devices:
                total[node, device.uuid] += device.memory
    return dict(total)


def has_record(server: ApiServer, name: str) -> bool:
    annotations = server.store.get("pods", name)["metadata"].get("annotations") or {}
    return codec.NODE_KEY in annotations
