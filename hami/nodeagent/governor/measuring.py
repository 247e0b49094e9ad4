"""One look at all devices: what the driver measured, laid to the tenants whose processes they were.

Asks the driver, attributes processes, and sets the driver's memory beside what usage files say. The
answer is plain data; who draws conclusions is another matter.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import anyio.to_thread

from hami.errors import CodecError
from hami.logs import get_logger
from hami.nodeagent.governor.attribution import Attribution, Process
from hami.nodeagent.governor.pacing import NS
from hami.nodeagent.governor.probe import Tally
from hami.nodeagent.governor.tenants import Tenant
from hami.nodeagent.governor.untracked import ProcessBytes
from hami.nodeagent.governor.usage import DeviceReading, DeviceWindow, SampleWindows, UsageDriver

log = get_logger(__name__)

Place = tuple[str, int]
"""A tenant's key and the index of one of its devices."""
Tallies = dict[str, tuple[Tally, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLook:
    """One tenant's memory on one device, by the driver and by its own files."""

    processes: tuple[ProcessBytes, ...]
    before_bytes: int
    after_bytes: int
    waited_ns: Mapping[int, int]
    """By the token of each process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUse:
    """One device's time between two moments of CLOCK_MONOTONIC, and who had it."""

    start_ns: int
    end_ns: int
    percent: int | None
    """Of the whole device; None: not told."""
    unit_ns: float
    """Device time that is one point of a hundred."""
    parts: Mapping[Place, tuple[float, int]]
    """Device time of each tenant, and how many of its processes that was; of all who may use it."""


@dataclass(slots=True, kw_only=True)
class Measurement:
    """What one look showed."""

    at_ns: int
    """CLOCK_MONOTONIC after the look: no window ends later."""
    windows: list[DeviceUse] = field(default_factory=list)
    memory: dict[Place, MemoryLook] = field(default_factory=dict)
    unmeasured: set[Place] = field(default_factory=set)
    """Where the driver cannot tell how much time was used."""
    errors: int = 0
    """Devices that the driver did not tell of."""


class Measurer:
    """Asks the driver about the devices of tenants."""

    def __init__(self, driver: UsageDriver, *, memory_seconds: float) -> None:
        self._driver = driver
        self._memory_ns = round(memory_seconds * NS)
        self._memory_at = 0
        self._windows = SampleWindows()
        self._attribution = Attribution()
        self._silent: set[str] = set()

    async def measure(self, tenants: Sequence[Tenant]) -> Measurement:
        """One look.

        Raises:
            DeviceError: The driver does not answer.
        """
        devices = {uuid for tenant in tenants for uuid in tenant.devices}
        if not devices:
            return Measurement(at_ns=time.monotonic_ns())
        self._windows.forget(devices)
        now_ns = time.monotonic_ns()
        memory = now_ns - self._memory_at >= self._memory_ns
        before = await _tallies(tenants) if memory else {}
        readings = await self._driver.process_use(self._windows.newest_us(devices), memory=memory)
        after = await _tallies(tenants) if memory else {}
        if memory:
            self._memory_at = now_ns
        return await anyio.to_thread.run_sync(
            partial(self._lay_out, tenants, readings, before, after)
        )

    def _lay_out(
        self,
        tenants: Sequence[Tenant],
        readings: Mapping[str, DeviceReading],
        before: Tallies,
        after: Tallies,
    ) -> Measurement:
        now_ns, realtime_ns = time.monotonic_ns(), time.time_ns()
        found = Measurement(at_ns=now_ns)
        for uuid, reading in readings.items():
            self._note_errors(uuid, reading, found)
            samples, processes = reading.samples, reading.processes
            window = None
            if samples is not None:
                window = self._windows.take(
                    uuid, samples, monotonic_ns=now_ns, realtime_ns=realtime_ns
                )
            pids = {*(window.busy_ns if window else ()), *(p.pid for p in processes or ())}
            owners = self._attribution.find(pids, tenants, now_ns=now_ns)
            if window is not None:
                found.windows.append(_use(uuid, window, reading.percent, tenants, owners))
            here = [
                (tenant, tenant.devices.index(uuid)) for tenant in tenants if uuid in tenant.devices
            ]
            for tenant, index in here:
                place = (tenant.key, index)
                if samples is None:
                    found.unmeasured.add(place)
                if processes is not None and tenant.key in before and tenant.key in after:
                    held = {p.pid: p.used_bytes for p in processes if p.used_bytes is not None}
                    found.memory[place] = _memory(
                        index,
                        {pid: (owners[pid][0], held[pid]) for pid in held
                         if pid in owners and owners[pid][1] is tenant},
                        before[tenant.key],
                        after[tenant.key],
                    )  # fmt: skip
        return found

    def _note_errors(self, uuid: str, reading: DeviceReading, found: Measurement) -> None:
        if not reading.error:
            self._silent.discard(uuid)
            return
        found.errors += 1
        if uuid not in self._silent:
            self._silent.add(uuid)
            log.warning("device_use_not_told", device=uuid, error=reading.error)


def _use(
    uuid: str,
    window: DeviceWindow,
    percent: int | None,
    tenants: Sequence[Tenant],
    owners: Mapping[int, tuple[Process, Tenant]],
) -> DeviceUse:
    parts = {
        (tenant.key, tenant.devices.index(uuid)): [0.0, 0]
        for tenant in tenants
        if uuid in tenant.devices
    }
    for pid, busy_ns in window.busy_ns.items():
        if pid in owners and uuid in owners[pid][1].devices:
            tenant = owners[pid][1]
            part = parts[tenant.key, tenant.devices.index(uuid)]
            part[0] += busy_ns
            part[1] += 1
        else:  # a stranger on the device: the whole is not the tenants'
            percent = None
    return DeviceUse(
        start_ns=window.start_ns,
        end_ns=window.end_ns,
        percent=percent,
        unit_ns=window.period_ns / 100,
        parts={place: (busy_ns, int(count)) for place, (busy_ns, count) in parts.items()},
    )


def _memory(
    index: int,
    processes: Mapping[int, tuple[Process, int]],
    before: Sequence[Tally],
    after: Sequence[Tally],
) -> MemoryLook:
    """A process without a slot after all may have come meanwhile: it is looked for in both."""
    nameless = any(tally.token == 0 and tally.tracked_bytes[index] for tally in after)
    held = []
    for process, driver_bytes in processes.values():
        own = [
            (tally.tracked_bytes[index], tally.context_bytes[index])
            for tally in (*before, *after)
            if tally.is_of(process.namespace, process.inner_pid)
        ]
        tracked, context = max(own) if own else (0 if nameless else None, 0)
        held.append(
            ProcessBytes(driver_bytes=driver_bytes, tracked_bytes=tracked, context_bytes=context)
        )
    return MemoryLook(
        processes=tuple(held),
        before_bytes=sum(tally.tracked_bytes[index] for tally in before),
        after_bytes=sum(tally.tracked_bytes[index] for tally in after),
        waited_ns={tally.token: tally.waited_ns[index] for tally in after},
    )


async def _tallies(tenants: Sequence[Tenant]) -> Tallies:
    return await anyio.to_thread.run_sync(partial(_read_tallies, tenants))


def _read_tallies(tenants: Sequence[Tenant]) -> Tallies:
    """What the usage files say; one that cannot be read is left out."""
    found = {}
    for tenant in tenants:
        try:
            found[tenant.key] = tenant.probe.tally()
        except (CodecError, OSError) as error:
            log.debug("tenant_not_tallied", tenant=tenant.name, error=str(error))
    return found
