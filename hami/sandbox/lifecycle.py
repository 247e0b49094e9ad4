"""Where a sandbox lives on disk, and how it is started and stopped as a background process.

One directory a sandbox, its owner's alone: ``kubeconfig``, ``sandbox.pid``, ``logs/``,
``nodes/<name>/`` and some more. The running process holds a lock on ``sandbox.pid``, so that a
stale file is never taken for a live sandbox. A sandbox begins with nothing of the one before, and
leaves only its logs.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final, cast

import msgspec

from hami.errors import SandboxError
from hami.sandbox.spec import Layout

STOP_SECONDS: Final = 60.0
MAX_SOCKET_PATH: Final = 107
"""Bytes that Linux takes as the path of a unix socket."""
_START_SECONDS: Final = 60.0
_START_SECONDS_PER_NODE: Final = 3.0
"""An agent costs a second of one CPU to start, and more on a busy machine."""
_CLAIM_SECONDS: Final = 1.0
"""Whoever only asks whether a sandbox runs has the lock for a moment as well."""
_POLL_SECONDS: Final = 0.05
_LOG: Final = "sandbox.log"
_LONGEST_SOCKET: Final = "dp/hami-nvidia.com-gpu.sock"
_TREES: Final = ("nodes", "certs")
_FILES: Final = ("kubeconfig", "controller.yaml", "ready.json", "ready.json.new")
_KEPT: Final = ("logs", "sandbox.pid")


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
        SandboxError: It cannot be made, belongs to somebody else, or holds something else.
    """
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = place.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise SandboxError(f"state directory {place}: expected a directory of this user's own")
        foreign = {entry.name for entry in place.iterdir()} - {*_TREES, *_FILES, *_KEPT}
        if foreign and not (place / "sandbox.pid").exists():
            raise SandboxError(
                f"state directory {place}: expected an empty one or that of a sandbox, "
                f"met {min(foreign)!r} in it"
            )
        (place / "logs").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise SandboxError(f"state directory {place}: {error.strerror}") from error


def check_room(place: Path, layout: Layout) -> None:
    """See that the paths of the nodes' sockets are not too long for the kernel.

    Raises:
        SandboxError: They are.
    """
    longest = max((name for name, _ in layout.names()), key=len)
    length = len(os.fsencode(place / "nodes" / longest / _LONGEST_SOCKET))
    if length > MAX_SOCKET_PATH:
        raise SandboxError(
            f"state directory {place}: expected a path shorter by {length - MAX_SOCKET_PATH} bytes "
            "(or shorter node names), since unix sockets are in it"
        )


def start_seconds(layout: Layout) -> float:
    """How long a sandbox of this size may take until it is ready."""
    return _START_SECONDS + _START_SECONDS_PER_NODE * len(layout.names())


@contextmanager
def claim(place: Path) -> Iterator[None]:
    """Be the one sandbox of this directory while the context lasts.

    Raises:
        SandboxError: Another one is, or the directory is not usable.
    """
    prepare(place)
    try:
        file = (place / "sandbox.pid").open("a+", encoding="ascii")
    except OSError as error:
        raise SandboxError(f"{place / 'sandbox.pid'}: {error.strerror}") from error
    with file:
        _lock(file, place)
        _write(file, str(os.getpid()))
        _clear(place)
        try:
            for log in (place / "logs").glob("*.log"):
                if log.name != _LOG:
                    log.unlink()
            yield
        finally:
            _clear(place)
            _write(file, "")


def _lock(file: IO[str], place: Path) -> None:
    deadline = time.monotonic() + _CLAIM_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() > deadline:
                raise _running_already(place) from error
            time.sleep(_POLL_SECONDS)
        else:
            return


def _running_already(place: Path) -> SandboxError:
    return SandboxError(
        f"a sandbox runs in {place} already (process {pid(place) or 'unknown'}); stop it with "
        "'hami sandbox down', or give this one a directory of its own with --dir"
    )


