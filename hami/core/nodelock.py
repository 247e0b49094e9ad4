"""The lock that bind takes on a node for vendors' agents that need it: its text and its meaning.

``<RFC3339 time>,<namespace>,<pod>``: the agent reads from it for which pod the kubelet's next call
is, and removes it. Older writers left the time alone; such a lock has no owner. Whatever stands on
the node may be another's, old, or nonsense: ``why_stale`` says when it means nothing any more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from hami.core import codec
from hami.core.allocation import BindPhase
from hami.core.objects import Pod
from hami.errors import CodecError

LOCK_KEY: Final = "hami.io/mutex.lock"
"""Node annotation; one lock a node, whatever the vendor."""

_TIME: Final = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)", re.ASCII
)


GRACE_SECONDS: Final = 10.0
"""For which a lock stands that nobody can read, or whose pod has been served: its writer or the
agent may be about to put that right."""


class Stale(StrEnum):
    """Why a lock means nothing any more."""

    MALFORMED = "malformed"
    EXPIRED = "expired"
    GONE = "its pod is gone"
    OVER = "its pod has ended"
    ELSEWHERE = "its pod is on another node"
    SERVED = "its pod has its devices"
    ABANDONED = "its pod was not bound"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How long locks stand."""

    timeout_seconds: float
    abandoned_seconds: float
    """For a pod of this scheduler that nobody is binding: what an earlier process may have left."""
    scheduler_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLock:
    """One lock."""

    taken_at: datetime
    """By its writer's clock."""
    namespace: str = ""
    name: str = ""
    """Of the pod it was taken for; both empty where the writer did not say."""

    @property
    def owner(self) -> str:
        """``namespace/name``; empty where nobody owns it."""
        return f"{self.namespace}/{self.name}" if self.name else ""

    def age_seconds(self, now: datetime) -> float:
        """How long ago it was taken; negative where its writer's clock is ahead."""
        return (now - self.taken_at).total_seconds()


def encode(lock: NodeLock) -> str:
    """The annotation's value, its time in UTC and to the second, as the agents read it."""
    when = lock.taken_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"{when},{lock.namespace},{lock.name}" if lock.name else when


def decode(text: str) -> NodeLock:
    """The lock that the annotation's value says.

    Raises:
        CodecError: It is neither a time nor a time, a namespace and a name.
    """
    when, *owner = text.split(",")
    if len(owner) not in {0, 2} or (owner and not all(owner)):
        raise CodecError(f"expected <time>,<namespace>,<pod>, met {text[:80]!r}")
    namespace, name = owner or ("", "")
    return NodeLock(taken_at=_decode_time(when), namespace=namespace, name=name)


def read(text: str) -> NodeLock | None:
    """The lock; None where the text cannot be read."""
    try:
        return decode(text)
    except CodecError:
        return None


def why_stale(
    lock: NodeLock | None,
    owner: Pod | None,
    *,
    node: str,
    age_seconds: float,
    seen_seconds: float,
    terms: Terms,
) -> Stale | None:
    """Why the lock may be taken over; None while it stands.

    Args:
        lock: As read; None where it cannot be.
        owner: The pod it names; None where there is none of that name now.
        node: Where the lock is.
        age_seconds: By the time it carries; clocks jump, so where its pod can be asked it is not
            believed.
        seen_seconds: For how long it has been seen as it is, whatever its time says.
        terms: How long locks stand.
    """
    if lock is None:
        return Stale.MALFORMED if seen_seconds >= GRACE_SECONDS else None
    if seen_seconds > terms.timeout_seconds:
        return Stale.EXPIRED
    if not lock.owner:  # nobody to ask, so its own time is believed
        return Stale.EXPIRED if age_seconds > terms.timeout_seconds else None
    if owner is None:
        return Stale.GONE
    if owner.finished:
        return Stale.OVER
    if owner.spec.node_name:
        return _why_stale_of_bound(owner, node, seen_seconds)
    ours = owner.spec.scheduler_name == terms.scheduler_name
    return Stale.ABANDONED if ours and seen_seconds >= terms.abandoned_seconds else None


def _why_stale_of_bound(owner: Pod, node: str, seen_seconds: float) -> Stale | None:
    if owner.spec.node_name != node:
        return Stale.ELSEWHERE
    phase = owner.annotations.get(codec.BIND_PHASE_KEY)
    served = phase in {BindPhase.SUCCESS, BindPhase.FAILED} or owner.status.phase == "Running"
    return Stale.SERVED if served and seen_seconds >= GRACE_SECONDS else None


def _decode_time(text: str) -> datetime:
    problem = f"expected a time as in RFC 3339, met {text[:40]!r}"
    if _TIME.fullmatch(text) is None:
        raise CodecError(problem)
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise CodecError(problem) from error
