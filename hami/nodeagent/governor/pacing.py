"""From a share to a rate of granted device time, corrected by what the driver measured. Pure.

The shim takes device time out of the grant by its own estimate of each launch. The estimate may be
wrong, and on a device that several use it is. So the rate is the share times a factor, of two
parts: the ratio of what was granted to what the driver then measured, over the same moments, as an
average that forgets; and a small correction that repays within seconds what was used too much or
too little, so that the long-run mean is exact. A new share takes effect at once, since the factor
does not depend on it, and a late measurement is compared with the grant of its own time, so that
lag cannot make the loop swing.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple

NS: Final = 1_000_000_000
FACTOR_MIN: Final = 1 / 16
FACTOR_MAX: Final = 32.0
_MEMORY_NS: Final = 1.0 * NS
"""What was measured longer ago counts less than half."""
_SHORT_MEMORY_NS: Final = 0.25 * NS
"""Nor that, once it is clear that a container gets too little."""
_SHORT_OF: Final = 0.93
_SHORT_WINDOWS: Final = 3
_MORE_OF: Final = 1.03
_STEP_UP: Final = 1.15
_STEP_DOWN: Final = 1.5
"""At most; by so much the rate is changed where the figures do not tell how far it is off."""
_PRIOR_NS: Final = 0.03 * NS
"""Device time for which the shim's estimate is trusted until something was measured."""
_REPAY_NS: Final = 1.5 * NS
_REPAY_MOST: Final = 0.3
_OWED_MOST: Final = 0.1 * NS
"""Device time that a container can be owed: what the device cannot give is not saved up."""
_OVERRUN_MOST: Final = 5.0 * NS
HOLD_AT_NS: Final = 0.3 * NS
"""Used so much too much, although the rate is at its floor: the grant is not what paces it."""
_KEPT: Final = 128
"""Ticks that are remembered; measurements that come later than that are ignored."""


@dataclass(frozen=True, slots=True)
class Window:
    """What the driver measured: device time used between two moments of CLOCK_MONOTONIC."""

    start_ns: int
    end_ns: int
    busy_ns: float

    @property
    def length_ns(self) -> int:
        """How long it is."""
        return self.end_ns - self.start_ns


class _Mark(NamedTuple):
    """Sums up to a moment."""

    at_ns: int
    granted_ns: float
    taken_ns: float
    due_ns: float
    """What the share came to."""
    paced_ns: float
    """Time in which a share was to be kept."""
    pressed_ns: float
    """Time in which all that was granted was taken."""

    def minus(self, other: _Mark) -> _Mark:
        return _Mark(
            self.at_ns - other.at_ns,
            self.granted_ns - other.granted_ns,
            self.taken_ns - other.taken_ns,
            self.due_ns - other.due_ns,
            self.paced_ns - other.paced_ns,
            self.pressed_ns - other.pressed_ns,
        )


