"""``hami region dump``: explains a region's files, whatever is in them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from hami.errors import CodecError
from hami.nodeagent import claims
from hami.nodeagent.claims import Claim
from hami.tools import oddities
from hami.tools.liveness import Owners
from hami.tools.regionfile import (
    ControlReport,
    File,
    Header,
    SlotReport,
    UsageReport,
    header,
    load,
    read_control,
    read_usage,
)

StateOf = Callable[[int, int], str]
"""From an owner word and a pid namespace to ``alive``, ``dead`` or ``unknown``."""


class Dump(msgspec.Struct, frozen=True, kw_only=True):
    """All that a region's files say, and what is odd about them."""

    files: tuple[Header, ...]
    control: ControlReport | None
    """None: there is no such file, or it is none that this version can read."""
    usage: UsageReport | None
    unusable: tuple[str, ...]
    """Why the shim would grant no memory."""
    odd: tuple[str, ...]
    claim: Claim | None = None
    """Whose the directory is, as the node agent keeps it."""


def dump(path: Path) -> Dump:
    """Of a region's directory, or of one of its files.

    Raises:
        ConfigError: There is nothing to read, or it may not be read.
    """
    found = explain(load(path), now_ns=time.monotonic_ns(), state=Owners().state)
    if not path.is_dir():
        return found
    try:
        return msgspec.structs.replace(found, claim=claims.read(path))
    except CodecError:  # `hami run` keeps none, and a copy has none
        return found


def explain(files: list[File], *, now_ns: int, state: StateOf) -> Dump:
    """What the files say. Pure, but for what ``state`` looks at.

    Args:
        files: At most one of each kind.
        now_ns: CLOCK_MONOTONIC.
        state: Tells who lives.
    """
    by_kind = {file.kind: file for file in files}
    wrong = tuple(text for file in files if (text := oddities.unusable(file)))
    odd = [text for file in files for text in oddities.of_length(file)]
    control = usage = None
    for file in files:
        if not oddities.readable(file):
            del by_kind[file.kind]
    if "control" in by_kind:
        control = read_control(by_kind["control"], now_ns=now_ns)
        odd += oddities.of_control(control)
    if "usage" in by_kind:
        count = len(control.devices) if control is not None else None
        usage = _with_states(read_usage(by_kind["usage"], now_ns=now_ns, devices=count), state)
        odd += oddities.of_usage(usage, control)
    return Dump(
        files=tuple(header(file) for file in files),
        control=control,
        usage=usage,
        unusable=wrong,
        odd=tuple(odd),
    )


def _with_states(usage: UsageReport, state: StateOf) -> UsageReport:
    def told(slot: SlotReport) -> SlotReport:
        if not slot.owner:
            return slot
        found = state(slot.owner, slot.pid_namespace)
        return msgspec.structs.replace(slot, state=found)

    return msgspec.structs.replace(usage, slots=tuple(told(slot) for slot in usage.slots))
