"""What the driver says of processes on devices, as measurements that the governor can use.

The driver keeps its own time: it publishes a percentage a process now and then, late, and stamps it
with a clock that it does not name. Here that becomes windows of CLOCK_MONOTONIC, with the device
time that each process used in them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Protocol

from hami.nodeagent.pacing import NS

US: Final = 1000
IDLE_NS: Final = NS
"""A driver that has published nothing new for so long has nothing to tell: nobody works."""
_SAME_CLOCK_NS: Final = 60 * NS


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """One process on one device."""

    pid: int
    """In the driver's pid namespace: the host's."""
    used_bytes: int | None
    """None: the driver does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSample:
    """How busy one process kept one device of late."""

    pid: int
    time_us: int
    """When the measurement ended, by the driver's clock."""
    percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReading:
    """One look at one device; None where the driver cannot tell."""

    samples: tuple[ProcessSample, ...] | None = None
    processes: tuple[ProcessMemory, ...] | None = None
    error: str = ""
    """Why something is None."""


class UsageDriver(Protocol):
    """Whoever can ask the driver (see ``nvml``)."""

    async def process_use(
        self, since_us: Mapping[str, int], *, memory: bool
    ) -> Mapping[str, DeviceReading]:
        """A reading of each device that is named; those that are not there are left out.

        Args:
            since_us: By UUID, the newest sample that is known, by the driver's clock.
            memory: Whether to ask for the processes' memory too.

        Raises:
            DeviceError: The driver does not answer.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceWindow:
    """The device time that each process used between two moments of CLOCK_MONOTONIC."""

    start_ns: int
    end_ns: int
    busy_ns: Mapping[int, float]
    """By host pid; who is not in it used nothing."""


@dataclass(slots=True)
class _Device:
    """What is known of one device's clock."""

    end_ns: int
    newest_us: int = 0
    heard_ns: int = 0


@dataclass(slots=True)
class SampleWindows:
    """Turns samples into windows; one for all devices."""

    _devices: dict[str, _Device] = field(default_factory=dict)

    def newest_us(self, devices: Collection[str]) -> dict[str, int]:
        """The newest sample of each device, for the next question."""
        return {
            uuid: self._devices[uuid].newest_us if uuid in self._devices else 0 for uuid in devices
        }

    def take(
        self,
        uuid: str,
        samples: Sequence[ProcessSample],
        *,
        monotonic_ns: int,
        realtime_ns: int,
    ) -> DeviceWindow | None:
        """The window that these samples close; None while it is still open.

        Args:
            uuid: The device.
            samples: Its new ones.
            monotonic_ns: CLOCK_MONOTONIC of the reading.
            realtime_ns: CLOCK_REALTIME of the same moment.
        """
        device = self._devices.setdefault(uuid, _Device(monotonic_ns, heard_ns=monotonic_ns))
        fresh = [sample for sample in samples if sample.time_us > device.newest_us]
        if not fresh:
            return self._idle(device, monotonic_ns)
        first = device.newest_us == 0
        device.newest_us = max(sample.time_us for sample in fresh)
        device.heard_ns = monotonic_ns
        end_ns = _on_our_clock(device.newest_us * US, monotonic_ns, realtime_ns)
        start_ns, device.end_ns = device.end_ns, max(end_ns, device.end_ns)
        length = end_ns - start_ns
        if first or length <= 0:  # of whatever time before
            return None
        busy: dict[int, float] = {}
        shares: dict[int, list[int]] = {}
        for sample in fresh:
            shares.setdefault(sample.pid, []).append(min(max(sample.percent, 0), 100))
        for pid, percents in shares.items():
            busy[pid] = sum(percents) / len(percents) / 100 * length
        return DeviceWindow(start_ns=start_ns, end_ns=end_ns, busy_ns=MappingProxyType(busy))

    def forget(self, keep: Collection[str]) -> None:
        """Drop all devices but these."""
        self._devices = {uuid: known for uuid, known in self._devices.items() if uuid in keep}

    @staticmethod
    def _idle(device: _Device, now_ns: int) -> DeviceWindow | None:
        end_ns = now_ns - IDLE_NS
        if device.heard_ns > end_ns or device.end_ns >= end_ns:
            return None
        start_ns, device.end_ns = device.end_ns, end_ns
        return DeviceWindow(start_ns=start_ns, end_ns=end_ns, busy_ns=MappingProxyType({}))


def _on_our_clock(stamp_ns: int, monotonic_ns: int, realtime_ns: int) -> int:
    """A driver's time as CLOCK_MONOTONIC: drivers count from the epoch or from the boot."""
    if abs(stamp_ns - monotonic_ns) < _SAME_CLOCK_NS:
        return min(stamp_ns, monotonic_ns)
    if abs(stamp_ns - realtime_ns) < _SAME_CLOCK_NS:
        return min(stamp_ns - realtime_ns + monotonic_ns, monotonic_ns)
    return monotonic_ns
