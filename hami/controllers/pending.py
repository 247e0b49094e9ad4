"""The book of pending pods: who waits, and what was last decided about each.

Fed by the pod watch (who is there), by filter (why a pod fits nowhere) and by bind (what failed).
Everything that people are told about a waiting pod comes from here: its Event, ``hami explain`` and
the order in which pods are called when room comes back. Bounded: of more pods than ``CAPACITY`` the
ones decided on longest ago are forgotten, and known again at their next filter.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

import numpy as np

from hami.config import ControllerSettings
from hami.controllers.waiting import GroupKey, Turn, WaitingLine
from hami.core.device import PodRequest
from hami.core.objects import Pod
from hami.core.request import Defaults, read_request
from hami.core.table import DeviceTable
from hami.core.telling import NOTES_TOLD, Miss, count_reasons, refusal_line
from hami.core.vendor import VendorTable
from hami.core.verdict import Verdict
from hami.errors import CodecError
from hami.kube.events import EventRecorder
from hami.kube.resources import PODS, ObjectRef
from hami.logs import get_logger

log = get_logger(__name__)

CAPACITY: Final = 10_000
"""Pods that are remembered with what was decided about them."""
NEAREST_KEPT: Final = 5
PREEMPTION: Final = "preemption"
"""The topic of notes about who goes for the pod; they are over once it fits."""
MIN_SAMPLE: Final = 100
"""Of fewer feasible nodes kube-scheduler leaves none out; of more it may ask about some only."""


class Outcome(StrEnum):
    """How the last decision about a pod ended."""

    UNASKED = "unasked"
    """The scheduler has not asked about it yet."""
    UNREADABLE = "unreadable"
    """Its request cannot be read."""
    UNFIT = "unfit"
    FITS = "fits"
    """A node was found; the bind is still to come."""
    BIND_FAILED = "bind-failed"


class NearestFinder(Protocol):
    """What is asked of a placer here."""

    def nearest(
        self, request: PodRequest, nodes: Sequence[str], *, count: int
    ) -> tuple[Verdict, ...]:
        """The nodes that come nearest to holding the pod, nearest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The nodes that a scheduler asked about, as marks on the table's rows; small and shareable."""

    count: int
    """With those that have no row."""
    marks: bytes
    layout: int
    """Of the table when the marks were made."""

    @classmethod
    def about(cls, table: DeviceTable, names: tuple[str, ...]) -> Asked:
        """Marks for these nodes."""
        rows = table.rows_of(names)
        marks = np.zeros(len(table), np.bool_)
        marks[rows[rows >= 0]] = True
        return cls(count=len(names), marks=np.packbits(marks).tobytes(), layout=table.layout)

    def names(self, table: DeviceTable) -> tuple[str, ...]:
        """Of all nodes those that count for the pod; see ``among``."""
        return self.among(table, tuple(table.rows))

    def among(self, table: DeviceTable, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the names that may do for the pod: asked about, or with devices only since.

        A scheduler with many nodes asks about a part of them; then all of them count.
        """
        if MIN_SAMPLE <= self.count < len(table.rows):
            return names
        return self._marked(table, names, since=True)

    def alone(self, table: DeviceTable) -> tuple[str, ...]:
        """The nodes that were asked about and no other: those that the scheduler allows."""
        return self._marked(table, tuple(table.rows), since=False)

    def _marked(
        self, table: DeviceTable, names: tuple[str, ...], *, since: bool
    ) -> tuple[str, ...]:
        rows = [table.rows[name] for name in names]
        marks = np.unpackbits(np.frombuffer(self.marks, np.uint8))
        return tuple(
            name
            for name, row in zip(names, rows, strict=True)
            if (since if table.born[row] > self.layout else row < len(marks) and marks[row])
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The last thing that was found about a pod."""

    outcome: Outcome
    at: float = 0.0
    """Unix time."""
    message: str = ""
    """For people, in one line."""
    asked: Asked | None = None
    reasons: tuple[tuple[str, int], ...] = ()
    """Each reason's word with the number of nodes that gave it."""
    nearest: tuple[Miss, ...] = ()
    node: str = ""
    """Where it fits, or where the bind failed."""


_UNASKED: Final = Decision(outcome=Outcome.UNASKED)


@dataclass(slots=True, kw_only=True)
class Entry:
    """One pod that waits."""

    ref: ObjectRef
    request: PodRequest | None
    """None where it cannot be read."""
    turn: Turn
    decision: Decision = _UNASKED
    told: str = ""
    """The last Event's words."""
    calls: int = 0
    """How often the pod was called because there seemed to be room, since a node was found."""
    called_at: float = 0.0
    notes: dict[str, str] = field(default_factory=dict)
    """What other parts have to say of it, by topic: quota, gang, preemption."""
    stuck: bool = False
    """The scheduler says of it that it fits nowhere, whomever it has asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    """What was found for one request in one state of the table."""

    request: PodRequest
    names: tuple[str, ...]
    generation: int
    asked: Asked
    reasons: tuple[tuple[str, int], ...]
    nearest: tuple[Miss, ...]


class PendingPods:
    """Every pod that waits for devices, as far as it is remembered.

    ``on_refused`` is told each pod that fits nowhere; it only takes note.
    """

    def __init__(
        self,
        table: DeviceTable,
        placer: NearestFinder,
        *,
        vendors: VendorTable,
        defaults: Defaults,
        settings: ControllerSettings,
        recorder: EventRecorder,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Nobody waits yet.

        Args:
            table: Of the nodes that are asked about.
            placer: Knows how far nodes are from holding a pod.
            vendors: This site's table.
            defaults: For pods that say nothing.
            settings: Whose pods: those of the scheduler that is named there, if one is.
            recorder: Tells the pods.
            wall_clock: For people to read.
        """
        self.line = WaitingLine()
        self._table = table
        self._placer = placer
        self._vendors = vendors
        self._defaults = defaults
        self._settings = settings
        self._recorder = recorder
        self._wall_clock = wall_clock
        self.on_refused: Callable[[str], None] = lambda _uid: None
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._last: _Refusal | None = None

    def __len__(self) -> int:
        return len(self._entries)

    # -- who is there ------------------------------------------------------------------------

    def on_set(self, pod: Pod, old: Pod | None) -> None:
        """The watch shows the pod."""
        uid = pod.metadata.uid
        if not self._waits(pod):
            self.forget(uid)
            return
        known = self._entries.get(uid)
        if known is not None:
            known.stuck = _is_stuck(pod)
            if old is not None and _asks_the_same(pod, old):
                return
        entry = self._read(pod)
        if entry is None:
            self.forget(uid)
            return
        if known is not None and known.request == entry.request:
            known.turn = entry.turn
            self._line_up(known)
            return
        self._put(entry)

    def on_delete(self, pod: Pod) -> None:
        """The pod is gone."""
        self.forget(pod.metadata.uid)

    def forget(self, uid: str) -> None:
        """The pod waits no longer. Idempotent."""
        if self._entries.pop(uid, None) is not None:
            self.line.discard(uid)

    def get(self, uid: str) -> Entry | None:
        """What is known of the pod."""
        return self._entries.get(uid)

    def entries(self) -> tuple[Entry, ...]:
        """Everybody, in the order of their turns."""
        return tuple(sorted(self._entries.values(), key=lambda entry: entry.turn))

    # -- what is decided ---------------------------------------------------------------------

    def refused(
        self, pod: Pod, request: PodRequest, names: tuple[str, ...], failed: Mapping[str, str]
    ) -> None:
        """Filter found no node; the pod is told, unless it was told the same before."""
        found = self._found(request, names, failed)
        entry = self._entry_of(pod, request)
        notes = tuple(entry.notes.values()) + notes_of(failed)
        message = refusal_line(len(failed), found.reasons, found.nearest, notes)
        entry.decision = Decision(
            outcome=Outcome.UNFIT,
            at=self._wall_clock(),
            message=message,
            asked=found.asked,
            reasons=found.reasons,
            nearest=found.nearest,
        )
        self._line_up(entry)
        log.info("pod_unfit", pod=pod.key, nodes=len(failed), reasons=message)
        if entry.told != message:
            entry.told = message
            self._recorder.record(entry.ref, "FilteringFailed", message, type="Warning")
        self.on_refused(entry.ref.uid)

    def fitted(self, pod: Pod, request: PodRequest, names: tuple[str, ...], node: str) -> None:
        """Filter found nodes, and holds the best one."""
        entry = self._entry_of(pod, request)
        entry.decision = Decision(
            outcome=Outcome.FITS,
            at=self._wall_clock(),
            message=f"fits on {node}, which is held for it for a while: its bind is to come",
            asked=Asked.about(self._table, names),
            node=node,
        )
        entry.told, entry.calls = "", 0
        entry.notes.pop(PREEMPTION, None)
        self.line.discard(entry.ref.uid)

    def bind_failed(self, uid: str, node: str, error: str) -> None:
        """A bind of the pod failed; the scheduler tries again by itself."""
        entry = self._entries.get(uid)
        if entry is not None:
            entry.decision = Decision(
                outcome=Outcome.BIND_FAILED,
                at=self._wall_clock(),
                message=f"the bind to node {node} failed: {error}",
                node=node,
            )
            self.line.discard(uid)

    def note(self, uid: str, topic: str, text: str) -> None:
        """Remember what another part has to say of the pod; empty text takes it back."""
        entry = self._entries.get(uid)
        if entry is None:
            return
        if not text:
            entry.notes.pop(topic, None)
        elif topic in entry.notes or len(entry.notes) < NOTES_TOLD:
            entry.notes[topic] = text

    def _found(
        self, request: PodRequest, names: tuple[str, ...], failed: Mapping[str, str]
    ) -> _Refusal:
        """Reasons and nearest nodes; found once for equal pods that meet the same nodes."""
        generation = int(self._table.generations.max(initial=0))
        last = self._last
        if (
            last is not None
            and last.names is names
            and last.generation == generation
            and last.request == request
        ):
            return last
        nearest = self._placer.nearest(request, names, count=NEAREST_KEPT)
        self._last = _Refusal(
            request=request,
            names=names,
            generation=generation,
            asked=Asked.about(self._table, names),
            reasons=count_reasons(failed.values()),
            nearest=tuple(map(Miss.of, nearest)),
        )
        return self._last

    def recall(self) -> None:
        """A reign begins: pods that an earlier one refused wait for room, too."""
        for entry in self._entries.values():
            if entry.stuck and entry.request is not None and _is_unasked(entry):
                self.line.add(GroupKey(entry.ref.namespace, entry.request), entry.turn)

    def was_called(self, uid: str) -> None:
        """Of a pod that was not asked about it is not known what is in its way: one call is all."""
        entry = self._entries.get(uid)
        if entry is not None and _is_unasked(entry):
            self.line.discard(uid)

    # -- inside ------------------------------------------------------------------------------

    def _waits(self, pod: Pod) -> bool:
        if pod.finished or pod.spec.node_name or pod.metadata.deletion_timestamp is not None:
            return False
        name = self._settings.scheduler_name
        return not name or pod.spec.scheduler_name == name

    def _read(self, pod: Pod) -> Entry | None:
        """The pod as it is remembered; None if it asks for no devices."""
        try:
            request = read_request(pod, self._vendors, self._defaults)
        except CodecError as error:
            decision = Decision(
                outcome=Outcome.UNREADABLE, at=self._wall_clock(), message=str(error)
            )
            return Entry(
                ref=ObjectRef.to(PODS, pod), request=None, turn=_turn(pod), decision=decision
            )
        if request.empty:
            return None
        return Entry(
            ref=ObjectRef.to(PODS, pod), request=request, turn=_turn(pod), stuck=_is_stuck(pod)
        )

    def _entry_of(self, pod: Pod, request: PodRequest) -> Entry:
        """The pod's entry, as the one that was decided on last."""
        entry = self._entries.get(pod.metadata.uid)
        if entry is None or entry.request != request:
            entry = Entry(ref=ObjectRef.to(PODS, pod), request=request, turn=_turn(pod))
            self._put(entry)
        self._entries.move_to_end(entry.ref.uid)
        return entry

    def _put(self, entry: Entry) -> None:
        self.line.discard(entry.ref.uid)
        self._entries[entry.ref.uid] = entry
        while len(self._entries) > CAPACITY:
            uid, _ = self._entries.popitem(last=False)
            self.line.discard(uid)

    def _line_up(self, entry: Entry) -> None:
        if entry.request is not None and entry.decision.outcome is Outcome.UNFIT:
            self.line.add(GroupKey(entry.ref.namespace, entry.request), entry.turn)


def _turn(pod: Pod) -> Turn:
    return Turn(
        priority=-(pod.spec.priority or 0),
        created=pod.metadata.creation_timestamp or "",
        uid=pod.metadata.uid,
    )


def _is_stuck(pod: Pod) -> bool:
    return any(
        c.type == "PodScheduled" and c.status == "False" and c.reason == "Unschedulable"
        for c in pod.status.conditions or ()
    )


def _is_unasked(entry: Entry) -> bool:
    return entry.decision.outcome is Outcome.UNASKED


def _asks_the_same(pod: Pod, old: Pod) -> bool:
    return pod.spec == old.spec and pod.metadata.annotations == old.metadata.annotations


def notes_of(failed: Mapping[str, str]) -> tuple[str, ...]:
    """What follows the reason's word, where something does: what a quota lacks."""
    for text in dict.fromkeys(failed.values()):
        _, colon, rest = text.partition(": ")
        if colon:
            return (rest,)
    return ()
