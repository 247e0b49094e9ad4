"""The warden of one ``hami run``: a process that outlives it, and clears away what it leaves.

``python -m hami.tools.warden DIRECTORY``. It ends when the run is over (see ``rundir``).
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from hami import logs
from hami.config import LogSettings
from hami.logs import get_logger
from hami.tools import rundir

log = get_logger(__name__)

LOOK_SECONDS: Final = 1.0
"""How often it is seen whether processes that a program started still use its region."""


async def watch(run: rundir.Run) -> None:
    """Return when the run is over."""
    await anyio.to_thread.run_sync(_wait_for, run.note.pid, abandon_on_cancel=True)
    over = False
    while not over:
        over = await anyio.to_thread.run_sync(run.is_over)
        await anyio.sleep(0 if over else LOOK_SECONDS)


def _wait_for(pid: int) -> None:
    """Until the process has ended; it is not this one's child."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:  # it has ended; an old kernel's is_over() looks at the clock instead
        return
    try:
        select.select([handle], [], [])
    finally:
        os.close(handle)


def main(directory: Path, serve: Callable[[rundir.Run], object] = lambda run: None) -> None:
    """Serve one run until it is over."""
    logs.configure(LogSettings(format="console"))
    found = [run for run in rundir.runs(directory.parent) if run.directory == directory]
    if not found:
        return
    anyio.run(watch, found[0])
    found[0].remove()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
