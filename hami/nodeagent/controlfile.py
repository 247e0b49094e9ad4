"""A region's control file, open for changes that running processes see at once.

Every change is one aligned store, or takes effect by one: a writer killed at any point leaves the
old value or the new one. One writer at a time. The rules are in ``docs/region.md``.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from hami.errors import CodecError
from hami.nodeagent import region
from hami.nodeagent.region_layout import MAX_DEVICES, Control, DeviceControl, Grant

NS_PER_SECOND: Final = 1_000_000_000
LEAST_RATE: Final = 1_000_000
"""Whoever is limited to less still gets so much: 0.1 % of the device."""
_MASK: Final = (1 << MAX_DEVICES) - 1
_TICK: Final = 1 << MAX_DEVICES
_WORD: Final = 2**64
_HEARTBEAT: Final[int] = Control.heartbeat_ns.offset // 8
_PULSE: Final[int] = Control.pulse.offset // 8
_PRIORITY: Final[int] = Control.priority.offset // 4
_POLICY: Final[int] = Control.policy.offset // 4
_WEIGHT: Final[int] = Control.weight.offset // 4
_POLICIES: Final = tuple(region.Policy)
_DEVICES: Final[int] = Control.devices.offset
_DEVICE: Final = ctypes.sizeof(DeviceControl)
_GRANT: Final = ctypes.sizeof(Grant)
_OFFSETS: Final[dict[str, int]] = {
    name: getattr(DeviceControl, name).offset for name, *_ in DeviceControl._fields_
}


class ControlFile:
    """One control file. Close it, or use it as a context manager."""

    def __init__(self, directory: Path) -> None:
        """Open and check it.

        Raises:
            CodecError: It is not a control file of this version.
            OSError: It cannot be opened.
        """
        path = directory / region.CONTROL
        with path.open("r+b") as file:
            self._control = region.decode_control(path, file.read(ctypes.sizeof(Control)))
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(Control))
        self._words = memoryview(self._map).cast("B").cast("Q")
        self._halves = memoryview(self._map).cast("B").cast("I")
        self._barrier = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap it. Doing it twice is fine."""
        self._words.release()
        self._halves.release()
        self._map.close()

    @property
    def generation(self) -> int:
        """How often it was changed, and one."""
        return self._words[Control.generation.offset // 8]

    @property
    def control(self) -> Control:
        """A copy of all that it says now."""
        return region.decode_control(Path(region.CONTROL), bytes(self._map))

    @property
    def devices(self) -> tuple[region.RegionDevice, ...]:
        """Its devices, with the limits of now."""
        return region.devices_of(self.control)

    @property
    def priority(self) -> int:
        """0 is the highest."""
        return self._halves[_PRIORITY]

    @property
    def policy(self) -> region.Policy:
        """When core limits apply."""
        return _POLICIES[self._halves[_POLICY]]

    @property
    def weight(self) -> int:
        """Of its share where a device is contended; 0: the usual one."""
        return self._halves[_WEIGHT]

    def core_limit(self, device: int) -> int:
        """Permille that it was promised; 0 or 1000: no limit."""
        return self._halves[self._place(device, "core_limit_permille", 4)]

    def core_mode(self, device: int) -> region.CoreMode:
        """What happens to submissions now."""
        return region.CoreMode(self._halves[self._place(device, "core_mode", 4)])

    def rate(self, device: int) -> int:
        """Nanoseconds of device time that are granted each second."""
        return self._line(device)[2]

    def set_weight(self, weight: int) -> None:
        """Change its weight where a device is contended; 0: the usual one."""
        value = region.in_range("weight", weight, 0, 2**31 - 1)
        self._halves[_WEIGHT] = value
        self._words[Control.generation.offset // 8] += 1

    def set_memory_limit(self, device: int, limit_bytes: int | None) -> None:
        """Change a device's limit; None lifts it. Below the use of now it only stops growth."""
        self._store(device, "memory_limit_bytes", region.limit_word(limit_bytes))

    def set_untracked(self, device: int, untracked_bytes: int) -> None:
        """Say what the container uses beyond what its processes report; the limit includes it."""
        value = region.in_range("untracked", untracked_bytes, 0, 2**63)
        self._store(device, "untracked_bytes", value)

    def set_context(self, device: int, context_bytes: int) -> None:
        """Say what a context takes of the device: the shim charges it for each one."""
        value = region.in_range("context", context_bytes, 0, 2**63)
        self._store(device, "context_bytes", value)

    def set_core_limit(self, device: int, permille: int) -> None:
        """Record the share of time that the container was promised; 0 or 1000: no limit."""
        value = region.in_range("core limit", permille, 0, 1000)
        self._store(device, "core_limit_permille", value)

    def set_core_mode(self, device: int, mode: region.CoreMode) -> None:
        """Let submissions pass, pace them or hold them, from now on."""
        self._store(device, "core_mode", int(mode))
        mask = self._pulse & _MASK & ~(1 << device)
        self._set_pulse(mask | (mode is not region.CoreMode.OFF) << device)

    def set_pace(self, device: int, *, ns_per_second: int, burst_ns: int, now_ns: int) -> None:
        """Grant device time at this rate from now on; what was granted before stays granted.

        Args:
            device: Index in the file.
            ns_per_second: Device time a second.
            burst_ns: How much of it may be saved up.
            now_ns: CLOCK_MONOTONIC.
        """
        rate = region.in_range("rate", ns_per_second, 0, 2**40)
        burst = region.in_range("burst", burst_ns, 0, 2**63)
        granted = self.granted(device, now_ns)
        place = self._place(device, "grant_sequence", 4)
        sequence = self._halves[place]
        line = self._place(device, "grants", 8) + (sequence + 1) % 2 * (_GRANT // 8)
        self._words[line] = granted
        self._words[line + 1] = now_ns
        self._words[line + 2] = rate
        self._fence()
        self._halves[place] = (sequence + 1) % 2**32
        self._store(device, "burst_ns", burst)

    def granted(self, device: int, now_ns: int) -> int:
        """Device time granted up to that moment of CLOCK_MONOTONIC, nanoseconds."""
        granted, since, rate = self._line(device)
        passed = max(now_ns - since, 0) if since else 0
        return int(granted + passed * max(rate, LEAST_RATE) // NS_PER_SECOND) % _WORD

    def beat(self, now_ns: int) -> None:
        """Say that the governor lives: processes note once a beat that they submit work."""
        self._words[_HEARTBEAT] = now_ns
        self._words[_PULSE] = (self._words[_PULSE] + _TICK) % _WORD

    def _line(self, device: int) -> tuple[int, int, int]:
        """The grant that holds: granted, since, rate."""
        sequence = self._halves[self._place(device, "grant_sequence", 4)]
        line = self._place(device, "grants", 8) + sequence % 2 * (_GRANT // 8)
        words = self._words
        return words[line], words[line + 1], words[line + 2]

    @property
    def _pulse(self) -> int:
        return self._words[_PULSE]

    def _set_pulse(self, mask: int) -> None:
        self._words[_PULSE] = ((self._pulse & ~_MASK) + _TICK | mask) % _WORD

    def _fence(self) -> None:
        """Order the stores before it and after it, on every machine: released, then acquired."""
        for _ in range(2):
            with self._barrier:
                pass

    def _place(self, device: int, name: str, size: int) -> int:
        """Index of a device's field among the words of that size."""
        if not 0 <= device < self._control.device_count:
            count = self._control.device_count
            raise CodecError(f"control file: expected a device below {count}, met {device}")
        return (_DEVICES + device * _DEVICE + _OFFSETS[name]) // size

    def _store(self, device: int, name: str, value: int) -> None:
        size = getattr(DeviceControl, name).size
        words = self._words if size == 8 else self._halves
        words[self._place(device, name, size)] = value
        self._words[Control.generation.offset // 8] += 1
