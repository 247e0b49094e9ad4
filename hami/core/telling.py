"""What people are told of a refusal: the same words in an Event, in ``explain`` and in what-if.

A ``Miss`` is what is worth keeping of a Verdict: how far the node is from holding the pod, and the
devices that are nearest to it. ``refusal_line`` says the whole in one line whose length does not
grow with the number of nodes. Names of nodes and devices are from outside, so they are cut.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hami.core.verdict import DeviceVerdict, NodeReason, Reason, Unit, Verdict

DEVICES_KEPT: Final = 4
"""Devices of a node that are told; more are counted."""
REASONS_TOLD: Final = 8
NOTES_TOLD: Final = 3
NOTE_CHARACTERS: Final = 160
NAME_CHARACTERS: Final = 64
"""Of a node or a device; longer ones are cut in words for people."""

_RATIO: Final = re.compile(r"^\d+/\d+ | \d+ of \d+$", re.ASCII)
_WORDS: Final[Mapping[Reason, str]] = {
    Reason.UNHEALTHY: "is unhealthy",
    Reason.CORDONED: "is cordoned",
    Reason.TYPE: "is of another type",
    Reason.UUID: "is not among the devices asked for",
    Reason.NOT_ALONE: "is used by others",
    Reason.CORES_EXHAUSTED: "has no compute left",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """How far one node is from holding a pod."""

    node: str
    container: str
    needed: int
    """Devices that the container asks for."""
    fitting: int
    """Devices of the node that would serve it."""
    total: int
    devices: tuple[DeviceVerdict, ...]
    """Of those that would not, the nearest, at most ``DEVICES_KEPT``."""
    summary: str
    """The node's reasons as the scheduler is told them."""
    note: str = ""
    """What is against the node as a whole, with names and numbers."""

    @classmethod
    def of(cls, verdict: Verdict) -> Miss:
        """What is worth keeping of it."""
        failing = [device for device in verdict.devices if device.reason is not None]
        return cls(
            node=verdict.node,
            container=verdict.container,
            needed=verdict.needed,
            fitting=len(verdict.devices) - len(failing),
            total=len(verdict.devices),
            devices=tuple(sorted(failing, key=_distance)[:DEVICES_KEPT]),
            summary=str(verdict),
            note=cut(verdict.note, NOTE_CHARACTERS),
        )

    def __str__(self) -> str:
        """In the form ``node-3: GPU-7 lacks 1200 MiB``."""
        return f"{cut(self.node)}: {self._what()}"

    def _what(self) -> str:
        missing = self.needed - self.fitting
        if self.note:
            return self.note
        if not self.devices or missing <= 0 or self.needed > self.total:
            return self._as_a_whole()
        told = self.devices[:missing]
        text = ", ".join(device_words(device) for device in told)
        more = missing - len(told)
        return f"{text} and {more} more devices do not fit" if more else text

    def _as_a_whole(self) -> str:
        """Where the fault is not that of single devices."""
        if not self.total:
            return self.summary or NodeReason.UNREGISTERED.value
        if self.needed > self.total:
            return f"has {self.total} of the {self.needed} devices asked for"
        if NodeReason.NUMA.value in self.summary:
            return f"{self.fitting} devices fit, but not {self.needed} of one NUMA node"
        return self.summary


def device_words(device: DeviceVerdict) -> str:
    """One device that does not fit: ``GPU-7 lacks 1200 MiB``."""
    name = cut(device.uuid)
    if device.reason is None:
        return f"{name} fits"
    lack = device.needed - device.free
    if device.unit is not Unit.NONE and lack > 0:
        return f"{name} lacks {_amount(lack, device.unit)}"
    return f"{name} {_WORDS.get(device.reason, device.reason.value)}"


def _amount(lack: int, unit: Unit) -> str:
    match unit:
        case Unit.PERCENT:
            return f"{lack} % of compute"
        case Unit.SLOTS:
            return "a slot" if lack == 1 else f"{lack} slots"
        case _:
            return f"{lack} {unit.value}"


def _distance(device: DeviceVerdict) -> tuple[bool, float, str]:
    """Nearest first: what lacks little before what lacks much, what no amount can mend last."""
    lack = device.needed - device.free
    measured = device.unit is not Unit.NONE and lack > 0
    return (not measured, lack / device.needed if measured else 0.0, device.uuid)


def count_reasons(failed: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """From the reason of each node: how many nodes say each word, the most frequent first.

    A node with several reasons counts for each of them.
    """
    words: Counter[str] = Counter()
    for text, nodes in Counter(failed).items():
        for word in reason_words(text):
            words[word] += nodes
    return tuple(sorted(words.items(), key=lambda item: (-item[1], item[0])))


def reason_words(text: str) -> frozenset[str]:
    """The words of one node's reasons, without their numbers and without what follows a colon."""
    words = text.partition(":")[0].split(", ")
    return frozenset(_RATIO.sub("", word).strip() for word in words)


def refusal_line(
    nodes: int,
    reasons: Sequence[tuple[str, int]],
    nearest: Sequence[Miss],
    notes: Sequence[str] = (),
) -> str:
    """Why a pod fits nowhere, in one line within the size of an Event's message.

    ``no available node, 5000 do not fit: 3000 x CardInsufficientMemory; nearest: node-3: GPU-7
    lacks 1200 MiB``.
    """
    if not nodes:
        parts = ["no available node, the scheduler asked about none with devices"]
    else:
        told = [f"{count} x {cut(word)}" for word, count in reasons[:REASONS_TOLD]]
        if len(reasons) > REASONS_TOLD:
            told.append(f"{len(reasons) - REASONS_TOLD} other reasons")
        verb = "does" if nodes == 1 else "do"
        parts = [f"no available node, {nodes} {verb} not fit: {', '.join(told)}"]
    if nearest:
        parts.append(f"nearest: {nearest[0]}")
    parts += [cut(note, NOTE_CHARACTERS) for note in notes[:NOTES_TOLD]]
    return "; ".join(parts)


def cut(text: str, characters: int = NAME_CHARACTERS) -> str:
    """The text, printable and at most so long."""
    clean = "".join(c if c.isprintable() else "?" for c in text[: characters + 1])
    return clean if len(clean) <= characters else f"{clean[: characters - 1]}…"
