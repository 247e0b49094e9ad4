"""Devices, their use and their events as NVML tells them: the only module that knows ``pynvml``.

Owns two sessions with the driver: one for questions, one for waiting on events. Every call runs in
a worker thread with a deadline. One device's failure is that device's fault, reported as a value; a
failure of the driver itself raises DeviceError and begins a new session at the next question.
Knows nothing of health policy: it says what it saw.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pynvml

from hami.config import NodeAgentSettings
from hami.core.device import Device, DeviceUuid
from hami.core.quantity import BYTES_PER_MIB, MiB, Percent
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import DeviceError
from hami.logs import get_logger
from hami.nodeagent.governor.usage import DeviceReading, ProcessMemory, ProcessSample
from hami.nodeagent.worker import Worker

log = get_logger(__name__)

XID_EVENT: Final[int] = pynvml.nvmlEventTypeXidCriticalError
DOUBLE_BIT_ECC_EVENT: Final[int] = pynvml.nvmlEventTypeDoubleBitEccError
_WANTED_EVENTS: Final = XID_EVENT | DOUBLE_BIT_ECC_EVENT

_PCI_DEVICES: Final = Path("/sys/bus/pci/devices")
_NVIDIA_PCI_VENDOR: Final = "0x10de"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one look at the driver showed."""

    devices: tuple[Device, ...]
    """Every device ever seen, in order of index; ``healthy`` means: it answered this time."""
    faults: Mapping[DeviceUuid, str]
    """Why each of the others did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUse:
    """How busy one device is, over all its users; None where the driver does not tell."""

    device: Device
    memory_used_bytes: int | None = None
    utilization_percent: int | None = None
    memory_utilization_percent: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEvent:
    """Something the driver reported on its own."""

    uuid: DeviceUuid
    kind: int
    """NVML's event type."""
    data: int
    """The XID, for XID events."""


@dataclass(slots=True, kw_only=True)
class _Session:
    """What the worker thread keeps between questions."""

    open: bool = False
    known: dict[DeviceUuid, Device] = field(default_factory=dict)


class Nvml:
    """Asks the driver about its devices."""

    def __init__(self, settings: NodeAgentSettings) -> None:
        self._settings = settings
        self._worker = Worker("nvml", deadline_seconds=settings.driver_timeout_seconds)
        self._session = _Session()

    async def read(self) -> Reading:
        """Look at every device.

        A device that was seen before and is not there any more stays in the list, with a fault.

        Raises:
            DeviceError: The driver is not there, or does not answer.
        """
        return await self._worker.call(self._read, "reading the devices")

    async def use(self) -> tuple[DeviceUse, ...]:
        """How busy the devices are that answered the last ``read``.

        Raises:
            DeviceError: The driver does not answer.
        """
        return await self._worker.call(self._use, "reading the use of devices")

    async def process_use(
        self, since_us: Mapping[str, int], *, memory: bool
    ) -> Mapping[str, DeviceReading]:
        """Who uses the devices named, and how much; see ``usage.UsageDriver``.

        Raises:
            DeviceError: The driver does not answer.
        """
        return await self._worker.call(
            lambda: self._process_use(since_us, memory=memory), "reading the use of processes"
        )

    @property
    def known(self) -> tuple[Device, ...]:
        """Every device ever seen, in order of index, as it was when it last answered."""
        return _sorted(self._session.known.values())

    def _read(self) -> Reading:
        self._open()
        try:
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            self._close()
            raise DeviceError(f"NVML: counting the devices: {error}") from error
        met: dict[DeviceUuid, Device] = {}
        for index in range(count):
            try:
                device = _read_device(index, self._settings)
            except pynvml.NVMLError as error:
                log.warning("device_unreadable", index=index, error=str(error))
                continue
            if device is not None:
                met[device.uuid] = device
        self._session.known |= met
        missing = [uuid for uuid in self._session.known if uuid not in met]
        if missing:
            self._close()  # a session begun before a device was reset does not see it again
        return Reading(
            devices=self.known,
            faults=MappingProxyType(dict.fromkeys(missing, "the driver cannot reach it")),
        )

    def _use(self) -> tuple[DeviceUse, ...]:
        self._open()
        return tuple(_read_use(device) for device in self.known)

    def _process_use(
        self, since_us: Mapping[str, int], *, memory: bool
    ) -> dict[str, DeviceReading]:
        self._open()
        found = {}
        for uuid, newest in since_us.items():
            try:
                handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            except pynvml.NVMLError as error:
                log.debug("device_use_unreadable", device=uuid, error=str(error))
                continue
            found[uuid] = _read_processes(handle, newest, memory=memory)
        return found

    def _open(self) -> None:
        if self._session.open:
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise DeviceError(f"NVML: opening a session: {error}") from error
        self._session.open = True

    def _close(self) -> None:
        self._session.open = False
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            log.info("driver_session_not_closed", error=str(error))


