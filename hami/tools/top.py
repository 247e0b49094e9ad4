"""``hami top``: shows again and again what ``toplook`` sees, to people or to programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn

import anyio
import msgspec
from rich.console import Console
from rich.live import Live

from hami import logs
from hami.config import LogSettings
from hami.output import Output
from hami.tools import rundir, top_screen
from hami.tools.toplook import Look, Looker

FIRST_SECONDS: Final = 0.5
"""Between the first look and the first that is shown: how busy one is, is a matter of two."""


async def show(
    host_dir: Path,
    environment: Mapping[str, str],
    *,
    interval_seconds: float,
    once: bool,
    output: Output,
) -> None:
    """Show this host, once or for ever."""
    logs.configure(LogSettings(level="error", format="console"))
    uid = os.geteuid()
    looker = Looker(host_dir, rundir.root(environment, uid), is_root=uid == 0)
    await looker.look()
    await anyio.sleep(min(interval_seconds, FIRST_SECONDS))
    if once:
        _print(await looker.look(), output, indent=2)
    elif output is Output.JSON or not sys.stdout.isatty():
        await _print_for_ever(looker, output, interval_seconds)
    else:
        await _live(looker, interval_seconds)


def _print(look: Look, output: Output, *, indent: int) -> None:
    if output is Output.JSON:
        encoded = msgspec.json.encode(look)
        text = msgspec.json.format(encoded, indent=indent) if indent else encoded
        sys.stdout.write(text.decode() + "\n")
    else:
        Console(highlight=False).print(top_screen.render(look))
    sys.stdout.flush()


async def _print_for_ever(looker: Looker, output: Output, interval_seconds: float) -> NoReturn:
    while True:
        _print(await looker.look(), output, indent=0)
        await anyio.sleep(interval_seconds)


async def _live(looker: Looker, interval_seconds: float) -> NoReturn:
    console = Console(highlight=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(top_screen.render(await looker.look()), refresh=True)
            await anyio.sleep(interval_seconds)
