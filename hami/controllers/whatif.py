"""What if this pod were created now: where it would go, how many more, what is in the way.

The manifest is admitted as the webhook would admit it, then placed copy by copy on a duplicate of
the allocation cache, in a worker thread. So there is no side effect to be taken back: the duplicate
is thrown away. Looks at devices, quotas and the node selector; affinity, taints, CPU and memory are
the scheduler's to judge, which an answer says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import anyio
import anyio.to_thread
import msgspec

from hami.controllers.answers import Move, Near, Question, Refusal, Replica, WhatIf
from hami.controllers.explain import given_devices, near_of, pods_to_end, reasons_of
from hami.controllers.extender import rank
from hami.controllers.pending import notes_of
from hami.core import preemption, whatif
from hami.core.admission import Rules, admitted
from hami.core.allocation import Allocation
from hami.core.cache import AllocationCache
from hami.core.device import PodRequest
from hami.core.objects import Node, Pod
from hami.core.placement import Placer, Ranking
from hami.core.request import read_request
from hami.core.telling import Miss, count_reasons, refusal_line
from hami.core.verdict import Verdict
from hami.core.victims import Victim
from hami.errors import CodecError, UnavailableError
from hami.kube.informer import Informer

MAX_REPLICAS: Final = 1000
MAX_MORE: Final = 10_000
"""Counting further copies stops there."""
NEAREST: Final = 5
MAX_WAITING: Final = 8
"""Questions under way; more are sent away."""
FOR_EVER: Final = float("inf")
ELSEWHERE: Final = (
    "affinity, taints, CPU and memory are not looked at: the scheduler has its own say"
)

_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_TEMPLATES: Final = {
    "PodTemplate": ("template",),
    "Deployment": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}
"""Where in an object of the kind its pods are described."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What is to be placed, and where it may go."""

    pod: Pod
    request: PodRequest
    nodes: tuple[str, ...]
    replicas: int


class WhatIfs:
    """Answers questions about pods that do not exist."""

    def __init__(self, cache: AllocationCache, nodes: Informer[Node], *, rules: Rules) -> None:
        self._cache = cache
        self._nodes = nodes
        self._rules = rules
        self._waiting = 0
        self._turn = anyio.CapacityLimiter(1)

    async def answer(self, body: bytes) -> WhatIf:
        """Where the copies of the pod would go.

        Raises:
            CodecError: The question, or what the pod asks for, cannot be read.
            AdmissionError: The webhook would refuse the pod.
            UnavailableError: Too many ask at once.
        """
        if self._waiting >= MAX_WAITING:
            raise UnavailableError(f"what-if: {MAX_WAITING} questions are under way, ask again")
        self._waiting += 1
        try:
            async with self._turn:
                return await self._answer(body)
        finally:
            self._waiting -= 1

    async def _answer(self, body: bytes) -> WhatIf:
        pod, raw, replicas = await anyio.to_thread.run_sync(read_question, body)
        pod = admitted(pod, raw, self._rules)
        name = self._rules.scheduler_name
        if name and pod.spec.scheduler_name != name:
            raise CodecError(
                f"pod {pod.key}: "
                + (
                    f"is for scheduler {pod.spec.scheduler_name[:60]!r}, not for {name!r}"
                    if pod.spec.scheduler_name
                    else "asks for no devices: any node's would do"
                )
            )
        request = read_request(pod, self._rules.vendors, self._rules.defaults)
        if request.empty:
            raise CodecError(f"pod {pod.key}: asks for no devices: any node's would do")
        nodes = self._selected(raw)
        plan = _Plan(pod=pod, request=request, nodes=nodes, replicas=replicas)
        duplicate = self._cache.duplicate()
        return await anyio.to_thread.run_sync(partial(rehearse, duplicate, plan))

    def _selected(self, raw: Mapping[str, Any]) -> tuple[str, ...]:
        """The registered nodes that the pod's node selector allows, by name."""
        wanted = raw["spec"].get("nodeSelector") or {}
        if not isinstance(wanted, dict):
            raise CodecError("spec.nodeSelector: expected a mapping")
        names = sorted(self._cache.table.rows)
        if not wanted:
            return tuple(names)
        found = ((name, self._nodes.get("", name)) for name in names)
        return tuple(
            name
            for name, node in found
            if node is not None and wanted.items() <= (node.metadata.labels or {}).items()
        )


def read_question(body: bytes) -> tuple[Pod, dict[str, Any], int]:
    """The pod, decoded and as it came, and how many of it.

    Raises:
        CodecError: The body is not what it should be.
    """
    try:
        question = msgspec.json.decode(body, type=Question)
        manifest = msgspec.json.decode(question.pod)
    except _DECODE_ERRORS as error:
        raise CodecError(f"what-if: expected {{pod, replicas}}, met {error}") from error
    if not 1 <= question.replicas <= MAX_REPLICAS:
        raise CodecError(f"replicas: expected 1 to {MAX_REPLICAS}, met {question.replicas}")
    raw = _template(manifest)
    try:
        pod = msgspec.convert(raw, Pod)
    except _DECODE_ERRORS as error:
        raise CodecError(f"pod: expected a pod's manifest, met {error}") from error
    return pod, raw, question.replicas


