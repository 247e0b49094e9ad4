"""Device memory that a container uses and no hook has seen, measured for its limit. Pure.

The driver says what each process holds, the usage file what the shim has counted. The difference is
modules, contexts that were made before their size was known, what libraries take by other ways, and
what a container hides by writing over its usage file. Both figures move while they are read, so
tracked bytes are taken before and after the driver's, the larger counts, and of two successive
differences the smaller one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

SLACK_BYTES: Final = 4 * 2**20
"""Of each process: what drivers round up to whole blocks is nobody's doing."""
CONTEXT_MAX_BYTES: Final = 2 * 2**30
"""No context is believed to take more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessBytes:
    """One process on one device."""

    driver_bytes: int
    tracked_bytes: int | None
    """By its own slot; None: it has none."""
    context_bytes: int = 0
    """Of those, what was charged for contexts."""


@dataclass(slots=True)
class UntrackedMeter:
    """One container on one device."""

    untracked_bytes: int = 0
    context_bytes: int = 0
    """What a context takes of this device; 0: not known yet."""
    strangers: int = 0
    """Processes that hold memory and have had no slot, two looks in a row."""
    processes: int = 0
    _unknown_contexts: int = 0
    """Processes whose context was not charged."""
    _previous: int = 0
    _previous_strangers: int = 0

    def measure(
        self, processes: Iterable[ProcessBytes], *, before_bytes: int, after_bytes: int
    ) -> None:
        """Take in one look.

        Args:
            processes: Those of the container, as the driver lists them.
            before_bytes: What its usage file said before the driver was asked: all its slots.
            after_bytes: And after.
        """
        met = list(processes)
        self.processes = len(met)
        self._unknown_contexts = sum(process.context_bytes == 0 for process in met)
        held = sum(process.driver_bytes for process in met)
        now = held - max(before_bytes, after_bytes)
        now = now if now > SLACK_BYTES * len(met) else 0
        self.untracked_bytes, self._previous = min(now, self._previous), now
        strangers = sum(
            process.tracked_bytes is None and process.driver_bytes > SLACK_BYTES for process in met
        )
        self.strangers = min(strangers, self._previous_strangers)
        self._previous_strangers = strangers
        self._learn(met)

    def excess_bytes(self) -> int:
        """What is untracked beyond a context for each process that was not charged for one."""
        return max(self.untracked_bytes - self.context_bytes * self._unknown_contexts, 0)

    def _learn(self, processes: Iterable[ProcessBytes]) -> None:
        """A process that holds nothing but its context shows what that takes: the least counts.

        Only the container's own processes are asked: nobody pays for what another pretends.
        """
        bare = [
            process.driver_bytes
            for process in processes
            if process.tracked_bytes == process.context_bytes and process.driver_bytes
        ]
        if not bare or min(bare) > CONTEXT_MAX_BYTES:
            return
        least = min(bare)
        if self.context_bytes == 0 or least < self.context_bytes:
            self.context_bytes = least
