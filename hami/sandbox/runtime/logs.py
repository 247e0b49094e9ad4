"""Reads containers' log files, as ``kubectl logs`` asks for them.

A log is one file, and an older one (``.1``) where it was turned over. Bytes, not lines: what a
container wrote is what is returned.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from io import FileIO
from pathlib import Path
from typing import Final

import anyio

FOLLOW_SECONDS: Final = 0.2
"""How often a followed log is looked at."""
CHUNK_BYTES: Final = 64 * 1024


def tail(path: Path, *, lines: int | None = None) -> bytes:
    """The log, or its last lines; empty where there is none yet."""
    older = path.with_name(f"{path.name}.1")
    return _last(b"".join(_content(file) for file in (older, path)), lines)


async def follow(
    path: Path, *, lines: int | None, ended: Callable[[], bool]
) -> AsyncGenerator[bytes, None]:
    """The log as ``tail`` returns it, then what is added until the container has ended.

    What was written is returned even if the file is removed meanwhile.

    Args:
        path: The log.
        lines: How many lines to begin with; None for all.
        ended: Whether nothing will be added any more.
    """
    file = _open(path)
    try:
        older = _content(path.with_name(f"{path.name}.1"))
        if begun := _last(older + (_rest(file) if file else b""), lines):
            yield begun
        while True:
            last_look = ended()
            while file is not None and (chunk := file.read(CHUNK_BYTES)):
                yield chunk
            if _was_turned_over(path, file):
                if file is not None:
                    file.close()
                file = _open(path)
            elif last_look:
                return
            else:
                await anyio.sleep(FOLLOW_SECONDS)
    finally:
        if file is not None:
            file.close()


def _last(content: bytes, lines: int | None) -> bytes:
    if lines is None:
        return content
    kept = content.splitlines(keepends=True)
    return b"".join(kept[len(kept) - min(lines, len(kept)) :])


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _open(path: Path) -> FileIO | None:
    try:
        return FileIO(path)
    except FileNotFoundError:
        return None


def _rest(file: FileIO) -> bytes:
    return file.readall() or b""


def _was_turned_over(path: Path, file: FileIO | None) -> bool:
    """Whether the path leads to another file by now."""
    try:
        now = path.stat()
    except FileNotFoundError:
        return False
    return file is None or os.fstat(file.fileno()).st_ino != now.st_ino
