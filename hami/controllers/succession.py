"""How a controller takes over: what must be true before it decides anything.

1. It holds nothing of an earlier reign: no hold, no reservation.
2. Nothing that an earlier leader has under way succeeds any more (``leftovers.fence``).
3. Its cache shows everything that an earlier leader did bind. The watch is ahead or behind by no
   known amount, so it is waited for up to a version that is late enough, and something is written
   that makes the watch get there.

Why that suffices is drawn in ``docs/decisions``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from hami.controllers.leadership import Leadership, Mandate
from hami.controllers.leftovers import Leftovers
from hami.controllers.outcomes import Outcomes
from hami.controllers.roles import RoleLabel
from hami.core.cache import AllocationCache, State
from hami.core.objects import Pod
from hami.kube.informer import Informer
from hami.logs import get_logger

log = get_logger(__name__)

PROCLAIMED_SECONDS: Final = 2.0
"""A watch that does not show within this time what was written is not waited for."""
QUIET_SECONDS: Final = 0.1
"""The same where nothing could be written that it would show."""


class Succession:
    """Begins and ends the reigns of this process."""

    def __init__(
        self,
        cache: AllocationCache,
        pods: Informer[Pod],
        *,
        leadership: Leadership,
        leftovers: Leftovers,
        outcomes: Outcomes,
        role: RoleLabel,
        forget: Callable[[], None] = lambda: None,
        recall: Callable[[], None] = lambda: None,
    ) -> None:
        """Begins nothing yet.

        Args:
            cache: What is held.
            pods: Must show what an earlier leader bound.
            leadership: Whether there is an election.
            leftovers: What an earlier leader has under way.
            outcomes: Of binds that nothing is known of yet.
            role: Is told who leads.
            forget: Called at the end of a reign: what else was decided counts no more.
            recall: Called when all is taken over: who waits since before is looked at.
        """
        self._cache = cache
        self._pods = pods
        self._leadership = leadership
        self._leftovers = leftovers
        self._outcomes = outcomes
        self._role = role
        self._forget = forget
        self._recall = recall

    async def take_over(self, mandate: Mandate) -> None:
        """Do all that comes before the first decision.

        Raises:
            HamiError: It is not done; begin again, if the reign goes on.
        """
        started = time.monotonic()
        self.resign()
        version = await self._leftovers.fence(mandate)
        proclaimed = await self._role.proclaim(mandate)
        if self._leadership.elected:  # else the stores were filled after the other's end
            patience = PROCLAIMED_SECONDS if proclaimed else QUIET_SECONDS
            await self._pods.catch_up(version, patience_seconds=patience)
        mandate.require()
        self._recall()
        seconds = round(time.monotonic() - started, 4)
        log.info("taken_over", mark=mandate.mark, seconds=seconds, proclaimed=proclaimed)

    def resign(self) -> None:
        """Hold nothing that is not bound, and undo nothing any more."""
        self._outcomes.resign()
        self._forget()
        for reservation in tuple(self._cache.reservations()):
            if reservation.state is not State.CONFIRMED:
                self._cache.release(reservation.allocation.uid)
