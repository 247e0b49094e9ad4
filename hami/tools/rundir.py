"""The directories of ``hami run``: one a run, with the region's files and a note of whose it is.

They lie together in one directory of their user, so that runs of one user know of each other:
``$HAMI_RUN_DIR``; else root's in ``/run/hami``, others' in ``$XDG_RUNTIME_DIR/hami`` or
``/tmp/hami-UID``. Nobody else may enter it. A run is over when its process has ended and no other
process holds a slot of its region. Blocking.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from hami.errors import CodecError, ConfigError
from hami.nodeagent import region
from hami.tools.liveness import Owners

DIRECTORY_ENV: Final = "HAMI_RUN_DIR"
NOTE: Final = "run.json"
NOTE_BYTES: Final = 256 * 1024
WORDS_KEPT: Final = 32
WORD_KEPT: Final = 256
"""Characters of each."""
_NEW: Final = ".new-"
_START_FIELD: Final = 19
"""Of ``/proc/PID/stat``, counted from the state."""


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Whose a run is."""

    pid: int
    start_ticks: int
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run and its directory, which holds ``control`` and ``usage``."""

    directory: Path
    note: Note

    def is_over(self) -> bool:
        """Whether nobody uses the region any more."""
        if start_ticks(self.note.pid) == self.note.start_ticks:
            return False
        try:
            used = region.read_usage(self.directory).processes
        except (CodecError, OSError):
            return True
        owners = Owners()
        return all(owners.state(p.token, p.pid_namespace) != "alive" for p in used if p.token)

    def remove(self) -> None:
        """Delete the directory, as far as that goes."""
        shutil.rmtree(self.directory, ignore_errors=True)


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks; None: there is none, or it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    if len(fields) <= _START_FIELD or fields[0] in {"Z", "X"}:
        return None
    return int(fields[_START_FIELD])


def root(environment: Mapping[str, str], uid: int) -> Path:
    """Where the user's runs lie, whether it exists or not."""
    if environment.get(DIRECTORY_ENV):
        return Path(environment[DIRECTORY_ENV])
    above = Path("/run" if uid == 0 else environment.get("XDG_RUNTIME_DIR", ""))
    if above.is_absolute() and above.is_dir():
        return above / "hami"
    return Path(f"/tmp/hami-{uid}")


def open_root(path: Path) -> Path:
    """Make sure that the directory is there and that nobody else can write into it.

    Raises:
        ConfigError: It cannot be made, or it is somebody else's.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        met = path.lstat()
    except OSError as error:
        raise ConfigError(f"directory of runs {path}: {error.strerror}") from error
    if not stat.S_ISDIR(met.st_mode) or met.st_uid != os.geteuid() or met.st_mode & 0o077:
        raise ConfigError(
            f"directory of runs {path}: expected one that this user alone may enter, met mode "
            f"{stat.S_IMODE(met.st_mode):04o} of user {met.st_uid}"
        )
    return path


def runs(path: Path) -> Iterator[Run]:
    """Every run whose note can be read."""
    try:
        entries = sorted(path.iterdir())
    except OSError:
        return
    for directory in entries:
        if directory.name.startswith("."):
            continue
        try:
            yield Run(directory=directory, note=_read(directory))
        except (OSError, msgspec.MsgspecError):
            continue


def clean(path: Path) -> None:
    """Remove what runs left that are over."""
    for run in runs(path):
        if run.is_over():
            run.remove()
    for directory in path.glob(f"{_NEW}*"):
        pid, _, start = directory.name.removeprefix(_NEW).partition("-")
        if not (pid.isdigit() and start_ticks(int(pid)) == _number(start)):
            shutil.rmtree(directory, ignore_errors=True)


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _read(directory: Path) -> Note:
    with (directory / NOTE).open("rb") as file:
        return msgspec.json.decode(file.read(NOTE_BYTES), type=Note)


def _shown(command: Sequence[str]) -> Iterator[str]:
    """Enough of it to know it again, as text, whatever its bytes are."""
    for word in command[:WORDS_KEPT]:
        yield word[:WORD_KEPT].encode(errors="replace").decode()


class Making:
    """A directory of this process, under another name until it is ``done``."""

    def __init__(self, path: Path, command: tuple[str, ...]) -> None:
        pid = os.getpid()
        start = start_ticks(pid) or 0
        name = f"{pid}-{start}"
        self.directory = path / f"{_NEW}{name}"
        self._final = path / name
        self._note = Note(pid=pid, start_ticks=start, command=tuple(_shown(command)))
        self.directory.mkdir(mode=0o700)

    def done(self) -> Run:
        """Give it its name; the directory has moved."""
        (self.directory / NOTE).write_bytes(msgspec.json.encode(self._note))
        self.directory.rename(self._final)
        return Run(directory=self._final, note=self._note)
