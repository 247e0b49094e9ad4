"""Which controller decides, and the proof of it that every deciding write carries.

One that was elected leads once it has *taken over* (``succession.py``), and until its Lease is
lost, or is over by its own clock, or the scheduler beside it leads no more. What is begun in one
reign ends with it: a ``Mandate`` is of one reign, and refuses every write after that. Without an
election this process leads from its start to its end, with term 0.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import anyio
from anyio.abc import TaskStatus

from hami.config import ControllerSettings
from hami.errors import HamiError, NotLeaderError
from hami.kube.backoff import Backoff, Delays
from hami.kube.client import KubeClient
from hami.kube.lease import LeaderElector, LeaseTimes
from hami.kube.leasewatch import LeaseWatch
from hami.logs import get_logger

log = get_logger(__name__)

TAKE_OVER_BACKOFF: Final = Backoff(base_seconds=0.05, cap_seconds=2.0)
"""Nobody decides meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this process is, among others of its kind."""

    name: str
    """In the Lease; of this process alone."""
    host: str
    """What the scheduler beside it calls its host."""

    @classmethod
    def of(cls, settings: ControllerSettings, environment: Mapping[str, str]) -> Identity:
        """By the settings, else the pod's name; two processes never have one name."""
        host = settings.identity or socket.gethostname()
        name = settings.identity or environment.get("POD_NAME") or host
        return cls(name=f"{name}_{uuid.uuid4()}", host=host)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mandate:
    """One reign of this process."""

    identity: str
    term: int
    lasts: Callable[[Mandate], bool] = field(repr=False)

    @property
    def mark(self) -> str:
        """What its records carry: no other reign, of whatever process, has the same."""
        return f"{self.identity}/{self.term}"

    def require(self) -> None:
        """Refuse what is about to be written, if the reign is over.

        Raises:
            NotLeaderError: It is.
        """
        if not self.lasts(self):
            raise NotLeaderError(f"not the leader any more: the reign {self.mark} is over")


class Beside:
    """Whether the scheduler on this host is the one that leads, as its Lease says."""

    def __init__(self, lease: LeaseWatch, *, host: str) -> None:
        self._lease = lease
        self._host = host

    @property
    def holds(self) -> bool:
        """Whether it leads at this moment."""
        return leads_on(self._host, self._lease.holder) and self._lease.seconds_left > 0.0

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow the scheduler's Lease."""
        await self._lease.run(task_status=task_status)

    async def until(self, wanted: bool) -> None:
        """Return once it leads, or once it does not."""
        while self.holds is not wanted:
            left = self._lease.seconds_left
            await self._lease.changed(within_seconds=left if self.holds else None)


def leads_on(host: str, holder: str) -> bool:
    """Whether the holder of a scheduler's Lease is on the host: ``<host name>_<unique>``."""
    return bool(holder) and holder.partition("_")[0] == host


TakeOver = Callable[[Mandate], Awaitable[None]]


