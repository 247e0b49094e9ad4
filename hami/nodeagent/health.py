"""Which devices may be used: a debounced verdict for each, from probes and driver events.

Pure: time is an argument. A critical event, or losing the device, counts at once; a failed question
counts when it repeats; a device comes back when it has answered for a while and nothing was heard
against it. Input: what ``nvml`` saw. Output: who is healthy, and why the others are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hami.core.codec import split_list
from hami.core.device import DeviceUuid

HARMLESS_XIDS: Final = frozenset({13, 31, 43, 45, 68, 109})
"""Errors of the application, not of the device."""
_EVERYTHING: Final = frozenset({"all", "xids"})


@dataclass(frozen=True, slots=True, kw_only=True)
class XidPolicy:
    """Which XIDs make a device unhealthy."""

    disabled: frozenset[int] = HARMLESS_XIDS
    all_disabled: bool = False
    enabled: frozenset[int] = frozenset()
    all_enabled: bool = False

    @classmethod
    def parse(cls, *, disable: str, enable: str) -> XidPolicy:
        """From two comma-separated lists of XIDs, or ``all``; what is no number is ignored.

        Enabling is stronger than disabling, and the harmless ones are disabled from the start: so
        ``disable="all", enable="79"`` leaves 79 alone, and ``enable="all"`` leaves none out.
        """
        disabled, all_disabled = _xids(disable)
        enabled, all_enabled = _xids(enable)
        return cls(
            disabled=disabled | HARMLESS_XIDS,
            all_disabled=all_disabled,
            enabled=enabled,
            all_enabled=all_enabled,
        )

    def counts(self, xid: int) -> bool:
        """Whether a device that reports this XID is unhealthy."""
        if self.all_enabled or xid in self.enabled:
            return True
        return not self.all_disabled and xid not in self.disabled


def _xids(text: str) -> tuple[frozenset[int], bool]:
    items = [item.lower() for item in split_list(text)]
    numbers = frozenset(int(item) for item in items if item.isascii() and item.isdigit())
    return numbers, not _EVERYTHING.isdisjoint(items)


@dataclass(slots=True, kw_only=True)
class _State:
    healthy: bool
    failures: int = 0
    """In a row."""
    troubled_at: float = float("-inf")
    """When something was last heard against it."""
    reason: str = ""


class HealthTracker:
    """Remembers what was seen of each device."""

    def __init__(self, *, failures: int, calm_seconds: float) -> None:
        """Begin without devices.

        Args:
            failures: Failed probes in a row that make a device unhealthy.
            calm_seconds: How long an unhealthy device must answer, with nothing heard against it,
                before it is healthy again.
        """
        self._failures = failures
        self._calm_seconds = calm_seconds
        self._states: dict[DeviceUuid, _State] = {}

    def answered(self, uuid: DeviceUuid, *, now: float) -> None:
        """The device answered a probe."""
        state = self._states.setdefault(uuid, _State(healthy=True))
        state.failures = 0
        if not state.healthy and now - state.troubled_at >= self._calm_seconds:
            state.healthy, state.reason = True, ""

    def failed(self, uuid: DeviceUuid, reason: str, *, now: float) -> None:
        """The device did not answer a probe."""
        state = self._states.setdefault(uuid, _State(healthy=False, failures=self._failures))
        state.failures += 1
        state.troubled_at = now
        if state.failures >= self._failures:
            state.healthy, state.reason = False, reason

    def broke(self, uuid: DeviceUuid, reason: str, *, now: float) -> None:
        """The driver reported a critical error of the device."""
        state = self._states.setdefault(uuid, _State(healthy=False))
        state.healthy, state.troubled_at, state.reason = False, now, reason

    def healthy(self, uuid: DeviceUuid) -> bool:
        """Whether the device may be used."""
        state = self._states.get(uuid)
        return state is not None and state.healthy

    def reason(self, uuid: DeviceUuid) -> str:
        """Why the device may not be used; empty if it may."""
        state = self._states.get(uuid)
        return state.reason if state is not None else "not seen yet"

    @property
    def suspicious(self) -> bool:
        """Whether some device's verdict hangs on the next probe."""
        return any(state.healthy and state.failures for state in self._states.values())
