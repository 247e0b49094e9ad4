"""The law of the handlers: what the cache holds depends on what is, not on what happened.

Random histories of pods and nodes are told to one pair of handlers, event by event, some of them
twice; what is left at the end is told to a fresh pair. Both caches must agree: that is a restart.
"""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from hami.controllers.counters import ControllerCounters
from hami.controllers.handlers import NodeHandler, PodHandler
from hami.controllers.twins import Twins
from hami.core import codec
from hami.core.cache import AllocationCache
from hami.core.objects import Node, Pod
from hami.core.vendors.nvidia import NVIDIA
from tests.support.builders import VENDORS
from tests.support.controller import gpus, node_object, pod_object
from tests.support.silent import Silent

NODES = ("n0", "n1")


class Watcher:
    """A cache with its handlers, told like an informer tells them."""

    def __init__(self) -> None:
        self.cache = AllocationCache()
        self.pods: dict[str, Pod] = {}
        self.nodes: dict[str, Node] = {}
        self.twins = Twins(patience_seconds=60)
        counters = ControllerCounters(CollectorRegistry())
        self._pod = PodHandler(
            self.cache, self.twins, vendors=VENDORS, recorder=Silent(), counters=counters
        )
        self._node = NodeHandler(self.cache, vendors=VENDORS, recorder=Silent(), counters=counters)

    def set_pod(self, pod: Pod) -> None:
        self._pod.on_set(pod, self.pods.get(pod.metadata.name))
        self.pods[pod.metadata.name] = pod

    def set_node(self, node: Node) -> None:
        self._node.on_set(node, self.nodes.get(node.name))
        self.nodes[node.name] = node

    def delete_pod(self, name: str) -> None:
        if name in self.pods:
            self._pod.on_delete(self.pods.pop(name))

    def delete_node(self, name: str) -> None:
        if name in self.nodes:
            self._node.on_delete(self.nodes.pop(name))

    def state(self) -> dict[str, Any]:
        """Everything that decides what the next pod gets."""
        table = self.cache.table
        return {
            **{name: (table.devices(name), table.used(name)) for name in table.rows},
            "pods": {
                r.allocation.uid: (r.allocation, dict(r.charges)) for r in self.cache.reservations()
            },
            "quotas": self.cache.quotas.used("default"),
            "in flight": len(self.twins),
        }


devices = st.builds(
    lambda node, index, memory, cores: f"GPU-{node}-{index},NVIDIA,{memory},{cores}:",
    st.sampled_from(NODES),
    st.integers(0, 2),
    st.integers(0, 9000),
    st.integers(0, 100),
)
records = st.lists(st.lists(devices, max_size=2).map("".join), max_size=3).map(
    lambda parts: "".join(f"{part};" for part in parts)
)


@st.composite
def pods(draw: st.DrawFn) -> Pod:
    name = draw(st.sampled_from(["a", "b", "c"]))
    pod = pod_object(name, containers=2)
    pod["metadata"]["uid"] = f"{name}-{draw(st.integers(0, 1))}"
    annotated = draw(st.none() | st.sampled_from(NODES))
    if annotated:
        phase = draw(st.sampled_from(["allocating", "success", "failed"]))
        pod["metadata"]["annotations"] = {
            codec.NODE_KEY: annotated,
            codec.BIND_PHASE_KEY: phase,
            NVIDIA.allocated_key: draw(records),
        }
    if bound := draw(st.none() | st.sampled_from(NODES)):
        pod["spec"]["nodeName"] = bound
    if draw(st.booleans()):
        first = pod["spec"]["containers"][0]
        pod["spec"]["initContainers"] = [{**first, "name": "init"}]
        ended = draw(st.booleans())
        state = {"terminated": {"exitCode": 0}} if ended else {}
        pod["status"] = {"initContainerStatuses": [{"name": "init", "state": state}]}
    phase = draw(st.sampled_from(["Pending", "Running", "Succeeded", "Failed"]))
    pod["status"] = {**pod.get("status", {}), "phase": phase}
    return msgspec.convert(pod, Pod)


@st.composite
def nodes(draw: st.DrawFn) -> Node:
    name = draw(st.sampled_from(NODES))
    count = draw(st.integers(0, 3))
    node = node_object(name, gpus(name, count) if count else ())
    if draw(st.booleans()):
        node["status"]["allocatable"] = {}
    if draw(st.booleans()):
        node["metadata"]["annotations"][codec.CORDON_KEY] = f"GPU-{name}-0"
    return msgspec.convert(node, Node)


events = st.one_of(
    st.tuples(st.just("set pod"), pods()),
    st.tuples(st.just("set node"), nodes()),
    st.tuples(st.just("delete pod"), st.sampled_from(["a", "b", "c"])),
    st.tuples(st.just("delete node"), st.sampled_from(NODES)),
)


def tell(watcher: Watcher, event: tuple[str, Any]) -> None:
    what, about = event
    match what:
        case "set pod":
            known = watcher.pods.get(about.metadata.name)
            if known is not None and known.metadata.uid != about.metadata.uid:
                watcher.delete_pod(about.metadata.name)
            elif known is not None and known.spec.node_name and not about.spec.node_name:
                return  # no API server lets go of a pod that it has bound
            watcher.set_pod(about)
        case "set node":
            watcher.set_node(about)
        case "delete pod":
            watcher.delete_pod(about)
        case "delete node":
            watcher.delete_node(about)


@given(st.lists(st.tuples(events, st.booleans()), max_size=20), st.randoms(use_true_random=False))
def test_any_history_ends_in_the_cache_that_a_restart_builds(
    history: list[tuple[tuple[str, Any], bool]], order: Any
) -> None:
    lived = Watcher()
    for event, twice in history:
        tell(lived, event)
        if twice:
            before = lived.state()
            tell(lived, event)
            assert lived.state() == before, "telling the same again changes nothing"

    fresh = Watcher()
    left = [("set pod", pod) for pod in lived.pods.values()]
    left += [("set node", node) for node in lived.nodes.values()]  # type: ignore[misc]
    order.shuffle(left)
    for what in left:
        tell(fresh, what)

    assert fresh.state() == lived.state()
