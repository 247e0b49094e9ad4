"""Everything that decides, without a socket and with a clock that is told the time.

What is put in is one step after the other: an object as the watch shows it, an object that is gone,
a question of the scheduler, a bind, or time that passes. What comes out is what was decided. The
same steps must always give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
from prometheus_client import CollectorRegistry

from hami.config import ControllerSettings
from hami.controllers.counters import ControllerCounters
from hami.controllers.extender import Extender
from hami.controllers.gangs import Gangs
from hami.controllers.handlers import NodeHandler, PodHandler
from hami.controllers.nominations import Nominations
from hami.controllers.pending import PendingPods
from hami.controllers.quotahandler import QuotaHandler
from hami.controllers.twins import Twins
from hami.core import codec, record
from hami.core.allocation import Allocation
from hami.core.cache import AllocationCache
from hami.core.device import DevicePolicy, NodePolicy
from hami.core.objects import Node, Pod, ResourceQuota
from hami.core.placement import Placer
from hami.core.request import Defaults, read_request, roles_of
from hami.core.vendors.nvidia import NVIDIA
from hami.core.verdict import Verdict
from hami.errors import HamiError
from hami.kube.watching import Key
from tests.support.builders import VENDORS
from tests.support.silent import Silent

Step = dict[str, Any]
Decision = dict[str, Any]
RESERVED_SECONDS: Final = 60.0
_TYPES: Final = {"Node": Node, "Pod": Pod, "ResourceQuota": ResourceQuota}


class Player:
    """The cache, the placer, the handlers and the extender, connected as in the controller."""

    def __init__(self, *, wall_clock: Callable[[], float] = lambda: 1_700_000_000.0) -> None:
        self.cache = AllocationCache()
        self._now = 0.0
        self._wall_clock = wall_clock
        settings = ControllerSettings()
        counters, recorder = ControllerCounters(CollectorRegistry()), Silent()
        self._defaults = Defaults(
            node_policy=NodePolicy(settings.node_policy),
            device_policy=DevicePolicy.parse(settings.device_policy),
        )
        self._placer = Placer(self.cache.table)
        shared: dict[str, Any] = {"vendors": VENDORS, "recorder": recorder}
        pending = PendingPods(
            self.cache.table,
            self._placer,
            defaults=self._defaults,
            settings=settings,
            wall_clock=wall_clock,
            **shared,
        )
        twins = Twins(patience_seconds=60.0, clock=self._clock)
        gangs = Gangs(
            self.cache, self._placer, read=lambda pod: read_request(pod, VENDORS, self._defaults)
        )
        pod_handler = PodHandler(self.cache, twins, counters=counters, **shared)
        self._handlers: dict[str, tuple[Any, ...]] = {
            "Pod": (pod_handler, pending, gangs),
            "Node": (NodeHandler(self.cache, counters=counters, **shared),),
            "ResourceQuota": (QuotaHandler(self.cache.quotas, counters=counters, **shared),),
        }
        self._extender = Extender(
            self.cache,
            self._placer,
            vendors=VENDORS,
            defaults=self._defaults,
            settings=settings,
            pending=pending,
            gangs=gangs,
            twins=twins,
            nominations=Nominations(
                self.cache,
                on_ready=lambda _: None,
                last_seconds=lambda: settings.hold_seconds,
                clock=self._clock,
            ),
            is_binding=lambda _: False,
            clock=self._clock,
        )
        self._seen: dict[tuple[str, Key], Any] = {}

    def take(self, step: Step) -> Decision:
        """What is decided at this step; nothing where nothing was asked."""
        (what, about), *_ = step.items()
        match what:
            case "see":
                self._see(about)
            case "gone":
                self._forget(*about)
            case "wait":
                self._now += about
                return {"expired": [r.allocation.pod for r in self.cache.expire(self._now)]}
            case "filter":
                return self._filter(self.pod(about["pod"]), tuple(about["nodes"]))
            case "bind":
                return self._bind(self.pod(about["pod"]), about["node"])
            case unknown:
                raise AssertionError(f"a step that nobody knows: {unknown}")
        return {}

    def pod(self, name: str) -> Pod:
        pod: Pod = self._seen["Pod", Key("default", name)]
        return pod

    def _clock(self) -> float:
        return self._now

    def _see(self, raw: Mapping[str, Any]) -> None:
        kind = raw["kind"]
        obj = msgspec.convert(raw, _TYPES[kind])
        key = kind, Key(obj.metadata.namespace, obj.metadata.name)
        old = self._seen.get(key)
        self._seen[key] = obj
        for handler in self._handlers[kind]:
            handler.on_set(obj, old)

    def _forget(self, kind: str, namespace: str, name: str) -> None:
        obj = self._seen.pop((kind, Key(namespace, name)))
        for handler in self._handlers[kind]:
            handler.on_delete(obj)

    def _filter(self, pod: Pod, nodes: tuple[str, ...]) -> Decision:
        try:
            found = self._extender.filter(pod, nodes)
        except HamiError as error:
            return {"error": str(error)}
        feasible = tuple(found.nodes)
        held = self.cache.get(pod.metadata.uid)
        return {
            "nodes": feasible,
            "failed": dict(found.failed or {}),
            "scores": self._extender.prioritize(pod, feasible),
            "held": [held.allocation.node, _text(held.allocation)] if held else None,
        }

    def _bind(self, pod: Pod, node: str) -> Decision:
        """As the binder reserves; that the API server takes it is seen in a later step."""
        uid, namespace = pod.metadata.uid, pod.metadata.namespace
        self.cache.release(uid)
        room = self.cache.quotas.room(namespace)
        request = read_request(pod, VENDORS, self._defaults)
        choice = self._placer.choose(request, node, room=room)
        if isinstance(choice, Verdict):
            return {"refused": str(choice)}
        allocation = Allocation(
            uid=uid,
            namespace=namespace,
            name=pod.metadata.name,
            node=node,
            containers=choice.containers,
            roles=roles_of(pod),
        )
        try:
            self.cache.reserve(
                allocation,
                generation=choice.generation,
                expires_at=self._now + RESERVED_SECONDS,
            )
        except HamiError as error:
            return {"refused": str(error)}
        return {
            "record": record.annotations_for(
                allocation, VENDORS, now_seconds=int(self._wall_clock()), scheduled_by="replay/0"
            )
        }


def _text(allocation: Allocation) -> str:
    return codec.encode_allocation(allocation.containers, NVIDIA.name)


def encode(step: Step, decision: Decision) -> bytes:
    """One line of a recording."""
    return msgspec.json.encode([step, decision], order="deterministic")


def replayed(lines: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Each line of a recording, and what the same step gives now."""
    player = Player()
    for line in lines:
        step: Step = msgspec.json.decode(line)[0]
        yield line, encode(step, player.take(step))
