"""Whether the owner of a slot still lives, as far as this process can see. Reads ``/proc``."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from hami.nodeagent import ownerword, processes

State = Literal["alive", "dead", "unknown"]
_PROC: Final = Path("/proc")


class Owners:
    """One look at the processes of this machine, asked about owners."""

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc
        self._living = processes.look(proc)

    def state(self, owner: int, namespace: int) -> State:
        """Of the process that an owner word names.

        Args:
            owner: The owner word.
            namespace: The inode number that stands beside it; believed if its bits are the word's.
        """
        word = ownerword.unpack(owner)
        own = self._living.own_namespace
        if word.namespace == own & ownerword.NAMESPACE_MASK:
            return self._here(word)
        if namespace & ownerword.NAMESPACE_MASK != word.namespace:
            return "unknown"
        if (namespace, word.pid) in self._living.processes:
            return "alive"
        return "dead" if self._living.is_dead(namespace, word.pid) else "unknown"

    def _here(self, word: ownerword.OwnerWord) -> State:
        """One of our own pid namespace: its start time tells it from a later one of that pid."""
        try:
            text = (self._proc / str(word.pid) / "stat").read_text(errors="replace")
        except OSError:
            return "dead"
        fields = text.rpartition(")")[2].split()
        if len(fields) < 20:  # it ended while it was read
            return "dead"
        start = int(fields[19])
        if word.start and start & ownerword.START_MASK != word.start:
            return "dead"
        ended = fields[0] in {"Z", "X"} and int(fields[17]) <= 1
        return "dead" if ended else "alive"
