"""Gangs: a pod of a group gets devices only where all that its siblings still need are there too.

Follows which pods are of which gang. When one of them is asked about and would fit, devices are
held for every sibling that has none yet, as if they had been asked about next; if one finds none,
nothing is held for any, and the pod does not fit either. So of two gangs that do not both fit one
gets all and the other nothing, instead of each a part. Holds expire as all holds do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from hami.core.allocation import Allocation
from hami.core.cache import AllocationCache, State
from hami.core.device import PodRequest
from hami.core.gang import GangName, gang_of, size_of
from hami.core.objects import Pod
from hami.core.placement import Choice, Placer
from hami.core.quota import needs
from hami.core.verdict import NodeReason
from hami.core.whatif import copies
from hami.errors import CodecError

HELD_AT_ONCE: Final = 256
"""Siblings that devices are held for in one go; of a larger gang the rest is only counted."""


class Gangs:
    """The gangs of this cluster, and who of them holds what for whom."""

    def __init__(
        self,
        cache: AllocationCache,
        placer: Placer,
        *,
        read: Callable[[Pod], PodRequest],
    ) -> None:
        """Knows no pod yet; whoever wants to know for whom devices are held sets ``on_held``.

        Args:
            cache: Where devices are held.
            placer: Over the same cache's table.
            read: What a pod asks for; raises CodecError.
        """
        self.on_held: Callable[[str], None] = lambda _uid: None
        self._cache = cache
        self._placer = placer
        self._read = read
        self._members: dict[GangName, dict[str, Pod]] = {}
        self._gangs: dict[str, GangName] = {}
        self._for_others: set[str] = set()

    def __len__(self) -> int:
        return len(self._members)

    def on_set(self, pod: Pod, _: Pod | None) -> None:
        """Follow the pod; one that is being deleted needs nothing and runs for nobody any more."""
        ends = pod.finished or pod.metadata.deletion_timestamp is not None
        name = None if ends else gang_of(pod)
        uid = pod.metadata.uid
        known = self._gangs.get(uid)
        if known is not None and known != name:
            self.on_delete(pod)
        if name is not None:
            self._gangs[uid] = name
            self._members.setdefault(name, {})[uid] = pod

    def on_delete(self, pod: Pod) -> None:
        """The pod is of no gang any more."""
        uid = pod.metadata.uid
        self._for_others.discard(uid)
        name = self._gangs.pop(uid, None)
        if name is None:
            return
        members = self._members[name]
        del members[uid]
        if not members:
            del self._members[name]

    def was_held_for(self, uid: str) -> bool:
        """Whether what is held for the pod was held on a sibling's question; told once."""
        held = uid in self._for_others
        self._for_others.discard(uid)
        return held

    def hold_for_siblings(
        self, pod: Pod, request: PodRequest, nodes: tuple[str, ...], *, expires_at: float
    ) -> str | None:
        """Hold devices for all of the pod's siblings; why that cannot be, or None if it is done.

        Where it cannot be, nothing is held for any sibling afterwards; what is held for the pod
        itself is for the caller to give back.
        """
        name = gang_of(pod)
        if name is None:
            return None
        members = {**self._members.get(name, {}), pod.metadata.uid: pod}
        wanting = self._wanting(pod, members)
        unborn = max(max(map(size_of, members.values())) - len(members), 0)
        found = 0
        for member, asked in wanting[:HELD_AT_ONCE]:
            if not self._hold(member, asked, nodes, expires_at=expires_at):
                break
            found += 1
        else:
            unseen = unborn + len(wanting[HELD_AT_ONCE:])
            if unseen:
                most = self._allowed(pod, request, most=unseen)
                counts = copies(self._placer.table, request, nodes, limit=most)
                found += min(most, sum(counts.values()))
        lacking = len(wanting) + unborn - found
        if lacking <= 0:
            for member, _ in wanting[:HELD_AT_ONCE]:
                self.on_held(member.metadata.uid)
            return None
        self._give_back(members.values())
        return (
            f"{NodeReason.GANG.value}: gang {name}: {len(wanting) + unborn} more of its pods need "
            f"devices, found for {found}"
        )

    def _allowed(self, pod: Pod, request: PodRequest, *, most: int) -> int:
        """For how many more such pods the namespace has room; what is not known limits nothing."""
        room = self._cache.quotas.room(pod.metadata.namespace)
        own = needs(request)
        for ceiling, left in () if room is None else room.left:
            need = own.get(ceiling.vendor)
            amount = need.of(ceiling.kind) if need is not None else None
            if amount:
                most = min(most, max(left, 0) // amount)
        return most

    def _wanting(self, pod: Pod, members: Mapping[str, Pod]) -> list[tuple[Pod, PodRequest]]:
        """The siblings for which nothing is held yet, with what they ask, the oldest first."""
        wanting: list[tuple[Pod, PodRequest]] = []
        for uid, member in members.items():
            if uid == pod.metadata.uid or member.spec.node_name or self._cache.get(uid) is not None:
                continue
            with contextlib.suppress(CodecError):  # told where that pod is asked about
                asked = self._read(member)
                if not asked.empty:
                    wanting.append((member, asked))
        wanting.sort(key=lambda w: (w[0].metadata.creation_timestamp or "", w[0].metadata.name))
        return wanting

    def _hold(
        self, pod: Pod, request: PodRequest, nodes: tuple[str, ...], *, expires_at: float
    ) -> bool:
        """Hold the pod's first choice as filter would; whether there is one."""
        meta = pod.metadata
        room = self._cache.quotas.room(meta.namespace)
        best = self._placer.rank(request, nodes, room=room).best
        choice = None if best is None else self._placer.choose(request, best, room=room)
        if not isinstance(choice, Choice):
            return False
        allocation = Allocation(
            uid=meta.uid,
            namespace=meta.namespace,
            name=meta.name,
            node=choice.node,
            containers=choice.containers,
            roles=request.roles,
        )
        self._cache.hold(allocation, expires_at=expires_at)
        self._for_others.add(meta.uid)
        return True

    def _give_back(self, members: Iterable[Pod]) -> None:
        for member in members:
            uid = member.metadata.uid
            held = self._cache.get(uid)
            if held is not None and held.state is State.HELD:
                self._cache.release(uid)
            self._for_others.discard(uid)
