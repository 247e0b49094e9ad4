"""The extender's ``preempt``: whether the scheduler's victims make room for the devices, too.

The scheduler brings nodes with victims for what it counts itself. Nodes on which the pod's devices
would not fit even then are left out, others get the further victims that it takes. Nothing is held
and nobody is evicted: that is the scheduler's to do.
"""

from __future__ import annotations

from collections.abc import Sequence

from hami.controllers.nominations import Nominations
from hami.controllers.occupants import Occupants
from hami.controllers.wire import MetaVictims, PreemptArgs
from hami.core import preemption
from hami.core.cache import AllocationCache
from hami.core.preemption import Plan
from hami.core.request import Defaults, read_request
from hami.core.vendor import VendorTable
from hami.core.victims import Budget, violations


class PreemptVerb:
    """Answers from memory; has no side effect."""

    def __init__(
        self,
        cache: AllocationCache,
        occupants: Occupants,
        nominations: Nominations,
        *,
        vendors: VendorTable,
        defaults: Defaults,
    ) -> None:
        self._cache = cache
        self._occupants = occupants
        self._nominations = nominations
        self._vendors = vendors
        self._defaults = defaults

    def answer(self, args: PreemptArgs) -> dict[str, MetaVictims]:
        """The nodes that can be had, with all victims that it takes.

        Raises:
            CodecError: The pod's request cannot be read.
        """
        pod = args.pod
        request = read_request(pod, self._vendors, self._defaults)
        if request.empty:
            return args.nodes
        if self._nominations.get(pod.metadata.uid) is not None:
            return {}  # others go for it already
        priority = pod.spec.priority or 0
        budgets = self._occupants.budgets()
        given = {
            node: [self._occupants.victim(uid) for uid in victims.uids]
            for node, victims in args.nodes.items()
        }
        plans = preemption.complete(
            self._cache.table,
            request,
            priority,
            given,
            self._occupants.victims(given, below=priority),
            budgets,
        )
        return {
            node: self._completed(args.nodes[node], plan, budgets) for node, plan in plans.items()
        }

    def _completed(self, given: MetaVictims, plan: Plan, budgets: Sequence[Budget]) -> MetaVictims:
        """What was given with what comes on top; the scheduler takes the first for the highest."""
        allowed = [budget.allowed for budget in budgets]
        before = violations(map(self._occupants.victim, given.uids), allowed)
        more = plan.violations - before
        ordered = tuple(victim.uid for victim in reversed(plan.victims))
        return MetaVictims(
            uids=ordered if len(ordered) > len(given.uids) else given.uids,
            violations=given.violations + max(more, 0),
        )
