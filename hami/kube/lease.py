"""Leader election by a Lease: at most one process of a name works at a time.

The holder renews the Lease; others take it over once they have *themselves* seen it unchanged for
its whole duration, so that no clock is ever compared with another machine's. The holder stops its
work when it could not renew for ``renew_deadline_seconds``, which is shorter than the duration:
it has stopped before anybody else begins. Every write carries the resourceVersion that it read.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import anyio
import msgspec
from anyio.abc import TaskStatus

from hami.core.objects import ObjectMeta
from hami.errors import CodecError, ConfigError, ConflictError, KubeError, NotFoundError
from hami.kube.client import KubeClient
from hami.kube.resources import LEASES, ObjectRef
from hami.kube.throttle import Lane
from hami.logs import get_logger

log = get_logger(__name__)

JITTER: Final = 0.2
"""Share by which the waits of candidates differ, so that they do not collide for ever."""


class LeaseSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Who holds the Lease, since when, and until when without a renewal."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Lease(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A Lease as read."""

    metadata: ObjectMeta = ObjectMeta()
    spec: LeaseSpec = LeaseSpec()


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
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._ref = ObjectRef(resource=LEASES, namespace=namespace, name=name)
        self._identity = identity
        self._times = times
        self._clock = clock
        self._uniform = uniform
        self._seen_version = ""
        self._seen_at = clock()
        self._renewed_at: float | None = None
        self._holder = ""

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
        return self._holder

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
            await self._campaign()
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
        while True:
            if await self._try_acquire():
                return
            await anyio.sleep(self._times.retry_seconds * (1 + JITTER * self._uniform()))

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
            await anyio.sleep(self._times.retry_seconds)
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
            if lease is None:
                await self._create()
            else:
                self._observe(lease)
                if not self._may_take(lease):
                    self._renewed_at = None
                    return False
                await self._write(lease)
        except ConflictError:
            return False  # somebody wrote first; the next look tells who
        except (KubeError, CodecError) as error:
            log.warning("lease_attempt_failed", lease=str(self._ref), error=str(error))
            return False
        self._renewed_at = asked_at
        self._holder = self._identity
        return True

    def _observe(self, lease: Lease) -> None:
        self._holder = lease.spec.holder_identity or ""
        if lease.metadata.resource_version != self._seen_version:
            self._seen_version = lease.metadata.resource_version
            self._seen_at = self._clock()

    def _may_take(self, lease: Lease) -> bool:
        if not self._holder or self._holder == self._identity:
            return True
        duration = lease.spec.lease_duration_seconds or self._times.duration_seconds
        return self._clock() - self._seen_at >= duration

    async def _read(self) -> Lease | None:
        try:
            body = await self._client.get(self._ref.path(), lane=Lane.URGENT)
        except NotFoundError:
            return None
        try:
            return msgspec.json.decode(body, type=Lease)
        except msgspec.MsgspecError as error:
            raise CodecError(f"{self._ref}: expected a Lease, met {error}") from error

    async def _create(self) -> None:
        body = {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": self._ref.name, "namespace": self._ref.namespace},
            "spec": self._spec(acquired=_now(), transitions=0),
        }
        path = LEASES.path(self._ref.namespace)
        await self._client.post(path, body, lane=Lane.URGENT)

    async def _write(self, lease: Lease) -> None:
        """Renew a Lease of ours, or take over another's; under the version that was read."""
        mine, transitions = (
            lease.spec.holder_identity == self._identity,
            lease.spec.lease_transitions,
        )
        acquired = lease.spec.acquire_time if mine else _now()
        count = (transitions or 0) + (0 if mine else 1)
        await self._patch(lease, self._spec(acquired=acquired or _now(), transitions=count))

    async def _patch(self, lease: Lease, spec: dict[str, object]) -> None:
        version = {"resourceVersion": lease.metadata.resource_version}
        body = {"metadata": version, "spec": spec}
        await self._client.patch(self._ref.path(), body, lane=Lane.URGENT)

    def _spec(self, *, acquired: str, transitions: int) -> dict[str, object]:
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._times.duration_seconds)),
            "acquireTime": acquired,
            "renewTime": _now(),
            "leaseTransitions": transitions,
        }

    async def _release(self) -> None:
        """Give the Lease back if it is still ours, within a deadline even when cancelled."""
        self._renewed_at = None
        with anyio.move_on_after(self._times.retry_seconds, shield=True):
            try:
                lease = await self._read()
                if lease is not None and lease.spec.holder_identity == self._identity:
                    await self._patch(lease, {"holderIdentity": "", "renewTime": _now()})
            except (KubeError, CodecError) as error:
                log.info("lease_not_released", lease=str(self._ref), error=str(error))

    def _note(self, change: str) -> None:
        self._client.metrics.leader_changes.labels(str(self._ref), change).inc()
        log.info("leadership_changed", lease=str(self._ref), change=change, identity=self._identity)


def _now() -> str:
    """The wall clock, for people who read the Lease; no decision depends on it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
