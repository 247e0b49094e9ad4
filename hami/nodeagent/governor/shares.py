"""Who may use how much of a device: each contender's share, or that it must wait. Pure.

Shares are permille of the device's time. A policy of ``disable`` is never paced; ``force`` always
is, at its limit; ``default`` is not while nobody else uses the device. Contenders of lower priority
wait while one of higher priority works. A limit is a promise as well: whoever has none shares what
is left, by weight (weighted max-min fairness), and what one does not use the others get.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from hami.nodeagent.region import CoreMode, Policy

WHOLE: Final = 1000
"""Permille of a device."""
MINIMUM: Final = 1
"""Nobody who may work at all gets less."""
DEFAULT_WEIGHT: Final = 100
_HEADROOM: Final = 1.25
_HEADROOM_PERMILLE: Final = 20
"""What is kept free for one that uses less than it may, beyond what it used of late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One container that was given the device."""

    limit: int = 0
    """Permille; 0, or a whole device: no limit."""
    weight: int = DEFAULT_WEIGHT
    priority: int = 1
    """0 is the highest."""
    policy: Policy = Policy.DEFAULT
    active: bool = True
    """Whether it has worked of late, or waits to."""
    wants: int = WHOLE
    """Permille that it is known to use; a whole device: as much as it can get."""

    @property
    def limited(self) -> bool:
        """Whether it has a limit at all."""
        return 0 < self.limit < WHOLE

    @property
    def ceiling(self) -> int:
        """The most that it may ever get."""
        return self.limit if self.limited else WHOLE


@dataclass(frozen=True, slots=True)
class Share:
    """What a contender gets."""

    mode: CoreMode
    """OFF, LIMIT or BLOCK."""
    permille: int
    """Its share where it is limited; what it may use where it is not; 0 where it must wait."""


def divide(
    contenders: Sequence[Contender], *, priority_block: bool = True, fair_share: bool = True
) -> tuple[Share, ...]:
    """Each contender's share, in their order.

    One that is idle gets what it would get if it began to work now: so it is paced, or held, from
    its first launch on. The shares of those who are active add up to at most a whole device.

    Args:
        contenders: All containers that were given the device.
        priority_block: Lower priorities wait while a higher one is active.
        fair_share: Those without a limit are paced where several want the device.
    """
    rules = _Rules(priority_block=priority_block, fair_share=fair_share)
    active = [index for index, contender in enumerate(contenders) if contender.active]
    now = dict(zip(active, rules.apply([contenders[index] for index in active]), strict=True))
    return tuple(
        now[index] if index in now else rules.newcomer(contender, contenders)
        for index, contender in enumerate(contenders)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    priority_block: bool
    fair_share: bool

    def newcomer(self, contender: Contender, all_of_them: Sequence[Contender]) -> Share:
        """What one that is idle would get."""
        others = [other for other in all_of_them if other.active]
        return self.apply([replace(contender, active=True, wants=WHOLE), *others])[0]

    def apply(self, active: Sequence[Contender]) -> list[Share]:
        """The shares of contenders that all work."""
        first = min((contender.priority for contender in active), default=0)
        running = [
            index
            for index, contender in enumerate(active)
            if contender.priority == first
            or contender.policy is Policy.DISABLE
            or not self.priority_block
        ]
        shares = [Share(CoreMode.BLOCK, 0)] * len(active)
        portions = _portions([active[index] for index in running])
        for index, permille in zip(running, portions, strict=True):
            mode = self._mode(active[index], alone=len(running) == 1)
            shares[index] = Share(mode, permille)
        return shares

    def _mode(self, contender: Contender, *, alone: bool) -> CoreMode:
        if contender.policy is Policy.DISABLE:
            return CoreMode.OFF
        if not contender.limited:
            return CoreMode.OFF if alone or not self.fair_share else CoreMode.LIMIT
        if contender.policy is Policy.DEFAULT and alone:
            return CoreMode.OFF
        return CoreMode.LIMIT


def _portions(running: Sequence[Contender]) -> list[int]:
    """Whole permille for each.

    Limits are promises, so those who have one come first, then the others; of either, first what
    they want, then, if there is any left, what they might come to want.
    """
    if not running:
        return []
    minimum = min(MINIMUM, WHOLE // len(running))
    got = [0.0] * len(running)
    room = float(WHOLE - minimum * len(running))
    for most in (_wanted, _ceiling):
        for limited in (True, False):
            group = [i for i, contender in enumerate(running) if contender.limited is limited]
            more = fill(
                room,
                [max(most(running[i]) - minimum - got[i], 0.0) for i in group],
                [max(running[i].weight, 1) for i in group],
            )
            for index, portion in zip(group, more, strict=True):
                got[index] += portion
            room -= sum(more)
    return [minimum + int(portion + 1e-6) for portion in got]


def _wanted(contender: Contender) -> float:
    return min(contender.wants * _HEADROOM + _HEADROOM_PERMILLE, float(contender.ceiling))


def _ceiling(contender: Contender) -> float:
    return float(contender.ceiling)


def fill(room: float, wants: Sequence[float], weights: Sequence[int]) -> list[float]:
    """Divide the room by weight; nobody gets more than it wants, and that goes to the others."""
    got = [0.0] * len(wants)
    # In the order in which they are satisfied, as the water rises.
    order = sorted(range(len(wants)), key=lambda index: wants[index] / weights[index])
    left, weight_left = max(room, 0.0), sum(weights)
    for index in order:
        got[index] = min(wants[index], left * weights[index] / weight_left)
        left -= got[index]
        weight_left -= weights[index]
    return got
