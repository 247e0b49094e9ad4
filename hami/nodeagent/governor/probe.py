"""A cheap look at a usage file, many times a second: who submits work, what has been taken.

One read brings the header, the buckets and the first slots; of a container with more processes the
others' slots are looked at in turn. The file is the container's to spoil: it is read with pread,
figures are clamped, and one that is no usage file any more raises CodecError.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hami.errors import CodecError
from hami.nodeagent import ownerword, region
from hami.nodeagent.region_layout import (
    ANONYMOUS_SLOT,
    MAX_SLOTS,
    USAGE_MAGIC,
    Bucket,
    Slot,
    Usage,
    UsageRow,
)

_HEADER: Final = Usage.slots.offset
_SLOT: Final = ctypes.sizeof(Slot)
_ACTIVE: Final = Usage.active.offset
_SUBMITTED: Final = Slot.last_submit_ns.offset
_ROWS: Final = Slot.rows.offset
_ROW: Final = ctypes.sizeof(UsageRow)
_AT_ONCE: Final = 16
"""Slots of one read."""
_FIRST: Final = (1 << _AT_ONCE) - 1
_WORD: Final = struct.Struct("<Q")
_ACTIVE_WORDS: Final = struct.Struct(f"<{MAX_SLOTS // 64}Q")


@dataclass(frozen=True, slots=True)
class Glimpse:
    """What one look showed, in the container's own words."""

    last_submit_ns: int
    """CLOCK_MONOTONIC of about the latest launch of any process; 0: none."""
    taken_ns: tuple[int, ...]
    """Device time taken out of the grant, each device, ever."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What one process says of itself."""

    token: int
    """Of its slot's owner; 0: of those without a slot of their own."""
    tracked_bytes: tuple[int, ...]
    """Used and announced, each device."""
    waited_ns: tuple[int, ...]
    """Time that it has waited for device time, each device."""
    context_bytes: tuple[int, ...]
    """Of what is used, what was charged for contexts, each device."""

    def is_of(self, namespace: int, pid: int) -> bool:
        """Whether this is the slot of a process, as that counts itself."""
        owner = ownerword.unpack(self.token)
        return (owner.pid, owner.namespace) == (pid, namespace & ownerword.NAMESPACE_MASK)


class UsageProbe:
    """One usage file, kept open."""

    def __init__(self, directory: Path, *, devices: int) -> None:
        """Open it.

        Raises:
            CodecError: It is not a usage file of this version.
            OSError: It cannot be opened.
        """
        self._path = directory / region.USAGE
        self._devices = devices
        self._buckets = [Usage.buckets.offset + i * ctypes.sizeof(Bucket) for i in range(devices)]
        self._slots = 1
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._handle = os.open(self._path, flags)
        self._turn = 0
        self._submitted: dict[int, int] = {}
        try:
            region.check_header(
                self._path, self._read(_HEADER, 0), magic=USAGE_MAGIC, size=ctypes.sizeof(Usage)
            )
        except CodecError:
            self.close()
            raise

    def close(self) -> None:
        """Close it. Doing it twice is fine."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def look(self) -> Glimpse:
        """How things stand.

        Raises:
            CodecError: The file was cut short.
            OSError: It cannot be read.
        """
        content = self._read(_HEADER + self._slots * _SLOT, 0)
        active = _ACTIVE_WORDS.unpack_from(content, _ACTIVE)
        first, more = active[0] & _FIRST, active[0] >> _AT_ONCE or any(active[1:])
        latest = self._latest(content, _HEADER, first & (1 << self._slots) - 1)
        if more:
            latest = max(latest, self._others(active))
        if first.bit_length() != self._slots:  # as many as there are, the next time
            self._slots = first.bit_length()
        taken = [_WORD.unpack_from(content, place)[0] for place in self._buckets]
        return Glimpse(min(latest, region.CLAMP_NS), tuple(taken))

    def tally(self) -> tuple[Tally, ...]:
        """What every process says it uses. Costs a read for each.

        Raises:
            CodecError: The file was cut short.
            OSError: It cannot be read.
        """
        active = _ACTIVE_WORDS.unpack_from(self._read(_HEADER, 0), _ACTIVE)
        slots = [64 * word + bit for word, bits in enumerate(active) for bit in _bits(bits)]
        return tuple(self._tally(slot) for slot in (*slots, ANONYMOUS_SLOT))

    def _tally(self, slot: int) -> Tally:
        content = self._read(_SLOT, _HEADER + slot * _SLOT)
        rows = [
            struct.unpack_from("<5Q", content, _ROWS + device * _ROW)
            for device in range(self._devices)
        ]
        return Tally(
            int.from_bytes(content[:8], "little"),
            tuple(
                min(used, region.CLAMP_BYTES) + min(pending, region.CLAMP_BYTES)
                for used, pending, _, _, _ in rows
            ),
            tuple(min(waited, region.CLAMP_NS) for _, _, _, waited, _ in rows),
            tuple(min(context, region.CLAMP_BYTES) for *_, context in rows),
        )

    def _others(self, active: tuple[int, ...]) -> int:
        """Of the slots behind the first, some this time; of the rest, what they last said."""
        chunks = [
            chunk
            for chunk in range(1, MAX_SLOTS // _AT_ONCE)
            if active[chunk // 4] >> chunk % 4 * _AT_ONCE & (1 << _AT_ONCE) - 1
        ]
        self._submitted = {chunk: self._submitted.get(chunk, 0) for chunk in chunks}
        self._turn += 1
        chunk = chunks[self._turn % len(chunks)]
        bits = active[chunk // 4] >> chunk % 4 * _AT_ONCE & (1 << _AT_ONCE) - 1
        content = self._read(_AT_ONCE * _SLOT, _HEADER + chunk * _AT_ONCE * _SLOT)
        self._submitted[chunk] = self._latest(content, 0, bits)
        return max(self._submitted.values())

    @staticmethod
    def _latest(content: bytes, start: int, bits: int) -> int:
        latest = 0
        for slot in _bits(bits):
            latest = max(latest, _WORD.unpack_from(content, start + slot * _SLOT + _SUBMITTED)[0])
        return latest

    def _read(self, size: int, offset: int) -> bytes:
        content = os.pread(self._handle, size, offset)
        if len(content) != size:
            raise CodecError(f"{self._path}: expected {size} bytes, met {len(content)}")
        return content


def _bits(word: int) -> Iterator[int]:
    """The numbers of the bits that are set."""
    while word:
        yield (word & -word).bit_length() - 1
        word &= word - 1
