"""Pods that were told they fit nowhere, by what they ask for: who is next where room comes back.

Pods of one namespace that ask for the same are one group, in order of priority and age, so that
what is found out about one holds for all. Knows neither nodes nor times; whoever looks brings them.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from hami.core.device import PodRequest


class GroupKey(NamedTuple):
    """What makes pods alike: where quota is counted, and what is asked for."""

    namespace: str
    request: PodRequest


class Turn(NamedTuple):
    """A pod's place in line; the lowest is first."""

    priority: int
    """Negative: the more important the lower."""
    created: str
    uid: str


@dataclass(slots=True)
class _Group:
    turns: list[Turn] = field(default_factory=list)


class WaitingLine:
    """Groups of waiting pods."""

    def __init__(self) -> None:
        self._groups: dict[GroupKey, _Group] = {}
        self._by_uid: dict[str, tuple[GroupKey, Turn]] = {}

    def __len__(self) -> int:
        return len(self._by_uid)

    @property
    def groups(self) -> int:
        """How many there are."""
        return len(self._groups)

    def __contains__(self, uid: str) -> bool:
        return uid in self._by_uid

    def add(self, key: GroupKey, turn: Turn) -> None:
        """The pod waits, with this place in line. Idempotent."""
        if self._by_uid.get(turn.uid) == (key, turn):
            return
        self.discard(turn.uid)
        self._by_uid[turn.uid] = key, turn
        insort(self._groups.setdefault(key, _Group()).turns, turn)

    def discard(self, uid: str) -> None:
        """The pod does not wait any more. Idempotent."""
        known = self._by_uid.pop(uid, None)
        if known is None:
            return
        key, turn = known
        turns = self._groups[key].turns
        del turns[bisect_left(turns, turn)]
        if not turns:
            del self._groups[key]

    def walk(self) -> Iterator[tuple[GroupKey, Turn, GroupWalk]]:
        """Every pod in order of its turn, whole groups left out as soon as they are dropped.

        Looks at groups as they come, at one pod of each: the cost is that of the groups and of the
        pods yielded. What changes while the walk lasts may be seen or not.
        """
        heads = [(group.turns[0], key) for key, group in self._groups.items()]
        ordered = [(turn, number, key) for number, (turn, key) in enumerate(heads)]
        heapq.heapify(ordered)
        walks = {key: GroupWalk() for _, _, key in ordered}
        while ordered:
            turn, number, key = heapq.heappop(ordered)
            if walks[key].over:
                continue
            if self._by_uid.get(turn.uid) == (key, turn):
                yield key, turn, walks[key]
            following = self._after(key, turn)
            if following is not None and not walks[key].over:
                heapq.heappush(ordered, (following, number, key))

    def _after(self, key: GroupKey, turn: Turn) -> Turn | None:
        group = self._groups.get(key)
        if group is None:
            return None
        at = bisect_left(group.turns, turn)
        if at < len(group.turns) and group.turns[at] == turn:
            at += 1
        return group.turns[at] if at < len(group.turns) else None


@dataclass(slots=True)
class GroupWalk:
    """What a walk does with a group; ``over`` leaves out the rest of it."""

    over: bool = False
    passed_over: int = 0
    """Pods of the group that were looked at for nothing."""
