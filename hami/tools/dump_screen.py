"""What ``hami region dump`` shows to people. Knows how things look."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hami.nodeagent.claims import Claim
from hami.sandbox.screen import UUID_SHOWN, counted, table
from hami.tools import words
from hami.tools.dump import Dump
from hami.tools.regionfile import ControlReport, SlotReport, UsageReport


def show(dump: Dump, console: Console | None = None) -> None:
    """Print all of it."""
    console = console or Console(highlight=False)
    for file in dump.files:
        what = f"{file.path}: {file.bytes} bytes, version {file.version}"
        console.print(escape(what), soft_wrap=True)
    for line in [*_owner(dump.control, dump.claim), *_steering(dump.control)]:
        console.print(line, soft_wrap=True)
    if dump.control is not None and dump.control.devices:
        console.print()
        console.print(_devices(dump.control, dump.usage))
    if dump.usage is not None:
        console.print()
        _show_usage(console, dump.usage, dump.control)
    if dump.unusable or dump.odd:
        console.print()
    for text in dump.unusable:
        console.print(f"[red]unusable[/]: {escape(text)}: no memory is granted", soft_wrap=True)
    for text in dump.odd:
        console.print(f"[yellow]odd[/]: {escape(text)}", soft_wrap=True)


def _owner(control: ControlReport | None, claim: Claim | None) -> Iterator[str]:
    if control is not None:
        pod = "/".join(part for part in (control.pod_namespace, control.pod_name) if part)
        whose = f"pod {pod or '-'}, container {control.container_name or '-'}"
        uid = f", uid {control.pod_uid}" if control.pod_uid else ""
        known = bool(pod or uid or control.container_name)
        yield escape(f"of {whose}{uid}" if known else "of nobody that it names")
    if claim is not None:
        yield escape(f"claimed as {', '.join(claim.ids)}; shim {claim.library or '-'}")


def _steering(control: ControlReport | None) -> Iterator[str]:
    if control is None:
        return
    flags = f", {', '.join(control.flags)}" if control.flags else ""
    yield escape(
        f"priority {control.priority}, weight {control.weight or 'the usual'}, "
        f"policy {control.policy}{flags}, generation {control.generation}"
    )
    beat = control.heartbeat_age_seconds
    yield f"governor: {control.ticks} ticks, last beat {words.ago(beat)}"


def _right(rows: Table, first: int) -> Table:
    for column in rows.columns[first:]:
        column.justify, column.no_wrap = "right", True
    return rows


def _devices(control: ControlReport, usage: UsageReport | None) -> Table:
    rows = table("", "device", "limit", "used", "pending", "untracked", "cores", "mode", "pace")
    _right(rows, 2)
    sums = {row.device: row for row in usage.sums} if usage is not None else {}
    for device in control.devices:
        row = sums.get(device.index)
        pace = f"{device.rate_ns_per_second / 10_000_000:.4g} %"
        burst = f"+ {words.duration(device.burst_ns)}" if device.burst_ns else ""
        rows.add_row(
            str(device.index),
            escape(device.uuid[:UUID_SHOWN]),
            words.limit(device.memory_limit_bytes),
            words.mib(row.used_bytes) if row else "-",
            words.mib(row.pending_bytes) if row else "-",
            words.mib(device.untracked_bytes),
            words.share(device.core_limit_permille),
            escape(device.core_mode),
            "-" if device.core_mode == "off" else f"{pace} {burst}".strip(),
        )
    return rows


def _show_usage(console: Console, usage: UsageReport, control: ControlReport | None) -> None:
    taken = [
        (device, ns) for device, ns in enumerate(usage.debited_ns) if ns
    ]  # fmt: skip
    for device, ns in taken:
        granted = ""
        if control is not None and device < len(control.devices):
            granted = f" of {words.duration(control.devices[device].granted_ns)} granted"
        console.print(f"device {device}: {words.duration(ns)} of device time taken{granted}")
    if not usage.slots:
        console.print("no slot is in use")
        return
    rows = table("slot", "pid", "pid namespace", "start", "state", "submitted", "device",
                 "used", "pending", "spent", "waited")  # fmt: skip
    _right(rows, 6)
    for slot in usage.slots:
        _add_slot(rows, slot)
    console.print(rows)
    console.print(f"[dim]{counted(len(usage.slots), 'slot')} in use[/]")


def _add_slot(rows: Table, slot: SlotReport) -> None:
    number = f"{slot.slot}{'' if slot.active else ' (off)'}"
    if slot.anonymous:
        head = (number, "shared", "-", "-", "-", "-")
    else:
        state = f"[red]{slot.state}[/]" if slot.state == "dead" else slot.state
        submitted = words.ago(slot.last_submit_age_seconds)
        head = (
            number,
            f"{slot.pid}" + (f" ({slot.host_pid})" if slot.host_pid else ""),
            str(slot.pid_namespace),
            str(slot.start_ticks),
            state,
            submitted,
        )
    empty = ("-",) * 5
    cells = [
        (
            str(row.device),
            words.mib(row.used_bytes),
            words.mib(row.pending_bytes),
            words.duration(row.spent_ns) if row.spent_ns else "-",
            words.duration(row.waited_ns) if row.waited_ns else "-",
        )
        for row in slot.rows
    ] or [empty]
    for at, cell in enumerate(cells):
        rows.add_row(*(head if at == 0 else ("",) * len(head)), *cell)
