"""What is true of a cluster, read from the API server's objects alone.

A second, small reading of the protocol, on purpose without anything of ``hami``: what the
controller thinks is compared with this, and a mistake of its own reading must not be made here too.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

Object = Mapping[str, Any]
Place = tuple[str, str]
"""Node and device."""
Amount = tuple[int, int, int]
"""Slots, MiB, percent."""

ALLOCATED = "hami.io/vgpu-devices-allocated"
BOUND_TO = "hami.io/vgpu-node"
BIND_PHASE = "hami.io/bind-phase"
REGISTER = "hami.io/node-nvidia-register"
COUNT, MEMORY, CORES = "nvidia.com/gpu", "nvidia.com/gpumem", "nvidia.com/gpucores"
PERCENT = "nvidia.com/gpumem-percentage"
WHOLE = 100

NOTHING: Amount = (0, 0, 0)
Share = tuple[int, int]
"""MiB and percent of all devices together, at the peak of a pod's life."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a device has, for as long as there is such a device."""

    slots: int
    memory: int


@dataclass(slots=True, kw_only=True)
class Holding:
    """One pod's use of one device."""

    amount: Amount = NOTHING
    alone: bool = False
    """Whether a container that still counts wants the whole device."""


@dataclass(slots=True, kw_only=True)
class Truth:
    """Who holds what."""

    pods: dict[str, dict[Place, Holding]] = field(default_factory=dict)
    """Of each bound pod that has not ended, by namespace/name."""
    shares: dict[str, Share] = field(default_factory=dict)
    """What each of them counts for in its namespace."""
    wrong: list[str] = field(default_factory=list)

    def shared(self) -> Share:
        """What the namespace has."""
        return sum(m for m, _ in self.shares.values()), sum(c for _, c in self.shares.values())

    def used(self) -> dict[Place, Amount]:
        total: dict[Place, Amount] = defaultdict(lambda: NOTHING)
        for holdings in self.pods.values():
            for place, holding in holdings.items():
                total[place] = _plus(total[place], holding.amount)
        return dict(total)


def read(pods: Iterable[Object]) -> Truth:
    """The truth of these pods."""
    truth = Truth()
    for pod in pods:
        node = pod["spec"].get("nodeName")
        if not node or pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            continue
        meta = pod["metadata"]
        key = f"{meta['namespace']}/{meta['name']}"
        notes = meta.get("annotations") or {}
        if notes.get(BOUND_TO) != node:
            truth.wrong.append(f"{key} is bound to {node} with a record for {notes.get(BOUND_TO)}")
        if not notes.get(ALLOCATED):
            truth.wrong.append(f"{key} is bound to {node} without a record of its devices")
        truth.pods[key] = _holdings(pod, node, notes.get(ALLOCATED, ""))
        truth.shares[key] = _share(pod, notes.get(ALLOCATED, ""))
    return truth


def breaches(truth: Truth, cards: Mapping[str, Card], *, quota: Share | None = None) -> list[str]:
    """Which law is broken: over memory, cores, slots or quota, or not alone where needed."""
    wrong = list(truth.wrong)
    have = truth.shared()
    if quota is not None and (have[0] > quota[0] or have[1] > quota[1]):
        wrong.append(f"the quota is {quota} and {have} is used: {truth.shares}")
    for place, (slots, memory, cores) in truth.used().items():
        card = cards[place[1]]
        if slots > card.slots or memory > card.memory or cores > WHOLE:
            wrong.append(
                f"{place} holds {slots} slots, {memory} MiB, {cores} % and has {card}: "
                f"{_sharers(truth, place)}"
            )
    for key, holdings in truth.pods.items():
        for place, holding in holdings.items():
            if holding.alone and len(_sharers(truth, place)) > 1:
                wrong.append(f"{key} is not alone on {place}: {_sharers(truth, place)}")
    return wrong


def counted(truth: Truth, nodes: Iterable[Object]) -> dict[Place, Amount]:
    """What of it a controller counts: on devices that nodes offer today."""
    offered = {(node["metadata"]["name"], uuid) for node in nodes for uuid in devices_of(node)}
    return {place: amount for place, amount in truth.used().items() if place in offered}


def devices_of(node: Object) -> list[str]:
    """The devices that a node has registered."""
    text = (node["metadata"].get("annotations") or {}).get(REGISTER, "[]")
    return [device["id"] for device in json.loads(text)]