class Leadership:
    """Whether this process decides."""

    def __init__(
        self,
        identity: str,
        *,
        elector: LeaderElector | None = None,
        beside: Beside | None = None,
    ) -> None:
        """Nobody leads yet.

        Args:
            identity: Of this process alone.
            elector: Campaigns for our own Lease; None leads always.
            beside: Campaigns only while this holds; None always.
        """
        self.identity = identity
        self._elector = elector
        self._beside = beside
        self._mandate: Mandate | None = None
        self._serving = False
        self._following = False
        self._changed = anyio.Event()

    @property
    def elected(self) -> bool:
        """Whether there is an election at all."""
        return self._elector is not None

    @property
    def is_leader(self) -> bool:
        """Whether this process decides at this moment."""
        return self._serving and self._mandate is not None and self._lasts(self._mandate)

    @property
    def is_ready(self) -> bool:
        """Whether it does what a process of its role can: a follower knows who leads."""
        return self._following or self.is_leader

    @property
    def role(self) -> str:
        """``leader`` or ``follower``."""
        return "leader" if self.is_leader else "follower"

    @property
    def term(self) -> int:
        """The term of the present reign of this process, or of its last."""
        return 0 if self._elector is None else self._elector.term

    @property
    def leader(self) -> str:
        """Who leads as far as is known; empty for nobody."""
        return self.identity if self._elector is None else self._elector.holder

    def require(self) -> None:
        """Refuse what only the leader may do.

        Raises:
            NotLeaderError: Another process leads, or nobody does yet.
        """
        self.mandate()

    def mandate(self) -> Mandate:
        """The present reign.

        Raises:
            NotLeaderError: There is none of this process.
        """
        mandate = self._mandate
        if mandate is not None and self._serving and self._lasts(mandate):
            return mandate
        if mandate is not None and self._lasts(mandate):
            raise NotLeaderError("not the leader yet: taking over")
        others = self.leader if self.leader != self.identity else ""
        raise NotLeaderError(
            f"not the leader; the leader is {others}" if others else "not the leader; nobody is"
        )

    async def changed(self, *, within_seconds: float) -> None:
        """Return when a reign of this process begins or ends, or when the time is over."""
        event = self._changed
        with anyio.move_on_after(within_seconds):
            await event.wait()

    async def run(
        self,
        take_over: TakeOver,
        resign: Callable[[], None],
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Lead whenever that is for this process to do; for ever.

        Args:
            take_over: Awaited at the beginning of each reign, before anything is decided; again
                where it fails.
            resign: Called at the end of each reign.
            task_status: Told once the Leases are followed; without an election, once this leads.
        """

        async def lead() -> None:
            await self._lead(take_over, resign, task_status=task_status)

        if self._elector is None:
            await lead()
            return
        async with anyio.create_task_group() as group:
            await group.start(self._elector.watch, name="lease")
            if self._beside is not None:
                await group.start(self._beside.run, name="scheduler's lease")
            self._following = True
            task_status.started()
            while True:
                await self._campaign(self._elector, lead)

    async def _campaign(self, elector: LeaderElector, lead: Callable[[], Awaitable[None]]) -> None:
        """Campaign and lead while the scheduler beside this leads."""
        if self._beside is None:
            await elector.run(lead)
            return
        await self._beside.until(True)
        log.info("scheduler_here_leads")
        async with anyio.create_task_group() as group:
            group.start_soon(elector.run, lead, name="election")
            await self._beside.until(False)
            log.info("scheduler_elsewhere_leads")
            group.cancel_scope.cancel()  # which gives our Lease back

    async def _lead(
        self, take_over: TakeOver, resign: Callable[[], None], *, task_status: TaskStatus[None]
    ) -> None:
        mandate = Mandate(identity=self.identity, term=self.term, lasts=self._lasts)
        self._mandate = mandate
        try:
            await self._prepare(take_over, mandate)
            self._serving = True
            self._announce()
            log.info("leading", mark=mandate.mark)
            if not self.elected:
                task_status.started()
            await anyio.sleep_forever()
        finally:
            self._serving, self._mandate = False, None
            resign()
            self._announce()

    async def _prepare(self, take_over: TakeOver, mandate: Mandate) -> None:
        delays = Delays(TAKE_OVER_BACKOFF)
        while True:
            try:
                await take_over(mandate)
            except HamiError as error:
                delay = delays.after_failure()
                log.warning("take_over_failed", mark=mandate.mark, error=str(error), seconds=delay)
                await anyio.sleep(delay)
            else:
                return

    def _lasts(self, mandate: Mandate) -> bool:
        """Whether the reign goes on, by the clock and not by what was told last."""
        if mandate is not self._mandate:
            return False
        if self._beside is not None and not self._beside.holds:
            return False
        return self._elector is None or self._elector.is_leader

    def _announce(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def make(
    settings: ControllerSettings,
    client: KubeClient,
    environment: Mapping[str, str] = os.environ,
) -> Leadership:
    """The leadership that the settings describe.

    Raises:
        ConfigError: The Lease's times allow two leaders.
    """
    identity = Identity.of(settings, environment)
    if not settings.leader_elect:
        return Leadership(identity.name)
    times = LeaseTimes(
        duration_seconds=settings.lease_duration_seconds,
        renew_deadline_seconds=settings.lease_renew_seconds,
        retry_seconds=settings.lease_retry_seconds,
    )
    elector = LeaderElector(
        client,
        namespace=settings.lease_namespace,
        name=settings.lease_name,
        identity=identity.name,
        times=times,
    )
    if not settings.scheduler_lease_name:
        return Leadership(identity.name, elector=elector)
    lease = LeaseWatch(
        client,
        namespace=settings.scheduler_lease_namespace or settings.lease_namespace,
        name=settings.scheduler_lease_name,
    )
    return Leadership(identity.name, elector=elector, beside=Beside(lease, host=identity.host))
