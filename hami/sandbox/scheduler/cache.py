"""What each node has and what of it is taken: the scheduler's view of the cluster.

Owns the sums. A pod that was given to a node counts from that moment (it is assumed), not only once
the API server says so; it is forgotten again where binding it failed. No I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hami.sandbox.scheduler.objects import Amounts, Node, Pod, add


@dataclass(slots=True, kw_only=True)
class NodeInfo:
    """One node and the pods on it; ``node`` is None while only its pods are known."""

    node: Node | None = None
    pods: dict[str, Pod] = field(default_factory=dict)
    requested: Amounts = field(default_factory=dict)
    used: Amounts = field(default_factory=dict)

    def put(self, pod: Pod) -> None:
        """The pod takes its share."""
        self.pods[pod.uid] = pod
        self.requested = add(self.requested, pod.requests)
        self.used = add(self.used, pod.used)

    def take(self, uid: str) -> None:
        """The pod gives its share back."""
        pod = self.pods.pop(uid)
        self.requested = add(self.requested, pod.requests, sign=-1)
        self.used = add(self.used, pod.used, sign=-1)


class Cache:
    """All nodes, and the pods that are given to them."""

    def __init__(self) -> None:
        self._infos: dict[str, NodeInfo] = {}
        self._places: dict[str, str] = {}
        self._assumed: set[str] = set()

    def nodes(self) -> list[NodeInfo]:
        """The nodes that exist, in the order they appeared."""
        return [info for info in self._infos.values() if info.node is not None]

    def set_node(self, node: Node) -> None:
        """The node is there, or changed."""
        self._infos.setdefault(node.name, NodeInfo()).node = node

    def remove_node(self, name: str) -> None:
        """The node is gone; its pods may follow later."""
        info = self._infos.get(name)
        if info is not None:
            info.node = None
            self._sweep(name)

    def assume(self, pod: Pod, node: str) -> None:
        """The pod goes to the node, if binding succeeds."""
        self._place(pod, node)
        self._assumed.add(pod.uid)

    def is_assumed(self, uid: str) -> bool:
        """Whether the pod was given to a node and the API server does not say so yet."""
        return uid in self._assumed

    def confirm(self, pod: Pod) -> None:
        """The API server says that the pod is on its node."""
        assert pod.spec.node_name is not None
        self._place(pod, pod.spec.node_name)
        self._assumed.discard(pod.uid)

    def forget(self, uid: str) -> None:
        """The pod is on no node any more, or was not bound after all."""
        self._assumed.discard(uid)
        node = self._places.pop(uid, None)
        if node is not None:
            self._infos[node].take(uid)
            self._sweep(node)

    def _place(self, pod: Pod, node: str) -> None:
        place = self._places.get(pod.uid)
        if place is not None:
            self._infos[place].take(pod.uid)
            self._sweep(place)
        self._places[pod.uid] = node
        self._infos.setdefault(node, NodeInfo()).put(pod)

    def _sweep(self, name: str) -> None:
        info = self._infos[name]
        if info.node is None and not info.pods:
            del self._infos[name]
