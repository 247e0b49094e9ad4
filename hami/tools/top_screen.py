"""How ``hami top`` looks, in 80 columns and in more. Knows how things look; pure."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hami.sandbox.screen import UUID_SHOWN, counted, table
from hami.tools import words
from hami.tools.toplook import DeviceLook, Look, ProcessLook, ShareLook

BAR: Final = 10
PROCESSES_SHOWN: Final = 30
COMMAND_SHOWN: Final = 40


def render(look: Look) -> RenderableType:
    """The screen."""
    return Group(*_parts(look))


def _parts(look: Look) -> Iterator[RenderableType]:
    clock = time.strftime("%H:%M:%S", time.localtime(look.time))
    runs = sum(tenant.kind == "run" for tenant in look.tenants)
    counts = [
        counted(len(look.devices), "device"),
        counted(len(look.tenants) - runs, "container"),
        counted(runs, "run"),
        _processes_counted(look),
    ]
    yield Text(f"{clock}  {', '.join(counts)}", style="bold")
    if look.devices:
        yield Text()
        yield _devices(look)
    if look.tenants:
        yield Text()
        yield _tenants(look)
    if look.processes:
        yield Text()
        yield _processes(look)
    if look.notes:
        yield Text()
    for note in look.notes:
        yield Text(f"not shown: {note}", style="yellow")


def _processes_counted(look: Look) -> str:
    count = len({process.pid for process in look.processes})
    return "1 process" if count == 1 else f"{count} processes"


def _devices(look: Look) -> Table:
    rows = table("GPU", "device", "model", "memory MiB", "", "busy", "")
    for column in (rows.columns[3], rows.columns[5]):
        column.justify = "right"
    for column in rows.columns[3:]:
        column.no_wrap = True
    for device in look.devices:
        rows.add_row(
            str(device.index),
            device.uuid[:UUID_SHOWN],
            escape(device.model.removeprefix("NVIDIA-").removeprefix("NVIDIA ")),
            *_device_cells(device),
        )
    return rows


def _device_cells(device: DeviceLook) -> tuple[RenderableType, ...]:
    if device.fault:
        return (Text(device.fault, style="red"), "", "", "")
    used, busy = device.memory_used_bytes, device.utilization_percent
    part = None if used is None or not device.memory_bytes else 100 * used // device.memory_bytes
    memory = f"{_mib(used)}/{_mib(device.memory_bytes)}"
    return memory, bar(part), _percent(busy), bar(busy)


def _tenants(look: Look) -> Table:
    rows = table("container or run", "GPU", "limit MiB", "used", "", "cores", "uses", "now",
                 "procs")  # fmt: skip
    for column in rows.columns[2:]:
        column.justify, column.no_wrap = "right", True
    numbers = {device.uuid: str(device.index) for device in look.devices}
    for tenant in look.tenants:
        for at, share in enumerate(tenant.devices):
            rows.add_row(
                escape(tenant.name) if at == 0 else "",
                numbers.get(share.device, share.device[:UUID_SHOWN]),
                *_share_cells(share),
                str(tenant.processes) if at == 0 else "",
            )
    return rows


def _share_cells(share: ShareLook) -> tuple[RenderableType, ...]:
    limit = share.memory_limit_bytes
    part = None if not limit else 100 * share.used_bytes // limit
    limited = share.core_limit_permille not in {0, 1000}
    return (
        "-" if limit is None else _mib(limit),
        _mib(share.used_bytes),
        bar(part),
        words.share(share.core_limit_permille) if limited else "-",
        _percent(share.use_percent),
        _now(share),
    )


def _now(share: ShareLook) -> Text:
    """What happens to its launches."""
    words_of = {"off": "free", "limit": "paced", "block": "waits", "suspend": "suspended"}
    held = share.mode in {"block", "suspend"}
    return Text(words_of.get(share.mode, share.mode), style="red" if held else "")


def _processes(look: Look) -> Table:
    rows = table("pid", "GPU", "MiB", "busy", "of", "command")
    for column in rows.columns[:4]:
        column.justify, column.no_wrap = "right", True
    numbers = {device.uuid: str(device.index) for device in look.devices}
    ordered = sorted(look.processes, key=_weight, reverse=True)
    for process in ordered[:PROCESSES_SHOWN]:
        rows.add_row(
            str(process.pid),
            numbers.get(process.device, "?"),
            "-" if process.memory_bytes is None else _mib(process.memory_bytes),
            _percent(process.use_percent),
            escape(process.tenant) or "-",
            escape(_short(process.command)) or "-",
        )
    if len(ordered) > PROCESSES_SHOWN:
        rows.caption = f"and {len(ordered) - PROCESSES_SHOWN} more"
    return rows


def _weight(process: ProcessLook) -> tuple[int, int]:
    return process.use_percent or 0, process.memory_bytes or 0


def bar(percent: int | None) -> Text:
    """A bar of BAR places; empty where the figure is not known."""
    if percent is None:
        return Text()
    percent = min(max(percent, 0), 100)
    full = round(percent * BAR / 100)
    colour = "red" if percent >= 95 else "yellow" if percent >= 75 else "green"
    return Text("█" * full, style=colour).append("░" * (BAR - full), style="dim")


def _mib(count: int | None) -> str:
    if count is None:
        return "-"
    mib = count / words.MIB
    return f"{mib:.1f}" if 0 < mib < 10 and count % words.MIB else f"{mib:.0f}"


def _percent(value: int | None) -> str:
    return "-" if value is None else f"{value} %"


def _short(text: str) -> str:
    return text if len(text) <= COMMAND_SHOWN else f"{text[: COMMAND_SHOWN - 1]}…"
