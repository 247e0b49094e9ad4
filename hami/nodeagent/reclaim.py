"""What dead processes left in a usage file is emptied, by a program that maps it in our place.

A container may cut its file short at any moment, which ends whoever has it mapped.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hami.errors import CodecError
from hami.nodeagent.region import USAGE, ProcessUse, read_usage

_RECLAIM: Final = Path(__file__).resolve().parent.parent / "shim" / "lib" / "region-reclaim"
_RECLAIM_SECONDS: Final = 10.0


def reclaim(directory: Path, is_dead: Callable[[ProcessUse], bool]) -> int:
    """Empty the slots of processes that are surely dead; returns how many were emptied.

    For what the container's own processes cannot see: owners in other pid namespaces, and the
    anonymous slot. ``is_dead`` is asked about every process that holds memory. Blocking.

    Raises:
        CodecError: See ``read_usage``; or the file changed while slots were emptied.
        OSError: A file cannot be read, or the helper program is not built.
    """
    holding = [
        process
        for process in read_usage(directory).processes
        if any(use.used_bytes or use.pending_bytes for use in process.devices)
    ]
    dead = [f"{process.slot}:{process.token}" for process in holding if is_dead(process)]
    if not dead:
        return 0
    done = subprocess.run(
        [_RECLAIM, directory / USAGE, *dead],
        capture_output=True,
        text=True,
        timeout=_RECLAIM_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise CodecError(
            f"{directory / USAGE}: expected slots to be emptied, met exit code "
            f"{done.returncode}: {done.stderr.strip()}"
        )
    return int(done.stdout)
