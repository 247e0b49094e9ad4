"""Every interleaving of the accounting protocol, on a machine of a few small counters.

What ``docs/region.md`` proves on paper is searched here: all states that a few processes can
reach which claim slots, allocate, free, die at any instruction, and reclaim what the dead left.
Each step is one atomic access of ``slots.c`` or ``limits.c``. A second test breaks the protocol in
each of the ways that the proof forbids, and the search must find how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest

FREE = -1
SLOTS = 2


class Slot(NamedTuple):
    """One device's row, and who owns it."""

    owner: int = FREE
    active: int = 0
    pending: int = 0
    used: int = 0


class Process(NamedTuple):
    """Where it is (``at``), and what it has in its registers."""

    at: str = "look"
    slot: int = 0
    """The one it looks at, or sums, or empties."""
    own: int = FREE
    seen: int = FREE
    """The owner that it read."""
    total: int = 0
    tries: int = 2
    holds: int = 0
    """Of the driver's memory, really."""


class State(NamedTuple):
    """All that is shared, and all processes."""

    slots: tuple[Slot, ...]
    processes: tuple[Process, ...]
    deaths: int

    def put(self, who: int, process: Process, at: int = FREE, **changes: int) -> State:
        """The state after one step of a process; ``changes`` go to the slot ``at``."""
        slots = self.slots
        if at != FREE:
            slots = (*slots[:at], slots[at]._replace(**changes), *slots[at + 1 :])
        processes = (*self.processes[:who], process, *self.processes[who + 1 :])
        return State(slots, processes, self.deaths)


@dataclass(frozen=True, slots=True)
class Rules:
    """The protocol; each flag is a mistake that one could make."""

    limit: int
    sizes: tuple[int, ...]
    sums_used_first: bool = False
    commits_pending_first: bool = False
    discharges_before_the_driver: bool = False
    sums_before_announcing: bool = False
    frees_owner_before_emptying: bool = False
    activates_after_summing: bool = False
    reclaims_without_owning: bool = False
    takes_the_living_for_dead: bool = False

    def next_states(self, state: State) -> Iterator[State]:
        """What one step of any process leads to."""
        for who, process in enumerate(state.processes):
            if process.at == "dead":
                continue
            if state.deaths:
                died = state.put(who, process._replace(at="dead", holds=0))
                yield died._replace(deaths=state.deaths - 1)
            step: Callable[[State, int, Process], State] | None
            step = getattr(self, f"_{process.at}", None)
            if step is not None:
                yield step(state, who, process)

    def _is_dead(self, state: State, owner: int) -> bool:
        return self.takes_the_living_for_dead or state.processes[owner].at == "dead"

    # Claiming a slot: slots.c, take() and hami_slot_claim().

    def _look(self, state: State, who: int, me: Process) -> State:
        if me.slot == SLOTS:
            return state.put(who, me._replace(at="end"))
        seen = state.slots[me.slot].owner
        if seen in (FREE, who) or self._is_dead(state, seen):
            return state.put(who, me._replace(at="claim", seen=seen))
        return state.put(who, me._replace(slot=me.slot + 1))

    def _claim(self, state: State, who: int, me: Process) -> State:
        if state.slots[me.slot].owner != me.seen:
            return state.put(who, me._replace(at="look", slot=me.slot + 1))
        claimed = me._replace(at="empty_pending", own=me.slot, seen=FREE)
        return state.put(who, claimed, me.slot, owner=who)

    def _empty_pending(self, state: State, who: int, me: Process) -> State:
        return state.put(who, me._replace(at="empty_used"), me.own, pending=0)

    def _empty_used(self, state: State, who: int, me: Process) -> State:
        following = "announce" if self.activates_after_summing else "activate"
        return state.put(who, me._replace(at=following), me.own, used=0)

    def _activate(self, state: State, who: int, me: Process) -> State:
        following = "drive" if self.activates_after_summing else "announce"
        return state.put(who, me._replace(at=following, slot=0), me.own, active=1)

    # Allocating: limits.c, hami_limits_charge() to hami_limits_commit().

    def _announce(self, state: State, who: int, me: Process) -> State:
        if self.sums_before_announcing and me.seen == FREE:
            return state.put(who, me._replace(at="sum", slot=0, total=self.sizes[who]))
        pending = state.slots[me.own].pending + self.sizes[who]
        following = "drive" if self.sums_before_announcing else "sum"
        me = me._replace(at=following, slot=0, total=0, seen=FREE)
        return state.put(who, me, me.own, pending=pending)

    def _sum(self, state: State, who: int, me: Process) -> State:
        if me.slot == SLOTS:
            fits = me.total <= self.limit
            if self.sums_before_announcing:
                return state.put(who, me._replace(at="announce" if fits else "end", seen=who))
            granted = "activate" if self.activates_after_summing else "drive"
            return state.put(who, me._replace(at=granted if fits else "withdraw"))
        if not state.slots[me.slot].active:
            return state.put(who, me._replace(slot=me.slot + 1))
        return state.put(who, me._replace(at="sum_first"))

    def _sum_first(self, state: State, who: int, me: Process) -> State:
        slot = state.slots[me.slot]
        total = me.total + (slot.used if self.sums_used_first else slot.pending)
        return state.put(who, me._replace(at="sum_second", total=total))

    def _sum_second(self, state: State, who: int, me: Process) -> State:
        slot = state.slots[me.slot]
        total = me.total + (slot.pending if self.sums_used_first else slot.used)
        return state.put(who, me._replace(at="sum", slot=me.slot + 1, total=total))

    def _withdraw(self, state: State, who: int, me: Process) -> State:
        pending = state.slots[me.own].pending - self.sizes[who]
        tries = me.tries - 1
        following = "reclaim" if tries else "end"
        me = me._replace(at=following, slot=0, tries=tries, total=0)
        return state.put(who, me, me.own, pending=pending)

    def _drive(self, state: State, who: int, me: Process) -> State:
        return state.put(
            who, me._replace(at="commit_first", holds=self.sizes[who], total=0, slot=0)
        )

    def _commit(self, state: State, who: int, me: Process, *, pending: bool, at: str) -> State:
        slot = state.slots[me.own]
        if pending:
            changes = {"pending": slot.pending - self.sizes[who]}
        else:
            changes = {"used": slot.used + self.sizes[who]}
        return state.put(who, me._replace(at=at), me.own, **changes)

    def _commit_first(self, state: State, who: int, me: Process) -> State:
        first = self.commits_pending_first
        return self._commit(state, who, me, pending=first, at="commit_second")

    def _commit_second(self, state: State, who: int, me: Process) -> State:
        following = "discharge" if self.discharges_before_the_driver else "free"
        return self._commit(state, who, me, pending=not self.commits_pending_first, at=following)

    def _free(self, state: State, who: int, me: Process) -> State:
        following = "end" if self.discharges_before_the_driver else "discharge"
        return state.put(who, me._replace(at=following, holds=0))

    def _discharge(self, state: State, who: int, me: Process) -> State:
        following = "free" if self.discharges_before_the_driver else "end"
        used = state.slots[me.own].used - self.sizes[who]
        return state.put(who, me._replace(at=following), me.own, used=used)

    # Reclaiming: slots.c, reclaim_if() and hami_slot_reclaim(); then another try.

    def _reclaim(self, state: State, who: int, me: Process) -> State:
        if me.slot == SLOTS:
            return state.put(who, me._replace(at="announce", seen=FREE))
        slot = state.slots[me.slot]
        charged = slot.pending or slot.used
        if slot.owner in (FREE, who) or not charged or not self._is_dead(state, slot.owner):
            return state.put(who, me._replace(slot=me.slot + 1))
        return state.put(who, me._replace(at="own", seen=slot.owner))

    def _own(self, state: State, who: int, me: Process) -> State:
        if state.slots[me.slot].owner != me.seen:
            return state.put(who, me._replace(at="reclaim", slot=me.slot + 1))
        if self.frees_owner_before_emptying:
            return state.put(who, me._replace(at="zero_pending"), me.slot, owner=FREE)
        if self.reclaims_without_owning:
            return state.put(who, me._replace(at="zero_pending"))
        return state.put(who, me._replace(at="zero_pending"), me.slot, owner=who)

    def _zero_pending(self, state: State, who: int, me: Process) -> State:
        return state.put(who, me._replace(at="zero_used"), me.slot, pending=0)

    def _zero_used(self, state: State, who: int, me: Process) -> State:
        return state.put(who, me._replace(at="deactivate"), me.slot, used=0)

    def _deactivate(self, state: State, who: int, me: Process) -> State:
        following = "reclaim" if self.frees_owner_before_emptying else "disown"
        moved = me._replace(at=following, slot=me.slot + (following == "reclaim"))
        return state.put(who, moved, me.slot, active=0)

    def _disown(self, state: State, who: int, me: Process) -> State:
        return state.put(who, me._replace(at="reclaim", slot=me.slot + 1), me.slot, owner=FREE)


