"""Invents the history that is recorded: a day in a small cluster, the same for the same seed."""

from __future__ import annotations

import copy
from random import Random
from typing import Any, Final

from hami.core import codec
from tests.replay.player import Decision, Player, Step, encode
from tests.support import builders
from tests.support.controller import node_object, pod_object, quota_object

SEED: Final = 20_001
STEPS: Final = 500
NODES: Final = tuple(f"n{i}" for i in range(6))
GPU, MEMORY, CORES = "nvidia.com/gpu", "nvidia.com/gpumem", "nvidia.com/gpucores"

Object = dict[str, Any]


class History:
    """Draws steps and lets a player decide them."""

    def __init__(self, seed: int = SEED) -> None:
        self._chance = Random(seed)
        self._player = Player()
        self._pods: dict[str, Object] = {}
        self._number = 0
        self.lines: list[bytes] = []
        self.decided: list[tuple[Step, Decision]] = []

    def write(self, steps: int = STEPS) -> list[bytes]:
        """The lines of so many steps."""
        for number, node in enumerate(NODES):
            self._take({"see": _node(node, devices=4 if number % 2 else 8)})
        self._take({"see": {**quota_object("all", memory=400_000), "kind": "ResourceQuota"}})
        while len(self.lines) < steps:
            self._draw()
        return self.lines

    def _draw(self) -> None:
        dice = self._chance.random()
        if dice < 0.55:
            self._schedule_a_new_one()
        elif dice < 0.80 and self._pods:
            self._end(self._chance.choice(sorted(self._pods)))
        elif dice < 0.88:
            self._take({"wait": self._chance.choice((0.5, 3.0, 20.0))})
        elif dice < 0.95:
            name = self._chance.choice(NODES)
            devices = self._chance.choice((2, 4, 8))
            self._take({"see": _node(name, devices=devices, cordoned=self._chance.random() < 0.3)})
        else:
            name = self._chance.choice(NODES)
            self._take({"gone": ["Node", "", name]})
            self._take({"see": _node(name, devices=8)})

    def _schedule_a_new_one(self) -> None:
        pod = self._new_pod()
        name = pod["metadata"]["name"]
        self._pods[name] = pod
        self._take({"see": pod})
        nodes = self._chance.sample(NODES, self._chance.randint(2, len(NODES)))
        decision = self._take({"filter": {"pod": name, "nodes": nodes}})
        feasible = decision.get("nodes")
        if not feasible or self._chance.random() < 0.1:
            return
        best = max(feasible, key=lambda node: (decision["scores"][node], node))
        node = best if self._chance.random() < 0.8 else self._chance.choice(feasible)
        bound = self._take({"bind": {"pod": name, "node": node}})
        if "record" in bound and self._chance.random() < 0.9:
            pod["metadata"]["annotations"] |= bound["record"]
            pod["spec"]["nodeName"] = node
            self._take({"see": pod})

    def _end(self, name: str) -> None:
        pod = self._pods.pop(name)
        if self._chance.random() < 0.5 and pod["spec"].get("nodeName"):
            self._take({"see": {**pod, "status": {"phase": "Succeeded"}}})
        self._take({"gone": ["Pod", "default", name]})

    def _take(self, step: Step) -> Decision:
        decision = self._player.take(step)
        self.lines.append(encode(step, decision))
        self.decided.append((copy.deepcopy(step), decision))
        return decision

    def _new_pod(self) -> Object:
        chance = self._chance
        self._number += 1
        shape: dict[str, Any] = chance.choice(
            (
                {"memory": chance.choice((1000, 4000, 12_000))},
                {"memory": 2000, "cores": chance.choice((10, 50))},
                {"memory": None, "cores": 100},
                {"gpus": chance.choice((2, 4)), "memory": 6000},
                {"gpus": 2, "memory": 3000, "containers": 2},
            )
        )
        pod = pod_object(f"p{self._number}", **shape)
        pod["metadata"] |= {"uid": f"uid-{self._number}", "annotations": self._policies()}
        if chance.random() < 0.2:
            first = pod_object("x", memory=8000)["spec"]["containers"][0]
            always = {"restartPolicy": "Always"} if chance.random() < 0.5 else {}
            pod["spec"]["initContainers"] = [{**first, "name": "before", **always}]
        return pod

    def _policies(self) -> dict[str, str]:
        chance, found = self._chance, {}
        if chance.random() < 0.5:
            found[codec.NODE_POLICY_KEY] = chance.choice(("binpack", "spread"))
        if chance.random() < 0.5:
            found[codec.DEVICE_POLICY_KEY] = chance.choice(("binpack", "spread", "mutex"))
        if chance.random() < 0.1:
            found["nvidia.com/numa-bind"] = "true"
        return found


def _node(name: str, *, devices: int, cordoned: bool = False) -> Object:
    notes = {codec.CORDON_KEY: f"GPU-{name}-0"} if cordoned else {}
    node = node_object(name, builders.make_devices(devices, prefix=f"GPU-{name}"))
    node["metadata"] |= {"uid": f"uid-{name}"}
    node["metadata"]["annotations"] |= notes
    return node
