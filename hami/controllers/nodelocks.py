"""Keeps the lock on nodes by which some vendors' agents know whose devices the kubelet asks for.

Bind takes it before it records a pod's devices; the agent removes it when it has handed them out.
Every write is on condition that the node is as it was read. Another's lock is waited for while it
means anything, and then taken over. On the wire an owner is a name; which life of a pod a lock of
ours is for is kept here. What nobody else removes, the cleaner does.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NoReturn, TypeVar

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from hami.config import ControllerSettings
from hami.controllers.counters import ControllerCounters
from hami.core import nodelock
from hami.core.nodelock import LOCK_KEY, NodeLock, Stale, Terms
from hami.core.objects import Node, Pod
from hami.core.vendor import Lock, VendorTable
from hami.errors import CodecError, ConflictError, HamiError, NotFoundError
from hami.kube import patching
from hami.kube.backoff import Delays, retrying
from hami.kube.client import Guard, KubeClient
from hami.kube.informer import Informer
from hami.kube.patching import CONFLICT_BACKOFF
from hami.kube.resources import NODES, PODS, ObjectRef
from hami.kube.throttle import Lane
from hami.logs import get_logger

log = get_logger(__name__)

T = TypeVar("T", Node, Pod)

LOOK_SECONDS: Final = 1.0
"""How often a lock that is waited for is judged again; that it is gone, the watch tells at once."""
ROUND_SECONDS: Final = 5.0
"""Between two looks of the cleaner."""
CLEANED_PER_ROUND: Final = 20
"""Locks that may be stale, judged and removed, so that requests are left for others."""
NODES_AT_A_TIME: Final = 200
"""Looked at before others get their turn on the event loop."""
RELEASE_ATTEMPTS: Final = 5

_NODE: Final = msgspec.json.Decoder(Node)
_POD: Final = msgspec.json.Decoder(Pod)


@dataclass(slots=True, kw_only=True)
class _Held:
    """A lock of ours, for one life of a pod."""

    ref: ObjectRef
    node: str
    text: str
    left_at: float | None = None
    """When the bind was over without having given the lock to the agent or back."""


class NodeLocks:
    """Takes, gives back and cleans the locks of nodes."""

    def __init__(
        self,
        client: KubeClient,
        nodes: Informer[Node],
        pods: Informer[Pod],
        *,
        vendors: VendorTable,
        settings: ControllerSettings,
        counters: ControllerCounters,
        guard: Guard,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Nothing is held.

        Args:
            client: Where to write.
            nodes: All nodes.
            pods: All pods.
            vendors: Whose locks are kept.
            settings: How old a lock may become.
            counters: What was done.
            guard: Asked last of all whether to write still.
            clock: For how long a lock has been seen.
            wall_clock: For the time that is written.
        """
        self._client = client
        self._nodes = nodes
        self._pods = pods
        self._vendors = vendors
        self._settings = settings
        self._counters = counters
        self._guard = guard
        self._clock = clock
        self._wall_clock = wall_clock
        self._held: dict[str, _Held] = {}
        self._seen: dict[str, tuple[str, float]] = {}
        """Of each node with a lock, its text and since when it has been that."""

    # -- for bind ------------------------------------------------------------------------------

    async def take(self, ref: ObjectRef, node: str) -> None:
        """Return when the node's lock is the pod's; one write where nobody else has it.

        Wait while another one has it: the caller sets a deadline, and ends with ``hand_over`` or
        ``release``, and with ``leave``.

        Raises:
            NotFoundError: The node is gone.
            HamiError: It cannot be written, or this process may not write.
        """
        delays = Delays(CONFLICT_BACKOFF)
        found = self._nodes.get("", node)
        while True:
            if found is None:
                raise NotFoundError(f"node {node}: is gone", status=404)
            if self._is_ours(found, ref):
                return
            stale = await self._judge(found, ref)
            if LOCK_KEY in found.annotations and stale is None:
                await self._change(found, ref)
                found = self._nodes.get("", node)
                continue
            try:
                await self._write(found, ref)
            except ConflictError:
                self._counters.node_locks.labels("conflicted").inc()
                await anyio.sleep(delays.after_failure())
                found = await self._read(node)
            else:
                self._note_taken(found, ref, stale)
                return

    def hand_over(self, uid: str) -> None:
        """The pod is bound: the lock is its agent's to remove. Idempotent."""
        self._held.pop(uid, None)

    async def release(self, uid: str) -> None:
        """Remove the pod's lock, if it is still that; where that fails, the cleaner goes on."""
        held = self._held.get(uid)
        if held is None:
            return
        try:
            await self._remove(held.node, held.text)
        except HamiError as error:
            self._counters.node_locks.labels("failed").inc()
            log.warning("node_lock_not_released", node=held.node, error=str(error))
        else:
            self._counters.node_locks.labels("released").inc()
            if self._held.get(uid) is held:  # else a new bind of the pod has taken it anew
                del self._held[uid]

    def leave(self, uid: str) -> None:
        """The bind is over; what it still holds, because nobody knows how it ended, is cleaned."""
        held = self._held.get(uid)
        if held is not None:
            held.left_at = self._clock()

    async def _change(self, node: Node, ref: ObjectRef) -> None:
        """Wait until the lock is another one, but no longer than until it is to be judged again."""
        text = node.annotations.get(LOCK_KEY)
        log.debug("node_locked", node=node.name, lock=text, pod=str(ref))

        def changed() -> bool:
            now = self._nodes.get("", node.name)
            return now is None or now.annotations.get(LOCK_KEY) != text

        with contextlib.suppress(TimeoutError):
            await self._nodes.wait_for(changed, timeout_seconds=LOOK_SECONDS)

    async def _write(self, node: Node, ref: ObjectRef) -> None:
        lock = NodeLock(taken_at=self._wall_clock(), namespace=ref.namespace, name=ref.name)
        text = nodelock.encode(lock)
        # Noted before it is written: an answer may be lost.
        self._held[ref.uid] = _Held(ref=ref, node=node.name, text=text)
        await retrying(
            lambda: self._patch(node, text, lane=Lane.URGENT), f"lock of node {node.name}"
        )

    def _note_taken(self, node: Node, ref: ObjectRef, stale: Stale | None) -> None:
        self._counters.node_locks.labels("taken" if stale is None else "taken over").inc()
        if stale is not None:
            log.warning(
                "node_lock_taken_over",
                node=node.name,
                lock=node.annotations.get(LOCK_KEY, "")[:200],
                why=stale.value,
                pod=str(ref),
            )

    def _is_ours(self, node: Node, ref: ObjectRef) -> bool:
        """Whether the lock is there for this very life of the pod."""
        held = self._held.get(ref.uid)
        return (
            held is not None
            and held.left_at is None
            and held.node == node.name
            and held.text == node.annotations.get(LOCK_KEY)
        )

    # -- what a lock means -----------------------------------------------------------------------

    async def _judge(self, node: Node, wanted_by: ObjectRef | None = None) -> Stale | None:
        """Why the node's lock may be taken over; None while it stands, or is not there."""
        text = node.annotations.get(LOCK_KEY)
        if text is None:
            return None
        lock, seen_at = nodelock.read(text), self._seen_at(node)
        if lock is not None and wanted_by is not None and lock.owner == _key(wanted_by):
            return Stale.ABANDONED  # an earlier bind's, or an earlier life's: to be written anew
        owner = await self._owner(lock) if lock is not None and lock.owner else None
        return nodelock.why_stale(
            lock,
            owner,
            node=node.name,
            age_seconds=lock.age_seconds(self._wall_clock()) if lock else 0.0,
            seen_seconds=self._clock() - seen_at,
            terms=self._terms(),
        )

    @property
    def _register_keys(self) -> tuple[str, ...]:
        """Of the vendors whose agents need the lock."""
        vendors = self._vendors.values()
        return tuple(v.register_key for v in vendors if v.lock is Lock.NODE and v.register_key)

    def _terms(self) -> Terms:
        own = self._settings
        return Terms(
            timeout_seconds=own.node_lock_timeout_seconds,
            abandoned_seconds=own.bind_timeout_seconds,
            scheduler_name=own.scheduler_name,
        )

    def _seen_at(self, node: Node) -> float:
        """Since when the node has been seen with the lock that it has."""
        text = node.annotations.get(LOCK_KEY, "")
        seen = self._seen.get(node.name)
        if seen is None or seen[0] != text:
            seen = self._seen[node.name] = text, self._clock()
        return seen[1]

    async def _owner(self, lock: NodeLock) -> Pod | None:
        """The pod it names; asked for where the watch does not show it (yet)."""
        pod = self._pods.get(lock.namespace, lock.name)
        if pod is not None:
            return pod
        ref = ObjectRef(resource=PODS, namespace=lock.namespace, name=lock.name)
        try:
            body = await retrying(lambda: self._client.get(ref.path()), f"get of {ref}")
        except NotFoundError:
            return None
        return _decode(_POD, body, ref)

    # -- the cleaner -----------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Clean again and again."""
        while True:
            await self.clean()
            await anyio.sleep(ROUND_SECONDS)

    async def clean(self) -> None:
        """One round: give back what binds left behind, remove what means nothing any more."""
        locked = await self._locked()
        names = {node.name for node in locked}
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}
        for node in locked:
            self._seen_at(node)
        try:
            self._guard()
            await self._give_back()
            under_way = {held.node for held in self._held.values() if held.left_at is None}
            for node in [n for n in locked if n.name not in under_way][:CLEANED_PER_ROUND]:
                await self._clean(node)
        except HamiError as error:
            log.debug("node_locks_not_cleaned", error=str(error))

    async def _locked(self) -> list[Node]:
        """Nodes with a lock and devices of a vendor that needs one, the longest seen first."""
        nodes, found = self._nodes.list(), []
        for start in range(0, len(nodes), NODES_AT_A_TIME):
            found += [
                node
                for node in nodes[start : start + NODES_AT_A_TIME]
                if LOCK_KEY in node.annotations
                and any(key in node.annotations for key in self._register_keys)
            ]
            await checkpoint()
        return sorted(found, key=self._seen_at)

    async def _give_back(self) -> None:
        """End the locks of binds whose outcome was not known then."""
        for uid, held in tuple(self._held.items()):
            if held.left_at is None:
                continue
            pod = self._pods.get(held.ref.namespace, held.ref.name)
            same = pod is not None and pod.metadata.uid == uid
            if same and pod is not None and pod.spec.node_name:
                self.hand_over(uid)
            elif not same or self._clock() - held.left_at >= self._settings.bind_timeout_seconds:
                await self.release(uid)

    async def _clean(self, node: Node) -> None:
        stale = await self._judge(node)
        if stale is None:
            return
        text = node.annotations[LOCK_KEY]
        await self._remove(node.name, text)
        self._counters.node_locks.labels("cleaned").inc()
        log.warning("node_lock_cleaned", node=node.name, lock=text[:200], why=stale.value)

    # -- the wire --------------------------------------------------------------------------------

    async def _remove(self, name: str, text: str) -> None:
        """Remove just this lock; whatever else is there by now stays.

        Raises:
            HamiError: It may still be there.
        """
        for attempt in range(1, RELEASE_ATTEMPTS + 1):
            try:
                node = await self._read(name)
                if node.annotations.get(LOCK_KEY) == text:
                    await self._patch(node, None, lane=Lane.URGENT)
            except ConflictError:
                if attempt == RELEASE_ATTEMPTS:
                    raise
                continue
            except NotFoundError:
                pass
            return

    async def _read(self, name: str) -> Node:
        ref = ObjectRef(resource=NODES, name=name)
        body = await retrying(
            lambda: self._client.get(ref.path(), lane=Lane.URGENT), f"get of {ref}"
        )
        return _decode(_NODE, body, ref)

    async def _patch(self, node: Node, text: str | None, *, lane: Lane) -> None:
        await patching.patch_metadata(
            self._client,
            ObjectRef.to(NODES, node),
            annotations={LOCK_KEY: text},
            resource_version=node.metadata.resource_version,
            lane=lane,
            guard=self._guard,
        )


def _key(ref: ObjectRef) -> str:
    return f"{ref.namespace}/{ref.name}"


def _decode(decoder: msgspec.json.Decoder[T], body: bytes, ref: ObjectRef) -> T:
    try:
        return decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise CodecError(f"expected {ref}, met {body[:100]!r}: {error}") from error
