"""A supervised process: started again when it ends, and never outliving its supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from hami.errors import SandboxError
from hami.sandbox.daemon import Daemon
from tests.support.processes import ended
from tests.support.sandbox import eventually, until


def waiting(directory: Path) -> Daemon:
    """A process that runs until it is stopped: it reads settings that never come."""
    pipe = directory / "settings"
    os.mkfifo(pipe)
    return Daemon(
        "waiting",
        ["check-config", "--config", str(pipe)],
        environment={},
        log_file=directory / "log",
    )


async def test_process_that_ends_is_started_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    daemon = Daemon("short", ["version"], environment={"NOTE": "x"}, log_file=log)

    async with anyio.create_task_group() as tasks:
        await tasks.start(daemon.run)
        await until(lambda: daemon.restarts >= 2, "the second start")
        tasks.cancel_scope.cancel()

    assert len(log.read_text().splitlines()) >= 2
    assert daemon.pid is None


async def test_killed_process_comes_back_as_another(tmp_path: Path) -> None:
    daemon = waiting(tmp_path)

    async with anyio.create_task_group() as tasks:
        await tasks.start(daemon.run)
        first = daemon.pid
        daemon.signal(signal.SIGKILL)
        await until(lambda: daemon.pid not in (first, None), "another process")
        assert daemon.restarts == 1
        tasks.cancel_scope.cancel()


async def test_stopping_the_supervisor_stops_the_process(tmp_path: Path) -> None:
    daemon = waiting(tmp_path)

    async with anyio.create_task_group() as tasks:
        await tasks.start(daemon.run)
        pid = daemon.pid
        tasks.cancel_scope.cancel()

    assert pid is not None
    assert await ended(pid)
    with pytest.raises(SandboxError, match="met none"):
        daemon.signal(signal.SIGTERM)


async def test_process_is_in_a_session_of_its_own(tmp_path: Path) -> None:
    daemon = waiting(tmp_path)

    async with anyio.create_task_group() as tasks:
        await tasks.start(daemon.run)
        assert daemon.pid is not None
        assert os.getsid(daemon.pid) == daemon.pid
        tasks.cancel_scope.cancel()


SUPERVISOR = """
import sys
from pathlib import Path
import anyio
from hami.sandbox.daemon import Daemon

async def main(directory):
    daemon = Daemon("waiting", ["check-config", "--config", str(directory / "settings")],
                    environment={}, log_file=directory / "log")
    async with anyio.create_task_group() as tasks:
        await tasks.start(daemon.run)
        print(daemon.pid, flush=True)

anyio.run(main, Path(sys.argv[1]))
"""


def test_process_dies_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "settings")
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        supervisor.kill()

    eventually(lambda: anyio.run(ended, pid), "the process to die as well")