class Found(NamedTuple):
    """What a search met: the most that was held at once, and whether a counter fell below 0."""

    states: int
    most_held: int
    negative: bool = False


def begin(rules: Rules, *, deaths: int) -> State:
    """Nobody has a slot yet, but for the first process of three: so there is less to search."""
    slots, processes = [Slot()] * SLOTS, [Process()] * len(rules.sizes)
    if len(processes) > SLOTS:
        slots[0] = Slot(owner=0, active=int(not rules.activates_after_summing))
        processes[0] = Process(at="announce", own=0, tries=1)
    return State(tuple(slots), tuple(processes), deaths)


def search(rules: Rules, *, deaths: int) -> Found:
    """Visit every state that can be reached; stop at the first that breaks the limit."""
    first = begin(rules, deaths=deaths)
    known, waiting, most = {first}, [first], 0
    while waiting:
        state = waiting.pop()
        most = max(most, sum(process.holds for process in state.processes))
        negative = any(slot.pending < 0 or slot.used < 0 for slot in state.slots)
        if most > rules.limit or negative:
            return Found(len(known), most, negative)
        new = set(rules.next_states(state)) - known
        known |= new
        waiting.extend(new)
    return Found(len(known), most)


MISTAKES = [name for name, kind in Rules.__annotations__.items() if kind == "bool"]


@pytest.mark.parametrize(
    ("limit", "sizes", "deaths"),
    [
        pytest.param(1, (1, 1), 0, id="two that fit only alone"),
        pytest.param(3, (2, 1), 2, id="two that fit together, and may die"),
        pytest.param(2, (2, 1), 2, id="two of which one fills it, and may die"),
        pytest.param(1, (1, 1, 1), 1, id="three on two slots, and one may die"),
    ],
)
def test_no_interleaving_passes_the_limit(limit: int, sizes: tuple[int, ...], deaths: int) -> None:
    found = search(Rules(limit=limit, sizes=sizes), deaths=deaths)

    assert (found.most_held, found.negative) == (limit, False)
    assert found.states > 1000


@pytest.mark.parametrize("mistake", MISTAKES)
def test_search_finds_what_each_mistake_would_do(mistake: str) -> None:
    cases = (((1, 1), 0), ((1, 1, 1), 1))
    rules = [(Rules(limit=1, sizes=sizes, **{mistake: True}), deaths) for sizes, deaths in cases]

    found = [search(broken, deaths=deaths) for broken, deaths in rules]

    assert any(one.most_held > 1 or one.negative for one in found)