def _template(manifest: object) -> dict[str, Any]:
    """The pod in a manifest, with a name and a namespace."""
    if not isinstance(manifest, dict):
        raise CodecError("pod: expected a manifest, met none")
    kind = manifest.get("kind", "Pod")
    found: object = manifest
    if kind != "Pod":
        if not isinstance(kind, str) or kind not in _TEMPLATES:
            known = ", ".join(("Pod", *_TEMPLATES))
            raise CodecError(f"pod: kind: expected one of {known}, met {str(kind)[:60]!r}")
        for step in _TEMPLATES[kind]:
            found = found.get(step) if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(found.get("spec"), dict):
        raise CodecError(f"pod: expected a {str(kind)[:60]} with a pod's spec, met none")
    own, outer = (_metadata(part) for part in (found, manifest))
    name = own.get("name") or outer.get("name") or own.get("generateName") or "what-if"
    namespace = own.get("namespace") or outer.get("namespace") or "default"
    return {**found, "metadata": {**own, "name": name, "namespace": namespace, "uid": ""}}


def _metadata(part: Mapping[str, Any]) -> dict[str, Any]:
    metadata = part.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise CodecError("pod: metadata: expected a mapping")
    return metadata


def rehearse(cache: AllocationCache, plan: _Plan) -> WhatIf:
    """Place the copies one after the other, for good, on a cache that is nobody's truth."""
    placer = Placer(cache.table)
    placed: list[Replica] = []
    ranking = rank(cache, placer, plan.pod, plan.request, plan.nodes)
    while ranking.best is not None and len(placed) < plan.replicas:
        placed.append(_place(cache, placer, plan, ranking.best, number=len(placed)))
        if len(placed) < plan.replicas:
            ranking = rank(cache, placer, plan.pod, plan.request, plan.nodes)
    if len(placed) < plan.replicas:
        return _answer(plan, placed, refusal=_refusal(cache, placer, plan, ranking))
    limit = _copies_within_quota(cache, plan, _uid(len(placed) - 1))
    more = whatif.copies(cache.table, plan.request, plan.nodes, limit=limit)
    return _answer(plan, placed, more=min(sum(more.values()), limit))


def _copies_within_quota(cache: AllocationCache, plan: _Plan, last: str) -> int:
    """How many more the namespace may have, each counted as the last one was."""
    room, own = cache.quotas.room(plan.pod.metadata.namespace), cache.get(last)
    most = MAX_MORE
    if room is None or own is None:
        return most
    for ceiling, left in room.left:
        amount = own.use.get(ceiling.vendor)
        each = 0 if amount is None else amount.of(ceiling.kind)
        if each:
            most = min(most, max(left, 0) // each)
    return most


def _answer(
    plan: _Plan, placed: list[Replica], *, more: int = 0, refusal: Refusal | None = None
) -> WhatIf:
    return WhatIf(
        pod=plan.pod.key,
        asked=plan.replicas,
        placed=tuple(placed),
        more=min(more, MAX_MORE),
        more_is_bound=more >= MAX_MORE,
        refusal=refusal,
        notes=(ELSEWHERE,),
    )


def _place(
    cache: AllocationCache, placer: Placer, plan: _Plan, node: str, *, number: int
) -> Replica:
    room = cache.quotas.room(plan.pod.metadata.namespace)
    choice = placer.choose(plan.request, node, room=room)
    if isinstance(choice, Verdict):
        raise CodecError(f"node {node}: fits by its rank and not by its devices: {choice}")
    meta = plan.pod.metadata
    allocation = Allocation(
        uid=_uid(number),
        namespace=meta.namespace,
        name=meta.name,
        node=node,
        containers=choice.containers,
        roles=plan.request.roles,
    )
    cache.hold(allocation, expires_at=FOR_EVER)
    return Replica(node=node, devices=given_devices(allocation, plan.pod))


def _uid(number: int) -> str:
    """No pod's: uids of pods hold no blank."""
    return f"what if {number}"


def _is_ours(uid: str) -> bool:
    return " " in uid


def _refusal(cache: AllocationCache, placer: Placer, plan: _Plan, ranking: Ranking) -> Refusal:
    """Why the next copy fits nowhere, and which pods are in its way."""
    verdicts = placer.nearest(plan.request, plan.nodes, count=NEAREST)
    misses = tuple(map(Miss.of, verdicts))
    reasons = count_reasons(ranking.failed.values())
    notes = notes_of(ranking.failed)
    return Refusal(
        message=refusal_line(len(plan.nodes), reasons, misses, notes),
        reasons=reasons_of(reasons),
        nearest=tuple(_near(cache, plan, miss) for miss in misses),
        move=_move(cache, plan),
    )


def _move(cache: AllocationCache, plan: _Plan) -> Move | None:
    """The fewest pods of one node without which the copy fits; of equal sets the least memory."""
    on_node: dict[str, list[Victim]] = {}
    for held in cache.reservations():
        own = held.allocation
        if not _is_ours(own.uid):
            victim = Victim(uid=own.uid, pod=own.pod, priority=0, started=0.0, charges=held.charges)
            on_node.setdefault(own.node, []).append(victim)
    allowed = {node: on_node[node] for node in plan.nodes if node in on_node}
    found = preemption.choose(cache.table, plan.request, 1, allowed)
    if found is None or not found.victims:
        return None
    return Move(node=found.node, pods=tuple(victim.pod for victim in found.victims))


def _near(cache: AllocationCache, plan: _Plan, miss: Miss) -> Near:
    held = [r for r in cache.reservations(miss.node) if not _is_ours(r.allocation.uid)]
    return near_of(miss, pods_to_end(cache, plan.request, miss.node, held))
