"""Asks the kubelet which container holds which devices (pod-resources API, version v1).

Owns the connection to the kubelet's socket, made anew for each question: the kubelet restarts, and
questions are rare. Knows nothing of what the answer is for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import grpc

from hami.nodeagent.claims import Holder
from hami.nodeagent.proto import podresources_pb2 as messages
from hami.nodeagent.proto import podresources_pb2_grpc as services
from hami.nodeagent.rpc import answered

DEADLINE_SECONDS: Final = 5.0
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
"""As the kubelet's own limit on this API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """Who holds devices of one resource now. Plain init containers are not told by the kubelet."""

    devices: Mapping[Holder, frozenset[str]]
    """Device ids of each container that holds any."""

    def holders(self, ids: Collection[str]) -> tuple[Holder, ...]:
        """The containers that hold exactly these devices, in order of name."""
        wanted = frozenset(ids)
        return tuple(sorted(h for h, held in self.devices.items() if held == wanted))


class PodResources:
    """The kubelet's answers about one resource."""

    def __init__(self, socket: str, *, resource: str) -> None:
        self._socket = socket
        self._resource = resource

    async def holdings(self) -> Holdings:
        """Who holds what.

        Raises:
            UnavailableError: The kubelet does not answer.
        """
        options = [("grpc.max_receive_message_length", MAX_ANSWER_BYTES)]
        async with grpc.aio.insecure_channel(f"unix:{self._socket}", options=options) as channel:
            lister = services.PodResourcesListerStub(channel)  # type: ignore[no-untyped-call] # generated
            answer = await answered(
                lister.List(messages.ListPodResourcesRequest(), timeout=DEADLINE_SECONDS),
                f"pod-resources at {self._socket}",
            )
        return _read(answer, self._resource)


def _read(answer: messages.ListPodResourcesResponse, resource: str) -> Holdings:
    devices: dict[Holder, set[str]] = {}
    for pod in answer.pod_resources:
        for container in pod.containers:
            holder = Holder(pod.namespace, pod.name, container.name)
            for held in container.devices:  # one element for each NUMA node
                if held.resource_name == resource:
                    devices.setdefault(holder, set()).update(held.device_ids)
    return Holdings(
        devices=MappingProxyType({holder: frozenset(ids) for holder, ids in devices.items()})
    )
