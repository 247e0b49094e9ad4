"""The warden of one ``hami run``: a process that outlives it, and clears away what it leaves.

``python -m hami.tools.warden DIRECTORY``. It ends when the run is over (see ``rundir``). Of all
wardens of a user one governs compute, for all of the user's runs: whoever holds the lock. The
kernel passes it on when that one ends, in whatever way; rates stand meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

import anyio
import anyio.to_thread

from hami import logs
from hami.config import LogSettings, NodeAgentSettings
from hami.errors import CodecError
from hami.logs import get_logger
from hami.nodeagent.governor.loop import Governor
from hami.nodeagent.governor.tenants import Tenant
from hami.nodeagent.nvml import Nvml
from hami.tools import rundir

log = get_logger(__name__)

LOCK: Final = "governor.lock"
LOOK_SECONDS: Final = 1.0
"""How often it is seen whether processes that a program started still use its region."""
LOCK_SECONDS: Final = 0.2
"""How often a warden tries to become the one that governs."""
REFRESH_SECONDS: Final = 0.3
"""How often it is seen which runs there are."""


class Runs:
    """The tenants of a governor: every run of a user."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tenants: dict[Path, Tenant] = {}
        self._looked_at = float("-inf")

    async def refresh(self) -> Sequence[Tenant]:
        """All runs of now; one stays the same object."""
        if anyio.current_time() - self._looked_at >= REFRESH_SECONDS:
            self._looked_at = anyio.current_time()
            await anyio.to_thread.run_sync(self._open_and_close)
        return list(self._tenants.values())

    def _open_and_close(self) -> None:
        present = {run.directory for run in rundir.runs(self._root)}
        for path in self._tenants.keys() - present:
            self._tenants.pop(path).close()
        for path in sorted(present - self._tenants.keys()):
            with contextlib.suppress(CodecError, OSError):  # it is being removed, or was spoilt
                self._tenants[path] = Tenant.open(path)


async def govern(root: Path) -> NoReturn:
    """Wait for the lock, then govern for ever."""
    settings = NodeAgentSettings()
    with (root / LOCK).open("ab") as lock:
        taken = False
        while not taken:
            taken = _is_taken(lock.fileno())
            await anyio.sleep(0 if taken else LOCK_SECONDS)
        log.info("governor_started", directory=str(root))
        await Governor(Runs(root), Nvml(settings), settings).run()


def _is_taken(handle: int) -> bool:
    """Whether the lock is this process's now."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
    except OSError:  # it has ended; or the kernel is old, and it is looked for by the clock
        return
    try:
        select.select([handle], [], [])
    finally:
        os.close(handle)


async def serve(run: rundir.Run) -> None:
    """Govern, if nobody else does, until the run is over."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(govern, run.directory.parent, name="governor")
        await watch(run)
        tasks.cancel_scope.cancel()


def main(directory: Path) -> None:
    """Serve one run until it is over."""
    logs.configure(LogSettings(format="console"))
    found = [run for run in rundir.runs(directory.parent) if run.directory == directory]
    if not found:
        return
    anyio.run(serve, found[0])
    found[0].remove()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
