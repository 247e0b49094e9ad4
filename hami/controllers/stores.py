"""What the controller watches: one store for each kind of object.

Owns which kinds those are and in which order they are filled. Knows nothing of what their objects
mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from anyio.abc import TaskGroup

from hami.core.objects import Node, Pod, PodDisruptionBudget, ResourceQuota
from hami.kube.client import KubeClient
from hami.kube.informer import Informer
from hami.kube.reflector import Reflector
from hami.kube.resources import NODES, POD_DISRUPTION_BUDGETS, PODS, RESOURCE_QUOTAS


class Stores:
    """The objects as the watches show them; empty until started."""

    def __init__(self, client: KubeClient) -> None:
        self.nodes: Final = Informer(
            Reflector(client, NODES, decode=msgspec.json.Decoder(Node).decode)
        )
        self.quotas: Final = Informer(
            Reflector(client, RESOURCE_QUOTAS, decode=msgspec.json.Decoder(ResourceQuota).decode)
        )
        self.budgets: Final = Informer(
            Reflector(
                client,
                POD_DISRUPTION_BUDGETS,
                decode=msgspec.json.Decoder(PodDisruptionBudget).decode,
            )
        )
        self.pods: Final = Informer(
            Reflector(client, PODS, decode=msgspec.json.Decoder(Pod).decode)
        )

    async def start(self, group: TaskGroup) -> None:
        """Fill them one after the other, pods last so that they find their devices."""
        await group.start(self.nodes.run, name="nodes")
        await group.start(self.quotas.run, name="quotas")
        await group.start(self.budgets.run, name="budgets")
        await group.start(self.pods.run, name="pods")

    def are_synced(self) -> bool:
        """Whether each has once held everything there was."""
        return all(each.synced for each in (self.nodes, self.quotas, self.budgets, self.pods))

    def silent_seconds(self) -> dict[str, Callable[[], float]]:
        """By resource, how to learn for how long the API server has said nothing of it."""
        return {
            PODS.plural: lambda: self.pods.last_event_age,
            NODES.plural: lambda: self.nodes.last_event_age,
            RESOURCE_QUOTAS.plural: lambda: self.quotas.last_event_age,
            POD_DISRUPTION_BUDGETS.plural: lambda: self.budgets.last_event_age,
        }
