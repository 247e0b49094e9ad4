"""Which processes of this machine are alive, as the containers they run in count them.

A usage file names its processes by their own pid and pid namespace. Seen from the host, a process
that is in neither of ``/proc``'s rows any more is dead, provided its namespace is one that is shown
here at all. Blocking; what cannot be told is taken to be alive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

INITIAL_NAMESPACE: Final = 0xEFFFFFFC
"""Inode of the pid namespace that shows every process (the kernel's PROC_PID_INIT_INO)."""
_PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Living:
    """One look at ``/proc``."""

    own_namespace: int
    processes: frozenset[tuple[int, int]]
    """Pid namespace and pid within it."""

    def is_dead(self, namespace: int, pid: int) -> bool:
        """Whether there is surely no such process. A recycled pid makes the dead look alive."""
        if not namespace or pid <= 0 or (namespace, pid) in self.processes:
            return False
        return (
            self.own_namespace == INITIAL_NAMESPACE
            or namespace == self.own_namespace
            or any(shown == namespace for shown, _ in self.processes)
        )


def look(proc: Path = _PROC) -> Living:
    """Everything that is alive now, threads and zombies included."""
    return Living(own_namespace=_namespace(proc / "self"), processes=frozenset(_processes(proc)))


def _processes(proc: Path) -> Iterator[tuple[int, int]]:
    for directory in proc.glob("[0-9]*"):
        try:
            status = (directory / "status").read_text(errors="replace")
            namespace = _namespace(directory)
        except OSError:
            continue  # it has ended in this moment
        for line in status.splitlines():
            if line.startswith("NSpid:"):
                yield namespace, int(line.split()[-1])


def _namespace(directory: Path) -> int:
    """Inode of the process's pid namespace, out of ``pid:[4026531836]``; 0 if it is hidden."""
    try:
        target = (directory / "ns" / "pid").readlink().name
    except OSError:
        return 0
    number = target.partition("[")[2].rstrip("]")
    return int(number) if number.isdigit() else 0
