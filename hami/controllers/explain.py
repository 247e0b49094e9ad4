"""Why pods wait: the book of pending pods, put into an answer when somebody asks.

What the last decision found is repeated as it was found; what would have to end for the pod to fit
is worked out now, on copies of a few rows, in bounded work between which others get their turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import anyio.lowlevel

from hami.controllers.answers import (
    Explanation,
    Explanations,
    Given,
    Lack,
    Near,
    Problem,
    Reason,
)
from hami.controllers.pending import Decision, Entry, PendingPods
from hami.core import whatif
from hami.core.allocation import Allocation
from hami.core.cache import AllocationCache, Reservation, State
from hami.core.device import PodRequest
from hami.core.objects import Pod
from hami.core.telling import Miss
from hami.kube.informer import Informer

LISTED: Final = 1000
"""Pods in one answer; the rest is counted."""
LISTED_AT_ONCE: Final = 100
PODS_NAMED: Final = 10
PODS_TRIED: Final = 256
"""Pods of a node that are thought away, those that hold most first."""


class Explainer:
    """Answers questions about waiting pods."""

    def __init__(self, pods: Informer[Pod], cache: AllocationCache, pending: PendingPods) -> None:
        self._pods = pods
        self._cache = cache
        self._pending = pending

    async def all(self) -> Explanations:
        """Every pod that waits, as far as it is remembered, without what would have to end."""
        entries = self._pending.entries()
        told: list[Explanation] = []
        for number, entry in enumerate(entries[:LISTED]):
            told.append(_explanation(entry, tuple(map(near_of, entry.decision.nearest))))
            if number % LISTED_AT_ONCE == LISTED_AT_ONCE - 1:
                await anyio.lowlevel.checkpoint()
        return Explanations(pods=tuple(told), left_off=max(0, len(entries) - LISTED))

    async def one(self, namespace: str, name: str) -> Explanation | Problem:
        """Why the pod waits, nearest miss first; else why there is nothing to explain."""
        pod = self._pods.get(namespace, name)
        if pod is None:
            return Problem(error=f"pod {namespace}/{name}: there is no such pod", state="unknown")
        entry = self._pending.get(pod.metadata.uid)
        if entry is None:
            return self._not_waiting(pod)
        near = []
        for miss in entry.decision.nearest:
            near.append(self._near(entry.request, miss))
            await anyio.lowlevel.checkpoint()
        return _explanation(entry, tuple(near))

    def _near(self, request: PodRequest | None, miss: Miss) -> Near:
        if request is None:
            return near_of(miss)
        held = tuple(self._cache.reservations(miss.node))
        return near_of(miss, pods_to_end(self._cache, request, miss.node, held))

    def _not_waiting(self, pod: Pod) -> Problem:
        held = self._cache.get(pod.metadata.uid)
        devices = () if held is None else given_devices(held.allocation, pod)
        if pod.finished:
            return Problem(
                error=f"pod {pod.key}: has ended ({pod.status.phase}), it waits for nothing",
                state="finished",
            )
        if pod.spec.node_name:
            what = "without devices" if held is None else "with the devices below"
            return Problem(
                error=f"pod {pod.key}: is bound to node {pod.spec.node_name} {what}",
                state="bound",
                node=pod.spec.node_name,
                devices=devices,
            )
        if pod.metadata.deletion_timestamp is not None:
            return Problem(error=f"pod {pod.key}: is being deleted", state="finished")
        return Problem(
            error=f"pod {pod.key}: asks for no devices, or belongs to another scheduler "
            f"({pod.spec.scheduler_name or 'none named'}): nothing is decided about it here",
            state="not-ours",
        )


def pods_to_end(
    cache: AllocationCache, request: PodRequest, node: str, held: Sequence[Reservation]
) -> list[Reservation] | None:
    """The fewest of these that would have to end for the pod to fit the node: one if one does.

    Else those that hold most are taken away until it fits, and each that proves needless stays.
    Empty where it fits as it is; None where it does not even without all of them.
    """
    held = sorted(held, key=_most_memory_first)[:PODS_TRIED]

    def fits(cases: Sequence[Sequence[Reservation]]) -> list[bool]:
        removed = [[reservation.charges for reservation in case] for case in cases]
        return [bool(f) for f in whatif.fits_without(cache.table, request, node, removed)]

    as_it_is, without_all, *without_one = fits([[], held, *([one] for one in held)])
    if as_it_is:
        return []
    alone = [one for one, enough in zip(held, without_one, strict=True) if enough]
    if alone:
        return [alone[-1]]  # of those that hold enough the one that holds least
    if not without_all:
        return None
    ending = held[: _least(len(held), lambda count: fits([held[:count]])[0])]
    for candidate in tuple(ending[:PODS_NAMED]):
        rest = [other for other in ending if other is not candidate]
        if fits([rest])[0]:
            ending = rest
    return ending


def _least(most: int, enough: Callable[[int], bool]) -> int:
    """The least number that is enough, where ``most`` is."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _most_memory_first(reservation: Reservation) -> tuple[int, str]:
    held = sum(charge.memory for charge in reservation.charges.values())
    return (-held, reservation.allocation.pod)


