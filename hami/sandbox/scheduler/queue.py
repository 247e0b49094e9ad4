"""Which pod is next: kube-scheduler's three queues. Pure; the caller brings the time.

A pod is ready (active), waits out its back-off, or is unschedulable until something happens that
could change that. What happens while a pod is being scheduled counts for it as well: it then waits
for its back-off only.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from hami.sandbox.scheduler.objects import Pod

UNSCHEDULABLE_SECONDS: Final = 300.0
"""A pod does not stay unschedulable for longer, whatever happens or does not."""


class Change(Enum):
    """What happened in the cluster."""

    NODE = "node"
    """A node appeared or changed."""
    FREED = "freed"
    """A pod gave back what it had."""
    TAKEN = "taken"
    """A pod was given to a node."""


@dataclass(slots=True, kw_only=True)
class Entry:
    """One pod that waits."""

    pod: Pod
    attempts: int = 0
    since: float
    """When it began to wait in its queue."""
    extender_refused: bool = False
    """An extender was among those that refused it: nobody knows what could change its mind, so
    anything may."""
    moved: bool = False
    """Something happened while it was being scheduled."""
    order: int = 0


@dataclass(slots=True, kw_only=True)
class Queue:
    """All pods that wait, by uid."""

    initial_seconds: float = 1.0
    max_seconds: float = 10.0
    _active: dict[str, Entry] = field(default_factory=dict)
    _heap: list[tuple[int, float, int, str]] = field(default_factory=list)
    """The active ones in order, and some that are active no longer."""
    _backing_off: dict[str, Entry] = field(default_factory=dict)
    _unschedulable: dict[str, Entry] = field(default_factory=dict)
    _in_flight: dict[str, Entry] = field(default_factory=dict)
    _due: float = float("inf")
    """No back-off and no stay among the unschedulable ends before."""
    _counter: int = 0

    def put(self, pod: Pod, *, now: float) -> None:
        """The pod is there, or changed."""
        for queue in (self._active, self._backing_off):
            if pod.uid in queue:
                queue[pod.uid].pod = pod
                return
        if pod.uid in self._in_flight:
            entry = self._in_flight[pod.uid]
            entry.moved = entry.moved or pod.differs(entry.pod)
            return
        if pod.uid in self._unschedulable:
            entry = self._unschedulable[pod.uid]
            changed = pod.differs(entry.pod)
            entry.pod = pod
            if changed:
                self._move(pod.uid, now=now)
            return
        self._activate(Entry(pod=pod, since=now))

    def remove(self, uid: str) -> None:
        """The pod waits no longer: bound, gone, or no business of ours."""
        for queue in (self._active, self._backing_off, self._unschedulable, self._in_flight):
            queue.pop(uid, None)

    def pop(self, *, now: float) -> Entry | None:
        """The next pod to schedule, of the highest priority, then the one that waited longest."""
        self._flush(now=now)
        while self._heap:
            _, _, order, uid = heapq.heappop(self._heap)
            entry = self._active.get(uid)
            if entry is None or entry.order != order:
                continue  # it was removed, and perhaps came again
            del self._active[uid]
            entry.attempts += 1
            entry.moved = False
            self._in_flight[uid] = entry
            return entry
        return None

    def done(self, uid: str) -> None:
        """The pod was scheduled, or needs no scheduling any more."""
        self._in_flight.pop(uid, None)

    def put_back(self, entry: Entry, pod: Pod, *, failed: bool, now: float) -> None:
        """The pod was not scheduled.

        Args:
            entry: As it was popped.
            pod: As it is now.
            failed: Whether for an error, which time alone may mend, rather than for want of room.
            now: The time.
        """
        self._in_flight.pop(pod.uid, None)
        entry.pod = pod
        entry.since = now
        if failed or entry.moved:
            self._back_off(entry)
        else:
            self._unschedulable[pod.uid] = entry
            self._due = min(self._due, entry.since + UNSCHEDULABLE_SECONDS)

    def move(self, change: Change, *, now: float, but: str = "") -> None:
        """Something happened: let those that it may concern be tried again.

        Args:
            change: What.
            now: The time.
            but: The uid of a pod that it does not concern.
        """
        for entry in self._in_flight.values():
            entry.moved = entry.moved or entry.pod.uid != but
        concerned = [
            uid
            for uid, entry in self._unschedulable.items()
            if uid != but and (entry.extender_refused or change is not Change.TAKEN)
        ]
        for uid in concerned:
            self._move(uid, now=now)

    def next_due(self) -> float:
        """When to look again, if nothing happens; infinity where nothing waits."""
        return self._due

    def waiting(self) -> dict[str, int]:
        """How many pods wait in which queue."""
        return {
            "active": len(self._active),
            "backoff": len(self._backing_off),
            "unschedulable": len(self._unschedulable),
        }

    def _flush(self, *, now: float) -> None:
        if now < self._due:
            return
        for uid, entry in list(self._backing_off.items()):
            if self._backoff_end(entry) <= now:
                del self._backing_off[uid]
                self._activate(entry)
        for uid, entry in list(self._unschedulable.items()):
            if entry.since + UNSCHEDULABLE_SECONDS <= now:
                self._move(uid, now=now)
        ends = [self._backoff_end(entry) for entry in self._backing_off.values()]
        ends += [entry.since + UNSCHEDULABLE_SECONDS for entry in self._unschedulable.values()]
        self._due = min(ends, default=float("inf"))

    def _move(self, uid: str, *, now: float) -> None:
        """Out of the unschedulable ones: at once if its back-off is over."""
        entry = self._unschedulable.pop(uid)
        if self._backoff_end(entry) > now:
            self._back_off(entry)
        else:
            self._activate(entry)

    def _back_off(self, entry: Entry) -> None:
        self._backing_off[entry.pod.uid] = entry
        self._due = min(self._due, self._backoff_end(entry))

    def _activate(self, entry: Entry) -> None:
        self._counter += 1
        entry.order = self._counter
        self._active[entry.pod.uid] = entry
        priority = entry.pod.spec.priority or 0
        heapq.heappush(self._heap, (-priority, entry.since, entry.order, entry.pod.uid))

    def _backoff_end(self, entry: Entry) -> float:
        exponent = min(max(entry.attempts, 1) - 1, 32)
        return entry.since + min(self.max_seconds, self.initial_seconds * 2.0**exponent)
