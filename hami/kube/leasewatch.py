"""Follows one Lease: who holds it, and when it is over if nothing is heard of it any more.

Ages are measured by this process's own clock, from when the Lease was seen to change, so that no
clock is ever compared with another machine's. Whoever sees a change late takes the Lease for alive
for longer, never for shorter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NoReturn

import anyio
import msgspec
from anyio.abc import TaskStatus

from hami.core.objects import ObjectMeta
from hami.kube.client import KubeClient
from hami.kube.informer import Informer
from hami.kube.reflector import Reflector
from hami.kube.resources import LEASES

DEFAULT_SECONDS: Final = 15.0
"""Of a Lease that does not say how long it lasts."""

_BOOT_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def steady_clock() -> float:
    """Seconds, those included in which this process was stopped or the machine was asleep."""
    return time.clock_gettime(_BOOT_CLOCK)


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

    @property
    def holder(self) -> str:
        """Who holds it; empty for nobody."""
        return self.spec.holder_identity or ""


class LeaseWatch:
    """One Lease as the watch shows it."""

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        silence_seconds: float = DEFAULT_SECONDS / 2,
        clock: Callable[[], float] = steady_clock,
    ) -> None:
        """Nothing is asked yet.

        Args:
            client: Where to ask.
            namespace: Of the Lease.
            name: Of the Lease.
            silence_seconds: A watch without a byte for so long is renewed; a held Lease changes
                every few seconds.
            clock: For ages.
        """
        self._clock = clock
        self._changed = anyio.Event()
        self._version = ""
        self._lease: Lease | None = None
        self._seen_at = clock()
        self._informer = Informer(
            Reflector(
                client,
                LEASES,
                decode=msgspec.json.Decoder(Lease).decode,
                namespace=namespace,
                field_selector=f"metadata.name={name}",
                inactivity_seconds=silence_seconds,
            )
        )
        self._informer.add_handler(self.see, self._see_gone)

    @property
    def lease(self) -> Lease | None:
        """The Lease as last seen; None while there is none."""
        return self._lease

    @property
    def holder(self) -> str:
        """Who holds it as last seen; empty for nobody."""
        return self._lease.holder if self._lease is not None else ""

    @property
    def seconds_left(self) -> float:
        """How long its holder still holds it if nothing more is heard; 0 where nobody does."""
        if self._lease is None or not self._lease.holder:
            return 0.0
        duration = self._lease.spec.lease_duration_seconds or DEFAULT_SECONDS
        return max(0.0, duration - (self._clock() - self._seen_at))

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> NoReturn:
        """Follow the Lease for ever; started once it was looked at."""
        await self._informer.run(task_status=task_status)

    async def changed(self, *, within_seconds: float | None = None) -> None:
        """Return at the next change, or when the time is over."""
        event = self._changed
        with anyio.move_on_after(within_seconds):
            await event.wait()

    def see(self, lease: Lease, _: Lease | None = None) -> None:
        """Take note of the Lease as it was just read."""
        if lease.metadata.resource_version != self._version:
            self._version = lease.metadata.resource_version
            self._lease, self._seen_at = lease, self._clock()
            self._announce()

    def _see_gone(self, _: Lease) -> None:
        self._lease, self._version = None, ""
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