class NvmlEvents:
    """Waits for what the driver reports on its own."""

    def __init__(self, settings: NodeAgentSettings) -> None:
        self._worker = Worker("nvml-events", deadline_seconds=settings.driver_timeout_seconds)
        self._set: pynvml.c_nvmlEventSet_t | None = None

    async def wait(self, *, seconds: float) -> DeviceEvent | None:
        """The next event, or None after so many seconds without.

        Raises:
            DeviceError: The driver cannot report events; the next call begins a new session.
        """
        return await self._worker.call(
            lambda: self._wait(round(seconds * 1000)), "waiting for events", extra_seconds=seconds
        )

    def _wait(self, milliseconds: int) -> DeviceEvent | None:
        try:
            events = self._set if self._set is not None else self._subscribe()
            data = pynvml.nvmlEventSetWait_v2(events, milliseconds)
            return DeviceEvent(
                uuid=DeviceUuid(pynvml.nvmlDeviceGetUUID(data.device)),
                kind=int(data.eventType),
                data=int(data.eventData),
            )
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_TIMEOUT:
                return None
            self._unsubscribe()
            raise DeviceError(f"NVML: waiting for events: {error}") from error

    def _subscribe(self) -> pynvml.c_nvmlEventSet_t:
        pynvml.nvmlInit()
        try:
            events = pynvml.nvmlEventSetCreate()
        except pynvml.NVMLError:
            pynvml.nvmlShutdown()
            raise
        self._set = events
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                wanted = _WANTED_EVENTS & pynvml.nvmlDeviceGetSupportedEventTypes(handle)
                pynvml.nvmlDeviceRegisterEvents(handle, wanted, events)
            except pynvml.NVMLError as error:
                log.warning("device_events_unavailable", index=index, error=str(error))
        return events

    def _unsubscribe(self) -> None:
        if self._set is None:
            return
        events, self._set = self._set, None
        try:
            pynvml.nvmlEventSetFree(events)
            pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            log.info("driver_session_not_closed", error=str(error))


def _read_device(index: int, settings: NodeAgentSettings) -> Device | None:
    """One device as it is offered; None where its memory is not known."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    uuid = DeviceUuid(pynvml.nvmlDeviceGetUUID(handle))
    memory = _memory(handle, settings)
    if not memory:
        log.warning("device_left_out", device=uuid, error="its memory is not known")
        return None
    name = str(pynvml.nvmlDeviceGetName(handle))
    return Device(
        uuid=uuid,
        vendor=NVIDIA.name,
        index=index,
        slots=settings.split_count,
        memory=MiB(int(memory * settings.memory_scaling)),
        cores=Percent(int(100 * settings.core_scaling)),
        model=name if name.startswith("NVIDIA") else f"NVIDIA-{name}",
        numa=_numa(handle),
        healthy=True,
    )


def _memory(handle: object, settings: NodeAgentSettings) -> int:
    """MiB of the whole device; 0 where neither driver nor settings tell."""
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) // BYTES_PER_MIB
    except pynvml.NVMLError_NotSupported:
        return settings.fallback_memory


def _numa(handle: object) -> int:
    """The device's NUMA node: as the kernel says, else as the driver says, else 0."""
    bus_id = str(pynvml.nvmlDeviceGetPciInfo(handle).busId).lower()
    path = _PCI_DEVICES / bus_id[-len("0000:00:00.0") :]
    with contextlib.suppress(OSError, ValueError):
        # Another maker's device may stand at the address that a simulated one names.
        if (path / "vendor").read_text().strip() == _NVIDIA_PCI_VENDOR:
            return max(int((path / "numa_node").read_text()), 0)
    with contextlib.suppress(pynvml.NVMLError):
        return max(int(pynvml.nvmlDeviceGetNumaNodeId(handle)), 0)
    return 0


def _read_use(device: Device) -> DeviceUse:
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(device.uuid)
    except pynvml.NVMLError as error:
        log.debug("device_use_unreadable", device=device.uuid, error=str(error))
        return DeviceUse(device=device)
    memory = utilization = memory_utilization = None
    try:
        memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
        rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
        utilization, memory_utilization = int(rates.gpu), int(rates.memory)
    except pynvml.NVMLError as error:
        log.debug("device_use_unreadable", device=device.uuid, error=str(error))
    return DeviceUse(
        device=device,
        memory_used_bytes=memory,
        utilization_percent=utilization,
        memory_utilization_percent=memory_utilization,
    )


def _read_processes(handle: object, newest_us: int, *, memory: bool) -> DeviceReading:
    samples = processes = percent = None
    error = ""
    try:
        samples = tuple(
            ProcessSample(pid=int(met.pid), time_us=int(met.timeStamp), percent=int(met.smUtil))
            for met in pynvml.nvmlDeviceGetProcessUtilization(handle, newest_us)
        )
        percent = int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except pynvml.NVMLError_NotFound:
        samples = ()  # nobody has worked since
    except pynvml.NVMLError as met:
        error = "" if samples else f"utilization: {met}"
    try:
        if memory:
            processes = tuple(
                ProcessMemory(pid=int(met.pid), used_bytes=met.usedGpuMemory)
                for met in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
            )
    except pynvml.NVMLError as met:
        error = f"{error} running processes: {met}".strip()
    return DeviceReading(samples=samples, processes=processes, percent=percent, error=error)


def _sorted(devices: Iterable[Device]) -> tuple[Device, ...]:
    return tuple(sorted(devices, key=lambda device: (device.index, device.uuid)))