class Pacer:
    """Paces one container on one device."""

    def __init__(self, *, factor: float = 1.0) -> None:
        """Begin with what an earlier governor had found, or with trust in the shim."""
        factor = min(max(factor, FACTOR_MIN), FACTOR_MAX)
        self._granted_ns, self._busy_ns = _PRIOR_NS * factor, _PRIOR_NS
        self._owed_ns = 0.0
        self._short = 0
        self._marks: deque[_Mark] = deque(maxlen=_KEPT)
        self._due_per_ns = 0.0

    @property
    def factor(self) -> float:
        """Granted device time for each used one."""
        factor = self._granted_ns / max(self._busy_ns, 1.0)
        if self._due_per_ns > 0:
            repay = self._owed_ns / (_REPAY_NS * self._due_per_ns)
            factor *= 1 + min(max(repay, -_REPAY_MOST), _REPAY_MOST)
        return min(max(factor, FACTOR_MIN), FACTOR_MAX)

    @property
    def overrun_ns(self) -> float:
        """Device time used beyond the share, on balance."""
        return max(-self._owed_ns, 0.0)

    @property
    def helpless(self) -> bool:
        """Whether far more is used than granted, and granting less has not helped."""
        return self.overrun_ns > HOLD_AT_NS and self.factor <= FACTOR_MIN

    def rate(self, permille: int) -> int:
        """Nanoseconds of device time to grant each second."""
        return round(permille / 1000 * NS * self.factor)

    def tick(self, now_ns: int, *, granted_ns: int, taken_ns: int, permille: int | None) -> None:
        """Note how things stood since the previous tick; call it before a new rate is set.

        Args:
            now_ns: CLOCK_MONOTONIC.
            granted_ns: All that was ever granted.
            taken_ns: All that was ever taken of it, as the container's own file says.
            permille: The share that was to be kept; None: none was.
        """
        now = _Mark(now_ns, granted_ns, taken_ns, 0.0, 0.0, 0.0)
        last = self._marks[-1] if self._marks else now
        if now_ns < last.at_ns or granted_ns < last.granted_ns:  # clock or file began anew
            self._marks.clear()
            last = now
        passed = now_ns - last.at_ns
        pressing, last_pressing = taken_ns >= granted_ns, last.taken_ns >= last.granted_ns
        self._due_per_ns = (permille or 0) / 1000
        self._marks.append(
            _Mark(
                now_ns,
                granted_ns,
                taken_ns,
                last.due_ns + passed * self._due_per_ns,
                last.paced_ns + (passed if permille is not None else 0),
                last.pressed_ns + (passed if pressing and last_pressing else 0),
            )
        )

    def learn(self, window: Window) -> None:
        """Take in a measurement. It counts only for a time that was paced throughout."""
        then = self._between(window)
        if then is None or then.paced_ns < 0.9 * window.length_ns:
            return
        short_ns = then.due_ns - window.busy_ns
        if then.pressed_ns >= 0.5 * window.length_ns:
            self._compare(window, then)
            self._owed_ns += short_ns
        elif window.busy_ns > _MORE_OF * then.due_ns:
            # More is granted than it can use, or it does not ask: how much more is not known.
            self._granted_ns /= min(window.busy_ns / max(then.due_ns, 1.0), _STEP_DOWN)
            self._bound()
            self._owed_ns += short_ns
        elif self._owed_ns < 0:  # what it leaves unused is set against what it used too much
            self._owed_ns = min(self._owed_ns + short_ns, 0.0)
        else:  # and whoever does not need it is owed nothing
            self._owed_ns *= math.exp(-window.length_ns / _MEMORY_NS)
        self._owed_ns = min(max(self._owed_ns, -_OVERRUN_MOST), _OWED_MOST)

    def _compare(self, window: Window, then: _Mark) -> None:
        """All that was granted was taken: so much of it was used."""
        short = 0 < window.busy_ns < _SHORT_OF * then.due_ns
        self._short = self._short + 1 if short else 0
        lacks = self._short >= _SHORT_WINDOWS
        keep = math.exp(-window.length_ns / (_SHORT_MEMORY_NS if lacks else _MEMORY_NS))
        self._granted_ns = self._granted_ns * keep + then.granted_ns
        self._busy_ns = self._busy_ns * keep + window.busy_ns
        if lacks:
            self._granted_ns *= _STEP_UP
        self._bound()

    def _bound(self) -> None:
        """Keep the ratio where it can come back from quickly."""
        self._busy_ns = max(self._busy_ns, self._granted_ns / FACTOR_MAX, 1.0)
        self._granted_ns = max(self._granted_ns, self._busy_ns * FACTOR_MIN)

    def _between(self, window: Window) -> _Mark | None:
        start, end = self._at(window.start_ns), self._at(window.end_ns)
        return None if start is None or end is None or window.length_ns <= 0 else end.minus(start)

    def _at(self, at_ns: int) -> _Mark | None:
        """The sums at a moment, between two ticks if need be; None: not remembered."""
        marks = self._marks
        place = bisect_right(marks, at_ns, key=lambda mark: mark.at_ns)
        if place == 0:
            return None
        before = marks[place - 1]
        if place == len(marks):
            return before
        after = marks[place]
        part = (at_ns - before.at_ns) / (after.at_ns - before.at_ns)
        span = after.minus(before)
        return _Mark(
            at_ns,
            before.granted_ns + span.granted_ns * part,
            before.taken_ns + span.taken_ns * part,
            before.due_ns + span.due_ns * part,
            before.paced_ns + span.paced_ns * part,
            before.pressed_ns + span.pressed_ns * part,
        )
