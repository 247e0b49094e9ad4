"""Where a sandbox lives on disk, and how it is started and stopped as a background process.

One directory a sandbox: ``kubeconfig``, ``sandbox.pid``, ``logs/``, ``nodes/<name>/``. The running
process holds a lock on ``sandbox.pid``, so that a stale file is never taken for a live sandbox.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from hami.errors import SandboxError
from hami.sandbox.spec import Layout

START_SECONDS = 120.0
STOP_SECONDS = 60.0
_POLL_SECONDS = 0.05


def directory(chosen: Path | None) -> Path:
    """The state directory: as chosen, else one a user has for itself, short enough for sockets."""
    if chosen is not None:
        return chosen.resolve()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) if runtime and os.access(runtime, os.W_OK) else Path("/tmp")
    return base / f"hami-sandbox-{os.getuid()}"


def prepare(place: Path) -> None:
    """Make the directory, for its owner alone.

    Raises:
        SandboxError: It cannot be made, or belongs to somebody else.
    """
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if place.stat().st_uid != os.getuid():
            raise SandboxError(f"state directory {place}: expected to own it, met another owner")
        (place / "logs").mkdir(exist_ok=True)
    except OSError as error:
        raise SandboxError(f"state directory {place}: {error}") from error


@contextmanager
def claim(place: Path) -> Iterator[None]:
    """Be the one sandbox of this directory while the context lasts.

    Raises:
        SandboxError: Another one is.
    """
    prepare(place)
    with (place / "sandbox.pid").open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SandboxError(
                f"a sandbox is running in {place} already (process {pid(place) or 'unknown'}); "
                "stop it with 'hami sandbox down'"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            ready_file(place).unlink(missing_ok=True)
            file.seek(0)
            file.truncate()


def pid(place: Path) -> int | None:
    """The process of the running sandbox; None if none runs."""
    try:
        with (place / "sandbox.pid").open("r", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read().strip()
                return int(text) if text.isdigit() else None
            return None
    except FileNotFoundError:
        return None


def ready_file(place: Path) -> Path:
    """Exists while the sandbox is up and ready; JSON facts about it."""
    return place / "ready.json"


def facts(place: Path) -> dict[str, str]:
    """What the running sandbox says of itself.

    Raises:
        SandboxError: None runs here.
    """
    if pid(place) is None or not ready_file(place).exists():
        raise SandboxError(f"no sandbox runs in {place}; start one with 'hami sandbox up'")
    content: dict[str, str] = json.loads(ready_file(place).read_text(encoding="utf-8"))
    return content


def start(place: Path, layout: Layout, *, mode: str) -> subprocess.Popen[bytes]:
    """Start a sandbox in the background and wait until it is ready; its process.

    Raises:
        SandboxError: One runs already, or it did not come up; the message has its last words.
    """
    if pid(place) is not None:
        raise SandboxError(f"a sandbox is running in {place} already")
    prepare(place)
    cluster_file = place / "cluster.yaml"
    cluster_file.write_bytes(msgspec.yaml.encode(layout))
    log = place / "logs" / "sandbox.log"
    command = [sys.executable, "-m", "hami", "sandbox", "up", "--foreground"]
    command += ["--dir", str(place), "--file", str(cluster_file), "--mode", mode]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while not ready_file(place).exists():
        if process.poll() is not None or time.monotonic() > deadline:
            with suppress(ProcessLookupError):
                process.terminate()
            tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
            raise SandboxError("the sandbox did not come up: " + " | ".join(tail))
        time.sleep(_POLL_SECONDS)
    return process


def stop(place: Path) -> None:
    """Stop the running sandbox and wait until it is gone.

    Raises:
        SandboxError: None runs, or it does not end.
    """
    running = pid(place)
    if running is None:
        raise SandboxError(f"no sandbox runs in {place}")
    os.kill(running, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while pid(place) is not None:
        if time.monotonic() > deadline:
            raise SandboxError(f"the sandbox (process {running}) did not end; see {place / 'logs'}")
        time.sleep(_POLL_SECONDS)
