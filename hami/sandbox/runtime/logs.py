"""Reads containers' log files, as ``kubectl logs`` asks for them.

A log is one file, and an older one (``.1``) where it was turned over. Bytes, not lines: what a
container wrote is what is returned.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import anyio

FOLLOW_SECONDS: Final = 0.2
"""How often a followed log is looked at."""
CHUNK_BYTES: Final = 64 * 1024


def tail(path: Path, *, lines: int | None = None) -> bytes:
    """The log, or its last lines; empty where there is none yet."""
    older = path.with_name(f"{path.name}.1")
    content = b"".join(_content(file) for file in (older, path))
    if lines is None:
        return content
    kept = content.splitlines(keepends=True)
    return b"".join(kept[len(kept) - min(lines, len(kept)) :])


async def follow(
    path: Path, *, lines: int | None, ended: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """The log as ``tail`` returns it, then what is added until the container has ended.

    Args:
        path: The log.
        lines: How many lines to begin with; None for all.
        ended: Whether nothing will be added any more.
    """
    begun = tail(path, lines=lines)
    offset, inode = _size(path)
    if begun:
        yield begun
    while True:
        last_look = ended()
        size, now = _size(path)
        if now != inode or size < offset:
            offset, inode = 0, now  # it was turned over
        while chunk := _read(path, offset):
            offset += len(chunk)
            yield chunk
        if last_look:
            return
        await anyio.sleep(FOLLOW_SECONDS)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _size(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_size, status.st_ino


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(CHUNK_BYTES)
    except FileNotFoundError:
        return b""
