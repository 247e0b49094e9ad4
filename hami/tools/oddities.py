"""What is odd about a region's files, in plain words. Pure: reports in, sentences out.

*Unusable* is what makes the shim grant no memory; everything else it lives with.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Final

from hami.nodeagent import ownerword, region
from hami.nodeagent.region_layout import (
    CONTROL_MAGIC,
    MAX_DEVICES,
    MAX_SLOTS,
    USAGE_MAGIC,
    VERSION,
)
from hami.tools.regionfile import (
    SIZES,
    ControlReport,
    DeviceReport,
    File,
    RowReport,
    SlotReport,
    UsageReport,
)

HEARTBEAT_SECONDS: Final = 10.0
"""An older heartbeat means that the governor is gone: ``docs/region.md``."""
SLOTS_NAMED: Final = 8
"""Of the slots that share an oddity so many are named."""
_MAGICS: Final = {"control": CONTROL_MAGIC, "usage": USAGE_MAGIC}
_UUID: Final = re.compile(r"(?:GPU|MIG)-(?:-*[0-9A-Fa-f]){32}-*")


def unusable(file: File) -> str | None:
    """Why the shim would refuse the file; None: it would not."""
    size = SIZES[file.kind]
    magic = _MAGICS[file.kind].to_bytes(8, "little")
    if file.length >= 8 and file.content[:8] != magic:
        met = file.content[:8].decode("ascii", "backslashreplace")
        return f"not a {file.kind} file: expected it to begin with {magic.decode()}, met {met!r}"
    if file.length < size:
        return f"{file.kind} is cut short: expected {size} bytes, met {file.length}"
    version = int.from_bytes(file.content[8:12], "little")
    if version != VERSION:
        return f"{file.kind} is of another version: expected {VERSION}, met {version}"
    met_size = int.from_bytes(file.content[12:16], "little")
    if met_size != size:
        return f"{file.kind} says a wrong size: expected {size}, met {met_size}"
    return None


def readable(file: File) -> bool:
    """Whether its fields mean anything to this version."""
    starts = file.content[:8] == _MAGICS[file.kind].to_bytes(8, "little")
    return starts and int.from_bytes(file.content[8:12], "little") == VERSION


def of_length(file: File) -> Iterator[str]:
    """A file that goes on behind its end."""
    excess = file.length - SIZES[file.kind]
    if excess > 0:
        yield f"{file.kind} is {excess} bytes longer than its format"


def of_control(control: ControlReport) -> Iterator[str]:
    """What is odd about the control file."""
    if control.device_count > MAX_DEVICES:
        yield f"control lists {control.device_count} devices, of which {MAX_DEVICES} count"
    if not control.device_count:
        yield "control lists no device: none has memory for this container"
    for value, what in ((control.policy, "policy"), *((flag, "flag") for flag in control.flags)):
        if value.startswith("unknown"):
            yield f"{what} is {value}"
    counts = Counter(device.uuid.lower() for device in control.devices)
    for device in control.devices:
        yield from _of_device(device, control)
    yield from (
        f"{uuid} is listed {count} times: the first one counts"
        for uuid, count in counts.items()
        if count > 1
    )
    yield from _of_pulse(control)


def _of_device(device: DeviceReport, control: ControlReport) -> Iterator[str]:
    name = f"device {device.index}"
    limit = device.memory_limit_bytes
    if not _UUID.fullmatch(device.uuid):
        yield f"{name} has no UUID that a driver would say: {device.uuid!r}"
    if limit == 0:
        yield f"{name} has the limit 0: no memory at all"
    oversubscribe = region.Flag.OVERSUBSCRIBE.name or ""
    if (
        limit is not None
        and 0 < device.physical_bytes < limit
        and oversubscribe.lower() not in control.flags
    ):
        yield f"{name} is granted more memory than it has"
    if limit is not None and device.untracked_bytes > limit:
        yield f"{name}: what is untracked alone is more than the limit"
    if device.core_limit_permille > 1000:
        yield f"{name} has a core limit of {device.core_limit_permille} permille"
    if device.core_mode.startswith("unknown"):
        yield f"{name}: its core mode is {device.core_mode}"
    if device.core_mode == "limit" and not device.rate_ns_per_second:
        yield f"{name} is paced at no device time at all: its launches wait for ever"


def _of_pulse(control: ControlReport) -> Iterator[str]:
    wanted = sum(1 << d.index for d in control.devices if d.core_mode != "off")
    if control.pulse_mask != wanted:
        yield (
            f"the pulse names the devices {_bits(control.pulse_mask)}, the core modes "
            f"{_bits(wanted)}: launches follow the pulse"
        )
    age = control.heartbeat_age_seconds
    steered = any(device.core_mode != "off" for device in control.devices)
    if age is None:
        if steered:
            yield "devices are paced, but the governor never beat"
    elif age < 0:
        yield "the heartbeat is of the future: this file is another boot's or another machine's"
    elif age > HEARTBEAT_SECONDS and steered:
        yield f"the governor has not beaten for {age:.0f} s: BLOCK means LIMIT since"


def _bits(mask: int) -> str:
    return ",".join(str(bit) for bit in range(MAX_DEVICES) if mask >> bit & 1) or "none"


def of_usage(usage: UsageReport, control: ControlReport | None) -> Iterator[str]:
    """What is odd about the usage file, and about the two together."""
    if usage.slot_count != MAX_SLOTS or usage.device_count != MAX_DEVICES:
        yield (
            f"usage says {usage.slot_count} slots of {usage.device_count} devices: expected "
            f"{MAX_SLOTS} of {MAX_DEVICES}"
        )
    if usage.active_words >> (MAX_SLOTS // 64 + 1):
        yield f"usage has unknown bits in active_words: {usage.active_words:#x}"
    yield from _of_slots(usage)
    owners = Counter(slot.owner for slot in usage.slots if slot.owner)
    twice = [owner for owner, count in owners.items() if count > 1]
    if twice:
        pids = ", ".join(str(ownerword.unpack(owner).pid) for owner in twice[:SLOTS_NAMED])
        yield f"more than one slot has the same owner: pid {pids}"
    if control is not None:
        for row in usage.sums[: len(control.devices)]:
            yield from _of_sum(row, control.devices[row.device])


def _of_sum(row: RowReport, device: DeviceReport) -> Iterator[str]:
    limit = device.memory_limit_bytes
    if limit is None:
        return
    name, held = f"device {row.device}", row.used_bytes + device.untracked_bytes
    if held > limit:
        yield (
            f"{name}: {held} bytes are used (untracked ones included), {held - limit} more than "
            "the limit: nothing more is granted"
        )
    elif held + row.pending_bytes > limit:
        yield f"{name}: what is asked for at this moment would pass the limit"


def _of_slots(usage: UsageReport) -> Iterator[str]:
    slots = usage.slots
    named = [slot for slot in slots if not slot.anonymous]
    charged = [slot for slot in slots if any(_is_charged(row) for row in slot.rows)]
    for what, found in (
        (
            "stale: the owner is dead and its charge stands",
            [s for s in charged if s.state == "dead"],
        ),
        ("charged, but not marked active: nobody counts it", [s for s in charged if not s.active]),
        ("charged, but without an owner", [s for s in charged if not s.owner and not s.anonymous]),
        (
            "marked active, but without an owner",
            [s for s in named if s.active and not s.owner and s not in charged],
        ),
        (
            "the owner word and the pid namespace beside it disagree",
            [s for s in named if s.owner and _disagrees(s)],
        ),
        (
            f"says more than is believed of a process ({region.CLAMP_BYTES >> 40} TiB)",
            [s for s in charged if any(r.used_bytes > region.CLAMP_BYTES for r in s.rows)],
        ),
        (
            "last submitted work in the future",
            [s for s in slots if (s.last_submit_age_seconds or 0) < 0],
        ),
    ):
        if found:
            yield f"{_names(found)}: {what}"
    if any(slot.anonymous for slot in charged):
        yield (
            f"slot {MAX_SLOTS}: processes without a slot of their own share it; what a dead one "
            "left there stays charged"
        )


def _is_charged(row: RowReport) -> bool:
    return bool(row.used_bytes or row.pending_bytes)


def _disagrees(slot: SlotReport) -> bool:
    bits = ownerword.unpack(slot.owner).namespace
    return bool(slot.pid_namespace) and slot.pid_namespace & ownerword.NAMESPACE_MASK != bits


def _names(slots: list[SlotReport]) -> str:
    names = ", ".join(str(slot.slot) for slot in slots[:SLOTS_NAMED])
    more = f" and {len(slots) - SLOTS_NAMED} more" if len(slots) > SLOTS_NAMED else ""
    return f"slot {names}" if len(slots) == 1 else f"slots {names}{more}"