def _key(reservation: Reservation) -> str:
    return reservation.allocation.pod


def _words(ending: Sequence[Reservation]) -> str:
    match len(ending):
        case 0:
            return "fits now"
        case 1 if ending[0].state is State.HELD:
            return f"would fit if pod {_key(ending[0])}, for which it is held, went elsewhere"
        case 1:
            return f"would fit if pod {_key(ending[0])} ended"
        case number:
            return f"would fit if {number} pods ended"


def _explanation(entry: Entry, near: tuple[Near, ...]) -> Explanation:
    decision = entry.decision
    return Explanation(
        pod=f"{entry.ref.namespace}/{entry.ref.name}",
        uid=entry.ref.uid,
        state=decision.outcome.value,
        message=decision.message or "no scheduler has asked this controller about it yet",
        priority=-entry.turn.priority,
        decided_at=_time(decision),
        asked_nodes=0 if decision.asked is None else decision.asked.count,
        reasons=reasons_of(decision.reasons),
        nearest=near,
        notes=tuple(entry.notes.values()),
    )


def reasons_of(counted: Sequence[tuple[str, int]]) -> tuple[Reason, ...]:
    """The same in JSON's shape."""
    return tuple(Reason(word=word, nodes=nodes) for word, nodes in counted)


def near_of(miss: Miss, ending: Sequence[Reservation] | None = None) -> Near:
    """The miss in JSON's shape, with the pods that would have to end."""
    return Near(
        node=miss.node,
        container=miss.container,
        line=str(miss),
        needed=miss.needed,
        fitting=miss.fitting,
        total=miss.total,
        lacks=tuple(
            Lack(
                uuid=device.uuid,
                reason="" if device.reason is None else device.reason.value,
                needed=device.needed,
                free=device.free,
                unit=device.unit.value,
            )
            for device in miss.devices
        ),
        would_fit="" if ending is None else _words(ending),
        pods=tuple(map(_key, (ending or ())[:PODS_NAMED])),
    )


def _time(decision: Decision) -> str:
    if not decision.at:
        return ""
    return datetime.fromtimestamp(decision.at, UTC).isoformat(timespec="seconds")


def given_devices(allocation: Allocation, pod: Pod) -> tuple[Given, ...]:
    """What each of the pod's containers is given."""
    names = [container.name for container, _ in pod.containers()]
    return tuple(
        Given(
            container=names[position] if position < len(names) else str(position),
            uuid=device.uuid,
            vendor=device.vendor,
            memory=device.memory,
            cores=device.cores,
        )
        for position, devices in enumerate(allocation.containers)
        for device in devices
    )