def _write(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _clear(place: Path) -> None:
    """Remove what a sandbox makes, logs excepted; nothing else that lies in the directory."""
    try:
        for name in _TREES:
            with suppress(FileNotFoundError):
                shutil.rmtree(place / name)
        for name in _FILES:
            (place / name).unlink(missing_ok=True)
    except OSError as error:
        raise SandboxError(f"state directory {place}: cannot clear it: {error}") from error


def pid(place: Path) -> int | None:
    """The process of the running sandbox; None if none runs.

    Raises:
        SandboxError: The directory is somebody else's.
    """
    try:
        with (place / "sandbox.pid").open("r", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read().strip()
                return int(text) if text.isdigit() else None
            return None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SandboxError(f"state directory {place}: {error.strerror}") from error


def ready_file(place: Path) -> Path:
    """Exists while the sandbox is up and ready; JSON facts about it."""
    return place / "ready.json"


def announce(place: Path, facts: dict[str, str]) -> None:
    """Say that this process's sandbox is ready, and what others need to know to use it."""
    temporary = place / "ready.json.new"
    content = json.dumps({**facts, "process": str(os.getpid())})
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(ready_file(place))


def facts(place: Path) -> dict[str, str]:
    """What the running sandbox says of itself.

    Raises:
        SandboxError: None runs here, or it is not ready yet.
    """
    running = pid(place)
    if running is None:
        raise SandboxError(f"no sandbox runs in {place}; start one with 'hami sandbox up'")
    content = _announced(place, running)
    if content is None:
        raise SandboxError(
            f"the sandbox in {place} (process {running}) is starting or stopping; try again"
        )
    return content


def _announced(place: Path, process: int) -> dict[str, str] | None:
    """What that process announced; None where it did not yet, whatever others left there."""
    try:
        content: dict[str, str] = json.loads(ready_file(place).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content if content.get("process") == str(process) else None


def start(place: Path, layout: Layout, *, mode: str) -> subprocess.Popen[bytes]:
    """Start a sandbox in the background and wait until it is ready; its process.

    Whatever ends the waiting early, Ctrl-C included, ends that process as well.

    Raises:
        SandboxError: One runs already, or it did not come up; the message has its last words.
    """
    check_room(place, layout)
    prepare(place)
    if pid(place) is not None:
        raise _running_already(place)
    command = [sys.executable, "-P", "-m", "hami", "sandbox", "up", "--foreground"]
    command += ["--dir", str(place), "--file", "/dev/stdin", "--mode", mode]
    with (place / "logs" / _LOG).open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _tell(process, msgspec.yaml.encode(layout))
        # The process itself gives up a little earlier, and knows better why.
        _await_ready(place, process, seconds=start_seconds(layout) + STOP_SECONDS)
    except BaseException:
        _end(process)
        raise
    return process


def _tell(process: subprocess.Popen[bytes], content: bytes) -> None:
    """Write to its standard input; one that has ended says itself why."""
    with suppress(BrokenPipeError), cast(IO[bytes], process.stdin) as stdin:
        stdin.write(content)


def _await_ready(place: Path, process: subprocess.Popen[bytes], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    log = place / "logs" / _LOG
    while _announced(place, process.pid) is None:
        if process.poll() is not None:
            raise SandboxError(f"the sandbox did not come up: {last_words(log)}")
        if time.monotonic() > deadline:
            raise SandboxError(f"the sandbox did not come up within {seconds:.0f} s; see {log}")
        time.sleep(_POLL_SECONDS)


def last_words(log: Path) -> str:
    """What a process said in the end: its own error if it named one, else its last line."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    own = [line.removeprefix("hami: ") for line in lines if line.startswith("hami: ")]
    return (own or lines or [f"it said nothing in {log}"])[-1]


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def stop(place: Path) -> None:
    """Stop the running sandbox and wait until its process is gone.

    Raises:
        SandboxError: None runs, or it does not end.
    """
    running = pid(place)
    if running is None:
        raise SandboxError(f"no sandbox runs in {place}")
    try:
        process = os.pidfd_open(running)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        ended, _, _ = select.select([process], [], [], STOP_SECONDS)
    finally:
        os.close(process)
    if not ended:
        raise SandboxError(f"the sandbox (process {running}) did not end; see {place / 'logs'}")
