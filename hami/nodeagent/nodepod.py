"""A pod as this node's agent decodes it: with what only the node needs. Plain data."""

from __future__ import annotations

from hami.core.objects import ContainerStatus, Pod, PodStatus


class NodeContainerStatus(ContainerStatus, frozen=True, kw_only=True):
    """One container, with its name at the container runtime."""

    container_id: str | None = None


class NodePodStatus(PodStatus, frozen=True, kw_only=True):
    """How far the pod has come, container by container."""

    container_statuses: list[NodeContainerStatus] | None = None


class NodePod(Pod, frozen=True, kw_only=True):
    """A pod of this node."""

    status: NodePodStatus = NodePodStatus()

    def container_id(self, name: str) -> str:
        """The runtime's id of the container that runs under this name; empty: not known."""
        for status in self.status.container_statuses or ():
            if status.name == name and status.container_id:
                return status.container_id.rpartition("://")[2]
        return ""
