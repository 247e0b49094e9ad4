"""Leader election by a Lease: at most one process of a name works at a time.

The holder renews the Lease; others take it over once they have *themselves* seen it unchanged for
its whole duration, so that no clock is ever compared with another machine's. The holder stops its
work when it could not renew for ``renew_deadline_seconds``, which is shorter than the duration:
it has stopped before anybody else begins. Every write carries the resourceVersion that it read.

Each reign has a *term*, the Lease's count of transitions, which grows with every reign, also with
one that follows another of the same process.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NoReturn

import anyio
import msgspec
from anyio.abc import TaskStatus

from hami.errors import CodecError, ConfigError, ConflictError, KubeError, NotFoundError
from hami.kube.client import KubeClient
from hami.kube.leasewatch import Lease, LeaseWatch, steady_clock
from hami.kube.resources import LEASES, ObjectRef
from hami.kube.throttle import Lane
from hami.logs import get_logger

log = get_logger(__name__)

JITTER: Final = 0.2
"""Share by which the waits of candidates differ, so that they do not collide for ever."""
EXPIRY_SPREAD_SECONDS: Final = 0.1
"""By which candidates differ when the Lease of one that died is over."""
FREE_SECONDS: Final = 0.25
"""Between two looks, up to twice, at a Lease that nobody holds and that could not be taken."""
RELEASE_SECONDS: Final = 2.0
"""How long a process that stops tries to give the Lease back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """Seconds; each below the one before it."""

    duration_seconds: float = 15.0
    """A Lease not renewed for so long may be taken."""
    renew_deadline_seconds: float = 10.0
    """A holder that could not renew for so long stops working."""
    retry_seconds: float = 2.0
    """Time between two looks at the Lease, and between two renewals."""

    def __post_init__(self) -> None:
        ordered = self.duration_seconds > self.renew_deadline_seconds > self.retry_seconds > 0
        if not ordered:
            raise ConfigError(f"lease: expected duration > renew deadline > retry > 0, met {self}")


