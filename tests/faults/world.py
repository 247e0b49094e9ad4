"""The cluster around the controller: users, node agents and kubelets that do as chance tells them.

Everything happens in the API server's store at once, without a request, so that no fault touches
it. The names are few, so that pods come back under a name that was used before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from hami.core import codec
from hami.core.device import Device
from hami.sandbox.apiserver.store import Store
from tests.faults import truth
from tests.faults.truth import Card
from tests.support import builders
from tests.support.controller import node_object, pod_object, quota_object

NODES: Final = ("n0", "n1", "n2")
DEVICES: Final = 3
SLOTS: Final = 4
MEMORY: Final = 16_000
NAMES: Final = tuple(f"p{i}" for i in range(30))
GANG: Final = 3
NO_LABELS: Final[Mapping[str, str]] = {}
QUOTA: Final = (100_000, 450)
"""MiB and percent; there are 144 000 and 900."""

Object = dict[str, Any]


@dataclass(kw_only=True)
class World:
    """Three nodes of three small devices, and thirty names for pods that want more than that."""

    store: Store
    chance: Random
    done: Counter[str] = field(default_factory=Counter)
    cards: dict[str, Card] = field(default_factory=dict)
    _removed: set[str] = field(default_factory=set)

    def begin(self) -> None:
        """Create the nodes, and a quota on all pods together."""
        self.store.create(quota_object("all", memory=QUOTA[0], cores=QUOTA[1]))
        for node in NODES:
            self._put_node(node)

    # -- looking ----------------------------------------------------------------------------

    def pods(self) -> list[Object]:
        return self.store.list("pods")

    def nodes(self) -> list[Object]:
        return self.store.list("nodes")

    def waiting(self) -> list[Object]:
        """Pods that wait for a node, the oldest first."""
        found = [pod for pod in self.pods() if not _node_of(pod) and not _is_over(pod)]
        return sorted(found, key=lambda pod: int(pod["metadata"]["labels"]["number"]))

    def truth(self) -> truth.Truth:
        return truth.read(self.pods())

    def breaches(self) -> list[str]:
        return truth.breaches(self.truth(), self.cards, quota=QUOTA)

    # -- pods -------------------------------------------------------------------------------

    def create_pod(self) -> None:
        taken = {pod["metadata"]["name"] for pod in self.pods()}
        free = [name for name in NAMES if name not in taken]
        if free:
            self._create(self.chance.choice(free))

    def create_gang(self) -> None:
        """Three pods that are of use only together."""
        taken = {pod["metadata"]["name"] for pod in self.pods()}
        free = [name for name in NAMES if name not in taken]
        if len(free) >= GANG:
            group = f"gang-{self.done['created']}"
            for name in self.chance.sample(free, GANG):
                self._create(name, labels={codec.POD_GROUP_LABEL: group, "kind": "gang"})

    def recreate_pod(self) -> None:
        """Delete a pod and create another of its name in the same moment."""
        if pod := self._any_pod():
            self._delete(pod)
            self._create(pod["metadata"]["name"])

    def delete_pod(self) -> None:
        """As a user does: one that runs is marked first, and goes when its kubelet says so."""
        pod = self._any_pod()
        if pod is None:
            return
        if _node_of(pod) and not pod["metadata"].get("deletionTimestamp"):
            pod["metadata"]["deletionTimestamp"] = self.store.timestamp()
            pod["metadata"]["deletionGracePeriodSeconds"] = 30
            self.store.update(pod)
        else:
            self._delete(pod)

    def force_delete_pod(self) -> None:
        if pod := self._any_pod():
            self._delete(pod)

    def finish_pod(self) -> None:
        if pod := self._any_pod(bound=True):
            phase = self.chance.choice(("Succeeded", "Failed"))
            pod["status"] = {**pod.get("status", {}), "phase": phase}
            self.store.update(pod)

    def touch_pod(self) -> None:
        """Somebody changes a label, which makes a write under a precondition fail."""
        if pod := self._any_pod(bound=False):
            pod["metadata"]["labels"]["touched"] = str(self.chance.randrange(10**6))
            self.store.update(pod)

    def allocate_all(self) -> None:
        """Every agent gives the pods that were bound to its node what they were promised."""
        for pod in self.allocating():
            outcome = "success" if self.chance.random() < 0.95 else "failed"
            pod["metadata"]["annotations"][truth.BIND_PHASE] = outcome
            pod["status"] = {**pod.get("status", {}), "phase": "Running"}
            if outcome == "failed":
                pod["status"]["phase"] = "Failed"
            self.store.update(pod)

    def allocating(self) -> list[Object]:
        """Pods that were bound and have no devices yet."""
        return [
            pod
            for pod in self.pods()
            if _node_of(pod) and _phase(pod) == "allocating" and not _is_over(pod)
        ]

    def end_inits(self) -> None:
        """The init containers of a pod are over, and what they held is free."""
        for pod in self.pods():
            inits = pod["spec"].get("initContainers")
            if inits and _node_of(pod) and self.chance.random() < 0.5:
                ended = {"terminated": {"exitCode": 0}}
                plain = [c["name"] for c in inits if c.get("restartPolicy") != "Always"]
                statuses = [{"name": name, "state": ended} for name in plain]
                pod["status"] = {**pod.get("status", {}), "initContainerStatuses": statuses}
                self.store.update(pod)

    def make_room(self) -> None:
        """End half of what runs."""
        for pod in self.pods():
            if _node_of(pod) and self.chance.random() < 0.5:
                self._delete(pod)

    # -- nodes ------------------------------------------------------------------------------

    def lose_node(self) -> None:
        """A node leaves; its pods stay for a while, as they do in a cluster."""
        present = {node["metadata"]["name"] for node in self.nodes()}
        if len(present) > 1:
            self.store.delete("nodes", self.chance.choice(sorted(present)))

    def return_nodes(self) -> None:
        """Nodes that left come back with all their devices, without what ran there."""
        present = {node["metadata"]["name"] for node in self.nodes()}
        for name in set(NODES) - present:
            for pod in self.pods():
                if _node_of(pod) == name:
                    self._delete(pod)
            self._put_node(name)

    def lose_device(self) -> None:
        """A node offers fewer devices; what ran on the lost one stays."""
        node = self.chance.choice(self.nodes())
        kept = truth.devices_of(node)
        if len(kept) > 1:
            kept.remove(self.chance.choice(kept))
            self._offer(node, kept)

    def return_devices(self) -> None:
        for node in self.nodes():
            self._offer(node, [f"GPU-{node['metadata']['name']}-{i}" for i in range(DEVICES)])

    def cordon(self) -> None:
        """An operator takes one device out of use, or all back into it."""
        node = self.chance.choice(self.nodes())
        devices = truth.devices_of(node)
        if self.chance.random() < 0.5:
            node["metadata"]["annotations"]["hami.io/device-cordon"] = self.chance.choice(devices)
        else:
            node["metadata"]["annotations"].pop("hami.io/device-cordon", None)
        self.store.update(node)

    def silence_kubelet(self) -> None:
        """A kubelet has no devices to give out, until it has some again."""
        node = self.chance.choice(self.nodes())
        current = node["status"]["allocatable"][truth.COUNT]
        node["status"]["allocatable"][truth.COUNT] = "0" if current != "0" else "12"
        self.store.update(node)

    def heal(self) -> None:
        """Every node is there with everything it has, in working order."""
        self.return_nodes()
        self.return_devices()
        for node in self.nodes():
            node["metadata"]["annotations"].pop("hami.io/device-cordon", None)
            node["status"]["allocatable"][truth.COUNT] = str(DEVICES * SLOTS)
            self.store.update(node)

    # -- how --------------------------------------------------------------------------------

    def _any_pod(self, *, bound: bool | None = None) -> Object | None:
        found = [p for p in self.pods() if bound is None or bool(_node_of(p)) is bound]
        return self.chance.choice(found) if found else None

    def _delete(self, pod: Object) -> None:
        self.store.delete("pods", pod["metadata"]["name"], pod["metadata"]["namespace"])

    def _create(self, name: str, *, labels: Mapping[str, str] = NO_LABELS) -> None:
        self.done["created"] += 1
        kind, pod = self._draw(name)
        number = str(self.done["created"])
        pod["metadata"]["labels"] = {"number": number, "kind": kind, **labels}
        pod["status"] = {"phase": "Pending"}
        self.store.create(pod)

    def _draw(self, name: str) -> tuple[str, Object]:
        """A pod of one of the kinds that are counted differently."""
        memory = self.chance.choice((1000, 2000, 5000))
        kind = self.chance.choice(
            ("small", "cores", "pair", "alone", "percent", "init", "sidecar", "two")
        )
        match kind:
            case "small":
                return kind, pod_object(name, memory=memory)
            case "cores":
                return kind, pod_object(name, memory=memory, cores=self.chance.choice((20, 45)))
            case "pair":
                return kind, pod_object(name, gpus=self.chance.choice((2, 3)), memory=memory)
            case "alone":
                return kind, pod_object(name, memory=memory, cores=100)
            case "percent":
                pod = pod_object(name, memory=None)
                _set_limits(pod["spec"]["containers"][0], {truth.COUNT: "1", truth.PERCENT: "30"})
                return kind, pod
            case "two":
                return kind, pod_object(name, memory=memory, cores=10, containers=2)
            case _:
                pod = pod_object(name, memory=1000)
                first = pod_object(name, memory=4 * memory // 2)["spec"]["containers"][0]
                before = {**first, "name": "before"}
                if kind == "sidecar":
                    before["restartPolicy"] = "Always"
                    pod["spec"]["initContainers"] = [before, {**first, "name": "setup"}]
                else:
                    pod["spec"]["initContainers"] = [before]
                return kind, pod

    def _put_node(self, name: str) -> None:
        devices = self._devices(name)
        self.cards |= {d.uuid: Card(slots=d.slots, memory=d.memory) for d in devices}
        self.store.create(node_object(name, devices))

    def _devices(self, node: str) -> tuple[Device, ...]:
        return tuple(
            builders.make_device(f"GPU-{node}-{i}", index=i, slots=SLOTS, memory=MEMORY)
            for i in range(DEVICES)
        )

    def _offer(self, node: Object, uuids: list[str]) -> None:
        devices = [d for d in self._devices(node["metadata"]["name"]) if d.uuid in uuids]
        fresh = node_object(node["metadata"]["name"], devices)
        node["metadata"]["annotations"] |= fresh["metadata"]["annotations"]
        self.store.update(node)


def _set_limits(container: Object, limits: dict[str, str]) -> None:
    container["resources"] = {"limits": limits, "requests": limits}


def _node_of(pod: Object) -> str:
    node: str = pod["spec"].get("nodeName") or ""
    return node


def _phase(pod: Object) -> str:
    phase: str = (pod["metadata"].get("annotations") or {}).get(truth.BIND_PHASE, "")
    return phase


def _is_over(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