def surely_fits(
    pod: Object,
    nodes: Iterable[Object],
    truth: Truth,
    cards: Mapping[str, Card],
    *,
    quota: Share,
) -> str | None:
    """A node that can take the pod, whatever devices are chosen for its containers; None if unsure.

    A pod of one container fits where enough devices have room. One of several is only sure of a
    node where enough devices are empty for all of its containers side by side.
    """
    used = truth.used()
    containers = _containers(pod)
    largest = max(card.memory for card in cards.values())
    have = truth.shared()
    memory = sum(_asked(c, COUNT) * _memory_asked(c, largest) for c, _ in containers)
    cores = sum(_asked(c, COUNT) * _asked(c, CORES) for c, _ in containers)
    if have[0] + memory > quota[0] or have[1] + cores > quota[1]:
        return None
    for node in nodes:
        name: str = node["metadata"]["name"]
        uuids = [uuid for uuid in devices_of(node) if _is_usable(node, uuid)]
        empty = [uuid for uuid in uuids if used.get((name, uuid), NOTHING) == NOTHING]
        if len(empty) >= sum(_asked(c, COUNT) for c, _ in containers):
            return name
        if len(containers) > 1:
            continue
        container = containers[0][0]
        free = [u for u in uuids if _has_room(container, used.get((name, u), NOTHING), cards[u])]
        if next(combinations(free, _asked(container, COUNT)), None) is not None:
            return name
    return None


def _is_usable(node: Object, uuid: str) -> bool:
    cordoned = (node["metadata"].get("annotations") or {}).get("hami.io/device-cordon", "")
    allocatable = node.get("status", {}).get("allocatable", {}).get(COUNT, "0")
    return uuid not in cordoned.split(",") and allocatable != "0"


def _has_room(container: Object, used: Amount, card: Card) -> bool:
    slots, memory, cores = used
    wanted = _asked(container, CORES)
    if wanted == WHOLE and slots:
        return False
    asked = _asked(container, MEMORY) or card.memory * (_asked(container, PERCENT) or WHOLE) // 100
    return slots < card.slots and memory + asked <= card.memory and cores + max(wanted, 1) <= WHOLE


def _memory_asked(container: Object, whole: int) -> int:
    return _asked(container, MEMORY) or whole * (_asked(container, PERCENT) or WHOLE) // 100


def _asked(container: Object, name: str) -> int:
    """A limit; a server that has rewritten the pod shows thousands as ``3k``."""
    text = str(container["resources"]["limits"].get(name, 0))
    return int(text[:-1]) * 1000 if text.endswith("k") else int(text)


def _share(pod: Object, text: str) -> Share:
    """The most the pod has of all devices together at one time, from now to its end."""
    most = beside = (0, 0)
    inits_over = _inits_over(pod)
    for (_, role), part in zip(_containers(pod), text.split(";"), strict=False):
        if role == "init" and inits_over:
            continue
        given = [entry.split(",")[:4] for entry in part.split(":") if entry]
        now = (
            beside[0] + sum(int(memory) for _, _, memory, _ in given),
            beside[1] + sum(int(cores) for _, _, _, cores in given),
        )
        most = max(most[0], now[0]), max(most[1], now[1])
        beside = beside if role == "init" else now
    return most


def _holdings(pod: Object, node: str, text: str) -> dict[Place, Holding]:
    """The most the pod holds of each device at one time, from now to its end."""
    most: dict[Place, Holding] = defaultdict(Holding)
    beside: dict[Place, Amount] = defaultdict(lambda: NOTHING)
    parts = [part.split(":") for part in text.split(";")]
    inits_over = _inits_over(pod)
    for (_, role), part in zip(_containers(pod), parts, strict=False):
        if role == "init" and inits_over:
            continue
        own: dict[Place, Amount] = defaultdict(lambda: NOTHING)
        for uuid, _, memory, cores in (entry.split(",")[:4] for entry in part if entry):
            place = (node, uuid)
            own[place] = _plus(own[place], (1, int(memory), int(cores)))
            most[place].alone |= int(cores) == WHOLE
        for place, amount in own.items():
            now = _plus(beside[place], amount)
            most[place].amount = _larger(most[place].amount, now)
            if role != "init":
                beside[place] = now
    return dict(most)


def _containers(pod: Object) -> list[tuple[Object, str]]:
    inits = pod["spec"].get("initContainers") or ()
    found = [(c, "sidecar" if c.get("restartPolicy") == "Always" else "init") for c in inits]
    return [*found, *((c, "app") for c in pod["spec"]["containers"])]


def _inits_over(pod: Object) -> bool:
    statuses = pod.get("status", {}).get("initContainerStatuses") or ()
    over = {
        s["name"]
        for s in statuses
        if (s.get("state") or {}).get("terminated", {}).get("exitCode") == 0
    }
    inits = [c["name"] for c, role in _containers(pod) if role == "init"]
    return bool(inits) and over.issuperset(inits)


def _sharers(truth: Truth, place: Place) -> dict[str, Amount]:
    return {k: held[place].amount for k, held in truth.pods.items() if place in held}


def _plus(one: Amount, other: Amount) -> Amount:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _larger(one: Amount, other: Amount) -> Amount:
    return max(one[0], other[0]), max(one[1], other[1]), max(one[2], other[2])