class LeaderElector:
    """One process's candidacy for one Lease."""

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        times: LeaseTimes = LeaseTimes(),
        clock: Callable[[], float] = steady_clock,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._ref = ObjectRef(resource=LEASES, namespace=namespace, name=name)
        self._identity = identity
        self._times = times
        self._clock = clock
        self._uniform = uniform
        self._watch = LeaseWatch(
            client,
            namespace=namespace,
            name=name,
            silence_seconds=times.renew_deadline_seconds,
            clock=clock,
        )
        self._renewed_at: float | None = None
        self._term = 0
        self._unsure = False
        """Whether a write is under way that may make the Lease ours without our knowing."""

    @property
    def is_leader(self) -> bool:
        """Whether this process may act as the leader at this moment."""
        return (
            self._renewed_at is not None
            and self._clock() - self._renewed_at < self._times.renew_deadline_seconds
        )

    @property
    def holder(self) -> str:
        """Identity of the holder as last seen; empty while there is none."""
        return self._watch.holder

    @property
    def term(self) -> int:
        """The term of the last reign of this process."""
        return self._term

    async def watch(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> NoReturn:
        """Follow the Lease beside ``run``, so that a candidate reacts at once when it is free.

        Without it a candidate looks every ``retry_seconds``. It also keeps ``holder`` up to date
        while this process is no candidate.
        """
        await self._watch.run(task_status=task_status)

    async def run(
        self,
        lead: Callable[[], Awaitable[None]],
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Campaign, and run ``lead`` while the Lease is held; again after it was lost.

        ``lead`` is cancelled when the Lease can no longer be renewed. When it returns by itself the
        Lease is released and this returns. A cancelled leader releases the Lease, so that the next
        one need not wait. ``task_status`` is told when the campaign begins, not when it is won.
        """
        task_status.started()
        while True:
            try:
                await self._campaign()
            finally:
                if self._unsure:  # cancelled while it was being taken
                    await self._release()
            self._note("begun")
            try:
                finished = await self._reign(lead)
            finally:
                await self._release()
                self._note("ended")
            if finished:
                return

    async def _campaign(self) -> None:
        """Return once the Lease is ours."""
        while not await self._try_acquire():
            wait = self._times.retry_seconds * (1 + JITTER * self._uniform())
            if self._watch.holder:  # over sooner than that, perhaps
                wait = min(wait, self._watch.seconds_left + EXPIRY_SPREAD_SECONDS * self._uniform())
            else:
                wait = min(wait, FREE_SECONDS * (1 + self._uniform()))
            with anyio.move_on_after(wait):
                await self._freed()

    async def _freed(self) -> None:
        """Return when the watch shows a Lease that nobody holds, after another that it showed."""
        while True:
            await self._watch.changed()
            if not self._watch.holder:
                return

    async def _taken(self) -> None:
        """Return when the watch shows a Lease that somebody else holds."""
        while True:
            await self._watch.changed()
            if self._watch.holder != self._identity:
                return

    async def _reign(self, lead: Callable[[], Awaitable[None]]) -> bool:
        """Run ``lead`` beside the renewals; whether it came to its own end."""
        finished = False

        async def work() -> None:
            nonlocal finished
            await lead()
            finished = True
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(work, name=f"leader of {self._ref}")
            await self._keep_renewing()
            group.cancel_scope.cancel()
        return finished

    async def _keep_renewing(self) -> None:
        """Return when the Lease is lost: taken by another, or not renewed in time."""
        while True:
            with anyio.move_on_after(self._times.retry_seconds):
                await self._taken()  # so it seems; reading it tells
            with anyio.move_on_after(self._seconds_left()) as patience:
                while not await self._try_acquire():
                    if self._renewed_at is None:
                        return
                    await anyio.sleep(self._times.retry_seconds)
            if patience.cancelled_caught:
                log.warning("lease_not_renewed", lease=str(self._ref))
                return

    def _seconds_left(self) -> float:
        elapsed = self._clock() - (self._renewed_at or 0.0)
        return max(0.0, self._times.renew_deadline_seconds - elapsed)

    async def _try_acquire(self) -> bool:
        """Take or renew the Lease if it is free, expired or ours; whether it is ours now."""
        asked_at = self._clock()
        try:
            lease = await self._read()
            if lease is not None:
                self._watch.see(lease)
                if not self._may_take(lease):
                    self._renewed_at = None
                    return False
            self._unsure = True
            term = await (self._create() if lease is None else self._write(lease))
        except ConflictError:
            self._unsure = False
            return False  # somebody wrote first; the next look tells who
        except (KubeError, CodecError) as error:
            log.warning("lease_attempt_failed", lease=str(self._ref), error=str(error))
            return False
        self._unsure = False
        self._renewed_at, self._term = asked_at, term
        return True

    def _may_take(self, lease: Lease) -> bool:
        if lease.holder in ("", self._identity):
            return True
        return self._watch.seconds_left <= 0.0

    async def _read(self) -> Lease | None:
        try:
            body = await self._client.get(self._ref.path(), lane=Lane.LEASE)
        except NotFoundError:
            return None
        return _decode(body, self._ref)

    async def _create(self) -> int:
        body = {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": self._ref.name, "namespace": self._ref.namespace},
            "spec": self._spec(acquired=_now(), transitions=0),
        }
        path = LEASES.path(self._ref.namespace)
        self._watch.see(_decode(await self._client.post(path, body, lane=Lane.LEASE), self._ref))
        return 0

    async def _write(self, lease: Lease) -> int:
        """Renew a Lease of ours, or take it over, under the version that was read; the term.

        One that is ours from an earlier reign is taken over like another's: what that reign has
        left under way must not pass for this one's.
        """
        renews = self._renewed_at is not None and lease.holder == self._identity
        acquired = lease.spec.acquire_time if renews else None
        term = (lease.spec.lease_transitions or 0) + (0 if renews else 1)
        await self._patch(lease, self._spec(acquired=acquired or _now(), transitions=term))
        return term

    async def _patch(self, lease: Lease, spec: dict[str, object]) -> None:
        version = {"resourceVersion": lease.metadata.resource_version}
        body = {"metadata": version, "spec": spec}
        answer = await self._client.patch(self._ref.path(), body, lane=Lane.LEASE)
        self._watch.see(_decode(answer, self._ref))

    def _spec(self, *, acquired: str, transitions: int) -> dict[str, object]:
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": math.ceil(self._times.duration_seconds),
            "acquireTime": acquired,
            "renewTime": _now(),
            "leaseTransitions": transitions,
        }

    async def _release(self) -> None:
        """Give the Lease back if it is still ours, within a deadline even when cancelled."""
        self._renewed_at, self._unsure = None, False
        with anyio.move_on_after(RELEASE_SECONDS, shield=True):
            try:
                lease = await self._read()
                if lease is not None and lease.holder == self._identity:
                    await self._patch(lease, {"holderIdentity": "", "renewTime": _now()})
            except (KubeError, CodecError) as error:
                log.info("lease_not_released", lease=str(self._ref), error=str(error))

    def _note(self, change: str) -> None:
        self._client.metrics.leader_changes.labels(str(self._ref), change).inc()
        log.info("leadership_changed", lease=str(self._ref), change=change, identity=self._identity)


def _decode(body: bytes, ref: ObjectRef) -> Lease:
    try:
        return msgspec.json.decode(body, type=Lease)
    except msgspec.MsgspecError as error:
        raise CodecError(f"{ref}: expected a Lease, met {error}") from error


def _now() -> str:
    """The wall clock, for people who read the Lease; no decision depends on it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
