"""Puts the shim on the host, where containers can mount it.

Never overwrites a file that a running container may have mapped: each build of the library gets its
own name, put in place by a rename, and stays while it may be in use. Blocking; call from a thread.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Final

from hami import __version__
from hami.errors import ConfigError
from hami.logs import get_logger
from hami.nodeagent.allocate import FAIL_OPEN_PATH, LIBRARY_PATH, Shim

log = get_logger(__name__)

LIBRARY: Final = "libvgpu.so"
PRELOAD: Final = "ld.so.preload"
PRELOAD_FAIL_OPEN: Final = "ld.so.preload.fail-open"
"""Two names, for both may be mounted somewhere: a container keeps its place when it restarts."""
PACKAGED: Final = Path(__file__).resolve().parent.parent / "shim" / "lib" / LIBRARY


def install(source: Path, directory: Path, *, fail_open: bool = False) -> Shim:
    """Make sure the library and the preload files stand in ``directory``; where they are.

    Installing the same build again changes nothing.

    Args:
        source: The library.
        directory: Of the host.
        fail_open: Have it loaded from the place where unreadable limits are no limits.

    Raises:
        ConfigError: The library is not there, or the directory cannot be written.
    """
    try:
        content = source.read_bytes()
        directory.mkdir(parents=True, exist_ok=True)
        name = f"{LIBRARY}.{__version__}-{hashlib.sha256(content).hexdigest()[:12]}"
        library = directory / name
        _write(library, content, mode=0o755)
        for preload, inside in ((PRELOAD, LIBRARY_PATH), (PRELOAD_FAIL_OPEN, FAIL_OPEN_PATH)):
            _write(directory / preload, f"{inside}\n".encode(), mode=0o644)
    except OSError as error:
        raise ConfigError(f"installing {source} in {directory}: {error}") from error
    log.info("shim_installed", path=str(library))
    if fail_open:
        return Shim(library=library, preload=directory / PRELOAD_FAIL_OPEN, inside=FAIL_OPEN_PATH)
    return Shim(library=library, preload=directory / PRELOAD, inside=LIBRARY_PATH)


def prune(shim: Shim, *, in_use: Collection[str]) -> int:
    """Remove the libraries of other builds that no container was prepared with; how many.

    A container keeps its mounts when it restarts, so a library stays while its container's region
    does, mapped at the moment or not.
    """
    removed = 0
    for path in shim.library.parent.glob(f"{LIBRARY}.*"):
        if path == shim.library or str(path) in in_use:
            continue
        try:
            path.unlink()
        except OSError as error:
            log.warning("old_shim_not_removed", path=str(path), error=str(error))
            continue
        removed += 1
        log.info("old_shim_removed", path=str(path))
    return removed


def _write(path: Path, content: bytes, *, mode: int) -> None:
    """Put the file in place at once, unless it is there already."""
    if path.is_file() and path.read_bytes() == content:
        return
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
