"""When a container that ended may be started again: the kubelet's crash-loop back-off. Pure.

The first restart is immediate, the second waits for the base, and each further one twice as long as
the one before, up to the cap. A container that went on for twice the cap begins anew.
"""

from __future__ import annotations


class CrashLoop:
    """The back-off of one container."""

    def __init__(self, *, base_seconds: float, cap_seconds: float) -> None:
        self._base_seconds = base_seconds
        self._cap_seconds = cap_seconds
        self._next = 0.0
        self._ended_at = float("-inf")

    def after_end(self, *, now: float) -> float:
        """Seconds to wait before the restart, the container having ended now."""
        if now - self._ended_at > 2 * self._cap_seconds:
            self._next = 0.0
        self._ended_at = now
        delay = self._next
        self._next = min(self._cap_seconds, 2 * delay) if delay else self._base_seconds
        return delay
