"""A process of the product, run and kept running as a Deployment or DaemonSet would.

It dies with the sandbox, whatever ends the sandbox, and is out of the terminal's reach: Ctrl-C is
for the sandbox, which then stops it in its turn. Its output goes to a file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

import anyio
from anyio.abc import Process, TaskStatus

from hami.errors import SandboxError
from hami.logs import get_logger

log = get_logger(__name__)

FIRST_RESTART_SECONDS: Final = 0.2
LONGEST_RESTART_SECONDS: Final = 10.0
CALM_SECONDS: Final = 30.0
"""A process that ran this long starts again without a pause."""
STOP_SECONDS: Final = 15.0

# Asks the kernel for SIGKILL when the parent dies (PR_SET_PDEATHSIG), sees that it has not died
# before that, then becomes the command line. Nothing is worth finishing: the API server is gone.
_CODE: Final = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9, 0, 0, 0); "
    "os.getppid() == int(sys.argv.pop(1)) or os._exit(1); "
    "from hami.cli import main; main()"
)


class Daemon:
    """One supervised ``hami`` process.

    Attributes:
        name: For logs.
        restarts: How often it ended by itself and was started again.
        environment: What it is started with next time; may be changed between starts.
    """

    def __init__(
        self, name: str, arguments: list[str], *, environment: Mapping[str, str], log_file: Path
    ) -> None:
        self.name = name
        self.restarts = 0
        self.environment = dict(environment)
        self.log_file = log_file
        self._arguments = arguments
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        return self._process.pid if self._process is not None else None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process.

        Raises:
            SandboxError: There is none now.
        """
        if self._process is None:
            raise SandboxError(f"{self.name}: expected a running process, met none")
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> NoReturn:
        """Keep the process running until cancelled; then stop it, by force if it takes too long."""
        pause = FIRST_RESTART_SECONDS
        while True:
            began = anyio.current_time()
            code = await self._once(task_status)
            task_status = anyio.TASK_STATUS_IGNORED
            self.restarts += 1
            if anyio.current_time() - began > CALM_SECONDS:
                pause = FIRST_RESTART_SECONDS
            log.warning("daemon_ended", daemon=self.name, status=code, seconds=pause)
            await anyio.sleep(pause)
            pause = min(pause * 2, LONGEST_RESTART_SECONDS)

    async def _once(self, task_status: TaskStatus[None]) -> int:
        with self.log_file.open("ab") as output:
            process = await anyio.open_process(
                [sys.executable, "-P", "-c", _CODE, str(os.getpid()), *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **self.environment},
            )
        self._process = process
        try:
            task_status.started()
            return await process.wait()
        finally:
            self._process = None
            await _end(process)


async def _end(process: Process) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    with anyio.CancelScope(shield=True):
        with anyio.move_on_after(STOP_SECONDS):
            await process.wait()
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
