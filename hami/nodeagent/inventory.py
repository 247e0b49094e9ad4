"""The node's devices as they are now, for everybody who must hear of changes.

Owns the current list and the loops that keep it true: a probe by the clock, and the driver's
events. Readers wait for the version they have not seen, so every one of them gets every state that
lasts, however many they are and however slow. Input: ``nvml`` and ``health``.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NoReturn

import anyio
from anyio.abc import TaskStatus

from hami.core.device import Device
from hami.errors import DeviceError
from hami.logs import get_logger
from hami.nodeagent.health import HealthTracker, XidPolicy
from hami.nodeagent.nvml import (
    DOUBLE_BIT_ECC_EVENT,
    XID_EVENT,
    DeviceEvent,
    Nvml,
    NvmlEvents,
    Reading,
)

log = get_logger(__name__)

EVENT_WAIT_SECONDS = 5.0
SECOND_LOOK_SECONDS = 1.0
"""Soon enough to settle whether a device that failed a probe is gone."""


class Inventory:
    """The devices and a version that rises with each change."""

    def __init__(self) -> None:
        self.devices: tuple[Device, ...] = ()
        self.version = 0
        self._changed = anyio.Event()

    def publish(self, devices: tuple[Device, ...]) -> bool:
        """Make this the list, in order of index; whether it differs from the one before."""
        if self.version and devices == self.devices:
            return False
        self.devices = devices
        self.version += 1
        self._changed.set()
        self._changed = anyio.Event()
        return True

    async def newer_than(self, version: int) -> int:
        """The current version, once it is another than the given one."""
        while self.version == version:
            await self._changed.wait()
        return self.version


class DeviceWatch:
    """Keeps the inventory true."""

    def __init__(
        self,
        inventory: Inventory,
        *,
        nvml: Nvml,
        events: NvmlEvents,
        tracker: HealthTracker,
        xids: XidPolicy,
        poll_seconds: float,
    ) -> None:
        self._inventory = inventory
        self._nvml = nvml
        self._events = events
        self._tracker = tracker
        self._xids = xids
        self._poll_seconds = poll_seconds
        self._told: dict[str, str] = {}

    async def probe(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> NoReturn:
        """Look at the devices for ever; started once a look has succeeded."""
        seen = False
        while True:
            reading = await self._look()
            if reading is not None:
                self._judge(reading)
                if not seen:
                    seen = True
                    task_status.started()
            soon = reading is None or self._tracker.suspicious
            await anyio.sleep(
                min(SECOND_LOOK_SECONDS, self._poll_seconds) if soon else self._poll_seconds
            )

    async def listen(self) -> NoReturn:
        """Take the driver's events for ever. Where it reports none, probes are all there is."""
        while True:
            try:
                event = await self._events.wait(seconds=EVENT_WAIT_SECONDS)
            except DeviceError as error:
                self._report("driver_events_unavailable", error)
                await anyio.sleep(self._poll_seconds)
                continue
            self._told.pop("driver_events_unavailable", None)
            if event is not None:
                self._take(event)

    async def _look(self) -> Reading | None:
        """What the driver shows; if it does not answer, that every known device failed."""
        try:
            reading = await self._nvml.read()
        except DeviceError as error:
            self._report("devices_not_read", error)
            known = self._nvml.known
            if not known:
                return None
            return Reading(devices=known, faults=dict.fromkeys((d.uuid for d in known), str(error)))
        self._told.pop("devices_not_read", None)
        return reading

    def _report(self, event: str, error: DeviceError) -> None:
        """Warn of a trouble once, however long it lasts."""
        if self._told.get(event) != str(error):
            self._told[event] = str(error)
            log.warning(event, error=str(error))

    def _judge(self, reading: Reading) -> None:
        now = time.monotonic()
        for device in reading.devices:
            if device.uuid in reading.faults:
                self._tracker.failed(device.uuid, reading.faults[device.uuid], now=now)
            else:
                self._tracker.answered(device.uuid, now=now)
        self._publish(reading.devices)

    def _take(self, event: DeviceEvent) -> None:
        if event.kind == XID_EVENT and self._xids.counts(event.data):
            reason = f"XID {event.data}"
        elif event.kind == DOUBLE_BIT_ECC_EVENT and not self._xids.all_disabled:
            reason = "double-bit ECC error"
        else:
            log.info("device_event_ignored", device=event.uuid, kind=event.kind, data=event.data)
            return
        self._tracker.broke(event.uuid, reason, now=time.monotonic())
        self._publish(self._inventory.devices)

    def _publish(self, devices: tuple[Device, ...]) -> None:
        was = {device.uuid: device.healthy for device in self._inventory.devices}
        judged = tuple(replace(d, healthy=self._tracker.healthy(d.uuid)) for d in devices)
        for device in judged:
            if was.get(device.uuid) != device.healthy:
                log.info(
                    "device_health_changed",
                    device=device.uuid,
                    healthy=device.healthy,
                    reason=self._tracker.reason(device.uuid),
                )
        self._inventory.publish(judged)
