"""A usage file, looked at cheaply: the same as a full reading, however many processes there are."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest

from hami.errors import CodecError
from hami.nodeagent import region
from hami.nodeagent.governor.probe import UsageProbe
from hami.nodeagent.region_layout import MAX_SLOTS, Usage


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    region.create(tmp_path, devices=[region.RegionDevice(uuid=f"GPU-{i}") for i in range(3)])
    return tmp_path


def change(directory: Path, *, slots: dict[int, tuple[int, int]]) -> None:
    """Write a usage file with these slots: number to (last submit, used of device 1)."""
    usage = Usage.from_buffer_copy((directory / region.USAGE).read_bytes())
    for number, (submitted, used) in slots.items():
        usage.active[number // 64] |= 1 << number % 64
        usage.slots[number].owner = number + 1 << 42
        usage.slots[number].last_submit_ns = submitted
        usage.slots[number].rows[1].used_bytes = used
        usage.slots[number].rows[1].pending_bytes = 5
        usage.slots[number].rows[1].waited_ns = 7
    for device in range(3):
        usage.buckets[device].debited_ns = device * 10
    (directory / region.USAGE).write_bytes(bytes(usage))


def test_nobody_there(directory: Path) -> None:
    glimpse = UsageProbe(directory, devices=3).look()

    assert glimpse.last_submit_ns == 0
    assert glimpse.taken_ns == (0, 0, 0)


@pytest.mark.parametrize("count", [1, 3, 16, 17, 200, MAX_SLOTS])
def test_latest_launch_is_found_among_any_number(directory: Path, count: int) -> None:
    numbers = random.Random(count).sample(range(MAX_SLOTS), count)
    change(directory, slots={number: (1000 + number, 1) for number in numbers})
    probe = UsageProbe(directory, devices=3)

    seen = [probe.look() for _ in range(MAX_SLOTS // 16 + 2)][-1]

    assert seen.last_submit_ns == 1000 + max(numbers)
    assert seen.taken_ns == (0, 10, 20)


def test_tally_is_what_the_full_reading_says(directory: Path) -> None:
    change(directory, slots={3: (1, 100), 70: (2, 200), 1023: (3, 300)})

    tallies = {tally.token: tally for tally in UsageProbe(directory, devices=3).tally()}

    full = region.read_usage(directory)
    for process in full.processes:
        tally = tallies[process.token]
        assert tally.tracked_bytes == tuple(u.used_bytes + u.pending_bytes for u in process.devices)
        assert tally.waited_ns == tuple(use.waited_ns for use in process.devices)
        assert tally.is_of(0, process.pid)
        assert not tally.is_of(0, process.pid + 1)


def test_absurd_figures_are_clamped(directory: Path) -> None:
    change(directory, slots={0: (2**64 - 1, 2**64 - 1)})
    probe = UsageProbe(directory, devices=3)
    probe.look()

    assert probe.look().last_submit_ns == region.CLAMP_NS
    assert max(max(tally.tracked_bytes) for tally in probe.tally()) <= 2 * region.CLAMP_BYTES


def test_file_that_is_cut_short_is_none(directory: Path) -> None:
    probe = UsageProbe(directory, devices=3)
    os.truncate(directory / region.USAGE, 100)

    with pytest.raises(CodecError, match="expected"):
        probe.look()
    with pytest.raises(CodecError, match="expected"):
        UsageProbe(directory, devices=3)


def test_foreign_file_is_none(directory: Path) -> None:
    content = bytearray((directory / region.USAGE).read_bytes())
    content[:8] = struct.pack("<Q", 5)
    (directory / region.USAGE).write_bytes(content)

    with pytest.raises(CodecError, match="magic"):
        UsageProbe(directory, devices=3)
