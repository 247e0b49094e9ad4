"""The governor: decides many times a second who may use how much of each device.

Two loops. One steers: it looks at every tenant's usage file, divides each device (``shares``),
turns shares into rates (``pacing``) and writes what changed into the control files; it never waits
for the driver. The other measures: it asks the driver who has used what, and hands that over. So a
driver that hangs leaves the last rates standing, and a tenant whose files are spoilt is left out
alone. Knows no Kubernetes: tenants come from a TenantSource, and suspicions go to a callback.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NoReturn

import anyio
import anyio.to_thread

from hami.config import NodeAgentSettings
from hami.errors import DeviceError, HamiError
from hami.logs import get_logger
from hami.nodeagent.governor.account import Account
from hami.nodeagent.governor.measuring import DeviceUse, Measurement, Measurer, MemoryLook
from hami.nodeagent.governor.pacing import NS, Window
from hami.nodeagent.governor.probe import Glimpse
from hami.nodeagent.governor.shares import Contender, Share, divide
from hami.nodeagent.governor.suspicion import Suspicion, Watchman
from hami.nodeagent.governor.tenants import Tenant, TenantSource
from hami.nodeagent.governor.usage import UsageDriver
from hami.nodeagent.region import CoreMode
from hami.nodeagent.rounding import Part, refine

log = get_logger(__name__)

Clock = Callable[[], int]
_WORST_TICKS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Governed:
    """One tenant on one device, for those who look on."""

    tenant: Tenant
    index: int
    uuid: str
    mode: CoreMode
    limit_permille: int
    """What it was promised; 0: no limit."""
    share_permille: int | None
    """What it is held to now; None: it is not paced."""
    use_permille: float | None
    """What the driver measured of late."""
    waited_seconds: float
    """How long its threads have waited for device time, so far."""
    untracked_bytes: int
    context_bytes: int
    active: bool
    held: bool
    """Stopped now and then, since pacing alone does not hold it."""
    suspended: bool


@dataclass(slots=True)
class GovernorCounts:
    """What happened so far."""

    ticks: int = 0
    tick_seconds: float = 0.0
    """Of all ticks together."""
    last_tick_seconds: float = 0.0
    driver_errors: int = 0
    tenant_errors: int = 0
    suspicions: dict[str, int] = field(default_factory=dict)


class Governor:
    """Governs the tenants of one node."""

    def __init__(
        self,
        source: TenantSource,
        driver: UsageDriver,
        settings: NodeAgentSettings,
        *,
        report: Callable[[Suspicion], None] = lambda _: None,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        """Does nothing until ``run``.

        Args:
            source: Whom to govern.
            driver: Whom to ask for measurements.
            settings: Pace and policies.
            report: Called on the event loop with each suspicion, once a tenant and reason.
            clock: CLOCK_MONOTONIC in nanoseconds.
        """
        self.counts = GovernorCounts()
        self._source, self._settings, self._report = source, settings, report
        self._clock = clock
        self._measurer = Measurer(driver, memory_seconds=settings.governor_memory_seconds)
        self._watchman = Watchman(settings)
        self._tenants: tuple[Tenant, ...] = ()
        self._known: tuple[Tenant, ...] = ()
        self._accounts: dict[tuple[str, int], Account] = {}
        self._of_tenant: dict[str, list[Account]] = {}
        self._inbox: deque[Measurement] = deque(maxlen=_WORST_TICKS)
        self._divided: dict[str, tuple[tuple[Contender, ...], tuple[Share, ...]]] = {}
        self._failing: set[str] = set()
        self._driver_fails = False

    async def run(self) -> NoReturn:
        """Govern for ever."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._measure_for_ever, name="governor-measures")
            while True:
                began = self._clock()
                await self.tick()
                spent = (self._clock() - began) / NS
                await anyio.sleep(max(self._settings.governor_seconds - spent, 0.001))
        raise AssertionError("unreachable")

    async def tick(self) -> None:
        """Steer once."""
        self._tenants = tuple(await self._source.refresh())
        await anyio.to_thread.run_sync(partial(self._steer, self._tenants))
        for suspicion in self._watchman.news():
            self.counts.suspicions[suspicion.reason] = (
                self.counts.suspicions.get(suspicion.reason, 0) + 1
            )
            log.warning("tenant_suspected", tenant=suspicion.tenant.name, reason=suspicion.reason,
                        device=suspicion.uuid, detail=suspicion.detail)  # fmt: skip
            self._report(suspicion)

    async def measure(self) -> None:
        """Ask the driver once, and keep the answer for the next tick."""
        try:
            measurement = await self._measurer.measure(self._tenants)
        except DeviceError as error:
            self.counts.driver_errors += 1
            if not self._driver_fails:
                log.warning("use_not_measured", error=str(error))
            self._driver_fails = True
            return
        self._driver_fails = False
        self.counts.driver_errors += measurement.errors
        self._inbox.append(measurement)

    def status(self) -> tuple[Governed, ...]:
        """How everybody stands."""
        return tuple(
            Governed(
                tenant=account.tenant,
                index=account.index,
                uuid=account.uuid,
                mode=account.mode,
                limit_permille=account.limit,
                share_permille=account.permille,
                use_permille=account.use_permille,
                waited_seconds=account.waited_ns / NS,
                untracked_bytes=account.meter.untracked_bytes,
                context_bytes=account.meter.context_bytes,
                active=account.active,
                held=account.held,
                suspended=account.mode is CoreMode.SUSPEND,
            )
            for account in list(self._accounts.values())
            if account.mode is not None
        )

    async def _measure_for_ever(self) -> NoReturn:
        while True:
            await self.measure()
            await anyio.sleep(self._settings.governor_sample_seconds)

    def _steer(self, tenants: Sequence[Tenant]) -> None:
        began = time.perf_counter()
        now_ns = self._clock()
        self._know(tenants)
        cards: dict[str, list[Account]] = {}
        for tenant in tenants:
            glimpse = self._glimpse(tenant)
            try:
                tenant.control.beat(now_ns)
                for account in self._of_tenant[tenant.key]:
                    account.observe(now_ns, glimpse)
                    cards.setdefault(account.uuid, []).append(account)
            except (HamiError, OSError, ValueError) as error:
                self._failed(tenant, error)
        self._take_in(now_ns)
        for uuid, accounts in cards.items():
            self._divide(uuid, accounts, now_ns)
        spent = time.perf_counter() - began
        self.counts.ticks += 1
        self.counts.tick_seconds += spent
        self.counts.last_tick_seconds = spent

    def _know(self, tenants: Sequence[Tenant]) -> None:
        """Accounts for those who came; none for those who went."""
        if tenants == self._known:  # the very same, in the same order
            return
        self._known = tuple(tenants)
        before, self._accounts = self._accounts, {}
        for tenant in tenants:
            for index in range(len(tenant.devices)):
                account = before.get((tenant.key, index))
                if account is None or account.tenant is not tenant:
                    account = Account(tenant, index)
                self._accounts[tenant.key, index] = account
        self._of_tenant = {
            tenant.key: [self._accounts[tenant.key, i] for i in range(len(tenant.devices))]
            for tenant in tenants
        }
        keys = {tenant.key for tenant in tenants}
        self._watchman.forget(keep=keys)
        self._failing &= keys
        devices = {uuid for tenant in tenants for uuid in tenant.devices}
        self._divided = {u: known for u, known in self._divided.items() if u in devices}

    def _take_in(self, now_ns: int) -> None:
        """Hand the driver's answers to the accounts: those of a time that they have observed."""
        while self._inbox and self._inbox[0].at_ns <= now_ns:
            measurement = self._inbox.popleft()
            for use in measurement.windows:
                self._learn(use)
            for place, account in self._accounts.items():
                if place in measurement.unmeasured:
                    account.guess()
                if memory := measurement.memory.get(place):
                    self._weigh(account, memory)
                self._watchman.look(account, now_ns)

    def _learn(self, use: DeviceUse) -> None:
        """Hand the use of one device to its accounts, as exactly as can be told."""
        known = [
            (account, Window(use.start_ns, use.end_ns, busy_ns), processes)
            for place, (busy_ns, processes) in use.parts.items()
            if (account := self._accounts.get(place)) is not None
        ]
        parts = [Part(window.busy_ns / use.unit_ns, processes) for _, window, processes in known]
        points = refine(parts, whole=use.percent)
        for (account, window, _), percent in zip(known, points, strict=True):
            account.learn(Window(window.start_ns, window.end_ns, percent * use.unit_ns))

    def _weigh(self, account: Account, memory: MemoryLook) -> None:
        try:
            account.weigh(memory)
        except (HamiError, OSError, ValueError) as error:
            self._failed(account.tenant, error)

    def _glimpse(self, tenant: Tenant) -> Glimpse | None:
        try:
            glimpse = tenant.probe.look()
        except (HamiError, OSError) as error:
            self._failed(tenant, error)
            return None
        self._failing.discard(tenant.key)
        return glimpse

    def _failed(self, tenant: Tenant, error: Exception) -> None:
        """One tenant's trouble is its own; said once, counted each time."""
        self.counts.tenant_errors += 1
        if tenant.key not in self._failing:
            self._failing.add(tenant.key)
            log.warning("tenant_not_read", tenant=tenant.name, error=str(error))

    def _divide(self, uuid: str, accounts: Sequence[Account], now_ns: int) -> None:
        contenders = tuple(account.contender(now_ns) for account in accounts)
        known = self._divided.get(uuid)
        if known is None or known[0] != contenders:
            shares = divide(
                contenders,
                priority_block=self._settings.priority_block,
                fair_share=self._settings.fair_share,
            )
            known = self._divided[uuid] = (contenders, shares)
        for account, share in zip(accounts, known[1], strict=True):
            tenant = account.tenant
            suspended = tenant.suspended or self._watchman.suspends(tenant, now_ns)
            try:
                account.apply(share, suspended=suspended, now_ns=now_ns)
            except (HamiError, OSError, ValueError) as error:
                self._failed(tenant, error)
