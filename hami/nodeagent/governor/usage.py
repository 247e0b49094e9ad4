"""What the driver says of processes on devices, as measurements that the governor can use.

The driver keeps its own time: a percentage of each process that worked, for a period of a length
that it does not tell, late, and stamped with a clock that it does not name. It shows the newest
period only, and leaves out who did not work in it. Here that becomes windows of
CLOCK_MONOTONIC with the device time that each process used in them. Whoever asks more often than
the driver publishes misses no period, and knows that in those without a word nobody worked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Protocol

from hami.nodeagent.governor.pacing import NS

US: Final = 1000
IDLE_NS: Final = NS
"""A driver that has published nothing new for so long has nothing to tell: nobody works."""
_GAPS: Final = 16
_PERIOD_MIN_US: Final = 10_000
_QUICK_NS: Final = 150_000_000
"""Before the period is known, whoever asks this often is thought to miss none."""
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
    percent: int | None = None
    """How busy the whole device was, in the period of the samples."""
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
    period_ns: int
    """The driver's period at the end of it, before which nobody worked."""
    busy_ns: Mapping[int, float]
    """By host pid; who is not in it used nothing."""


@dataclass(slots=True)
class _Device:
    """What is known of one device's clock."""

    end_ns: int
    newest_us: int = 0
    heard_ns: int = 0
    asked_ns: int = 0
    slow: bool = False
    """Whether since the last news a period may have come and gone unseen."""
    gaps_us: deque[int] = field(default_factory=lambda: deque(maxlen=_GAPS))
    """Times between news of late; the shortest is the driver's period."""


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
        period_ns = min(device.gaps_us, default=0) * US
        device.slow |= monotonic_ns - device.asked_ns > max(period_ns, _QUICK_NS)
        device.asked_ns = monotonic_ns
        fresh = [sample for sample in samples if sample.time_us > device.newest_us]
        if not fresh:
            return self._idle(device, monotonic_ns)
        news_us = max(sample.time_us for sample in fresh)
        if device.newest_us:
            device.gaps_us.append(max(news_us - device.newest_us, _PERIOD_MIN_US))
        known, device.newest_us, device.heard_ns = device.newest_us != 0, news_us, monotonic_ns
        end_ns = _on_our_clock(news_us * US, monotonic_ns, realtime_ns)
        start_ns, device.end_ns = device.end_ns, max(end_ns, device.end_ns)
        slow, device.slow = device.slow, False
        if not known or end_ns <= start_ns:  # of whatever time before
            return None
        periods = max(round((end_ns - start_ns) / (min(device.gaps_us) * US)), 1)
        period_ns = (end_ns - start_ns) // periods
        return DeviceWindow(
            start_ns=end_ns - period_ns if slow else start_ns,
            end_ns=end_ns,
            period_ns=period_ns,
            busy_ns=MappingProxyType(_busy(fresh, period_ns)),
        )

    def forget(self, keep: Collection[str]) -> None:
        """Drop all devices but these."""
        self._devices = {uuid: known for uuid, known in self._devices.items() if uuid in keep}

    @staticmethod
    def _idle(device: _Device, now_ns: int) -> DeviceWindow | None:
        end_ns = now_ns - IDLE_NS
        if device.heard_ns > end_ns or device.end_ns >= end_ns:
            return None
        start_ns, device.end_ns = device.end_ns, end_ns
        return DeviceWindow(
            start_ns=start_ns,
            end_ns=end_ns,
            period_ns=end_ns - start_ns,
            busy_ns=MappingProxyType({}),
        )


def _busy(samples: Iterable[ProcessSample], period_ns: int) -> dict[int, float]:
    """Device time of each process; of one that stands there more than once, the mean counts."""
    percents: dict[int, list[int]] = {}
    for sample in samples:
        percents.setdefault(sample.pid, []).append(min(max(sample.percent, 0), 100))
    return {pid: sum(met) / len(met) / 100 * period_ns for pid, met in percents.items()}


def _on_our_clock(stamp_ns: int, monotonic_ns: int, realtime_ns: int) -> int:
    """A driver's time as CLOCK_MONOTONIC: drivers count from the epoch or from the boot."""
    if abs(stamp_ns - monotonic_ns) < _SAME_CLOCK_NS:
        return min(stamp_ns, monotonic_ns)
    if abs(stamp_ns - realtime_ns) < _SAME_CLOCK_NS:
        return min(stamp_ns - realtime_ns + monotonic_ns, monotonic_ns)
    return monotonic_ns
