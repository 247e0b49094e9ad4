"""How a slot's owner word is packed, as ``hami/shim/src/process.h`` says: pid, namespace, start.

Pure. Namespace and start are only the low bits of what they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_PID_SHIFT: Final = 42
_NAMESPACE_SHIFT: Final = 22
NAMESPACE_MASK: Final = 2**20 - 1
START_MASK: Final = 2**22 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerWord:
    """An owner word, unpacked."""

    pid: int
    """In its own pid namespace."""
    namespace: int
    """Low bits of the namespace's inode number; 0: not known."""
    start: int
    """Low bits of the start time in clock ticks; 0: not known."""


def unpack(word: int) -> OwnerWord:
    """What the word says."""
    return OwnerWord(
        pid=word >> _PID_SHIFT,
        namespace=word >> _NAMESPACE_SHIFT & NAMESPACE_MASK,
        start=word & START_MASK,
    )
