"""One look at this host: devices, containers and runs, processes. Plain data, for ``hami top``.

Devices and processes are the driver's; limits and usage stand in the regions; which process is
whose, the kernel says (``governor.attribution``). What cannot be seen becomes a note.
"""

from __future__ import annotations

import glob
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio.to_thread
import msgspec

from hami.config import NodeAgentSettings
from hami.core.quantity import BYTES_PER_MIB
from hami.errors import CodecError, DeviceError
from hami.nodeagent import claims, region
from hami.nodeagent.governor.attribution import Attribution
from hami.nodeagent.governor.tenants import Tenant
from hami.nodeagent.governor.usage import DeviceReading
from hami.nodeagent.nvml import DeviceUse, Nvml
from hami.nodeagent.region import CoreMode
from hami.tools import rundir

REGIONS_DIR: Final = "containers"
_NAME_BYTES: Final = 4096
_OTHERS_RUNS: Final = ("/run/user/*/hami", "/tmp/hami-*", "/run/hami")
"""Where root finds the runs of everybody."""


class DeviceLook(msgspec.Struct, frozen=True, kw_only=True):
    """One device, over all its users; None where the driver does not tell."""

    index: int
    uuid: str
    model: str
    memory_bytes: int
    memory_used_bytes: int | None
    utilization_percent: int | None
    fault: str = ""
    """Why it does not answer; empty: it does."""


class ShareLook(msgspec.Struct, frozen=True, kw_only=True):
    """One container on one device."""

    device: str
    """UUID."""
    memory_limit_bytes: int | None
    used_bytes: int
    """What its processes say, and what was measured beyond."""
    measured_bytes: int | None
    """What the driver says of its processes; None: it does not tell."""
    core_limit_permille: int
    mode: str
    pace_permille: int | None
    """What it is granted now, of the time that its kernels are thought to take; None: not paced."""
    use_percent: int | None
    waited_seconds: float
    """How long its processes have waited for device time, ever."""


class TenantLook(msgspec.Struct, frozen=True, kw_only=True):
    """A container, or a program of ``hami run``."""

    kind: str
    """``container`` or ``run``."""
    name: str
    namespace: str
    pod: str
    container: str
    directory: str
    processes: int
    devices: tuple[ShareLook, ...]


class ProcessLook(msgspec.Struct, frozen=True, kw_only=True):
    """One process on one device."""

    pid: int
    command: str
    device: str
    memory_bytes: int | None
    use_percent: int | None
    tenant: str
    """Name of its container or run; empty: nobody's that can be seen."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    time: float
    """Unix time."""
    devices: tuple[DeviceLook, ...]
    tenants: tuple[TenantLook, ...]
    processes: tuple[ProcessLook, ...]
    notes: tuple[str, ...]
    """What cannot be seen, and why."""


@dataclass(slots=True)
class _Driver:
    """What the driver said this time."""

    devices: list[DeviceLook] = field(default_factory=list)
    readings: dict[str, DeviceReading] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Place:
    """A region that can be read."""

    kind: str
    name: str
    tenant: Tenant


class Looker:
    """Looks again and again; keeps what makes the next look cheaper."""

    def __init__(self, host_dir: Path, runs: Path, *, is_root: bool) -> None:
        self._regions = host_dir / REGIONS_DIR
        self._runs, self._is_root = runs, is_root
        self._nvml = Nvml(NodeAgentSettings())
        self._attribution = Attribution()
        self._newest: dict[str, int] = {}
        self._open: dict[Path, _Place] = {}

    async def look(self) -> Look:
        """How everything is now."""
        driver = await self._ask()
        return await anyio.to_thread.run_sync(self._lay_out, driver)

    async def _ask(self) -> _Driver:
        found = _Driver()
        try:
            reading = await self._nvml.read()
            uses = {use.device.uuid: use for use in await self._nvml.use()}
            since = {
                str(device.uuid): self._newest.get(device.uuid, 0) for device in reading.devices
            }
            readings = await self._nvml.process_use(since, memory=True)
        except DeviceError as error:
            found.notes.append(f"devices: {error}")
            return found
        for device in reading.devices:
            use = uses.get(device.uuid, DeviceUse(device=device))
            found.devices.append(
                DeviceLook(
                    index=device.index,
                    uuid=device.uuid,
                    model=device.model,
                    memory_bytes=device.memory * BYTES_PER_MIB,
                    memory_used_bytes=use.memory_used_bytes,
                    utilization_percent=use.utilization_percent,
                    fault=reading.faults.get(device.uuid, ""),
                )
            )
        found.readings = dict(readings)
        told = {met.error for met in found.readings.values() if met.error}
        found.notes += [f"processes: the driver does not tell all: {text}" for text in sorted(told)]
        for uuid, met in found.readings.items():
            times = [sample.time_us for sample in met.samples or ()]
            self._newest[uuid] = max([self._newest.get(uuid, 0), *times])
        return found

    def _lay_out(self, driver: _Driver) -> Look:
        notes = driver.notes
        self._refresh(notes)
        places = list(self._open.values())
        tenants = [place.tenant for place in places]
        pids = {p.pid for r in driver.readings.values() for p in r.processes or ()}
        pids |= {s.pid for r in driver.readings.values() for s in r.samples or ()}
        owners = self._attribution.find(pids, tenants, now_ns=time.monotonic_ns())
        names = {place.tenant.key: place.name for place in places}
        whose = {pid: names[tenant.key] for pid, (_, tenant) in owners.items()}
        processes = [
            process
            for uuid, reading in driver.readings.items()
            for process in _processes(uuid, reading, whose)
        ]
        shown = [look for place in places if (look := _tenant(place, processes, notes))]
        return Look(
            time=time.time(),
            devices=tuple(driver.devices),
            tenants=tuple(shown),
            processes=tuple(processes),
            notes=tuple(notes),
        )

    def _refresh(self, notes: list[str]) -> None:
        """Open the regions that came, close those that went."""
        present = dict([*self._containers(notes), *self._all_runs()])
        for path in self._open.keys() - present.keys():
            self._open.pop(path).tenant.close()
        for path, (kind, name) in present.items():
            known = self._open.get(path)
            if known is not None and known.tenant.is_current():
                continue
            if known is not None:
                self._open.pop(path).tenant.close()
            try:
                self._open[path] = _Place(kind, name, Tenant.open(path))
            except FileNotFoundError:
                continue  # it is just being made, or removed
            except (CodecError, OSError) as error:
                notes.append(f"{name}: its region cannot be read: {error}")

    def _containers(self, notes: list[str]) -> Iterator[tuple[Path, tuple[str, str]]]:
        try:
            directories = sorted(self._regions.iterdir())
        except FileNotFoundError:
            return  # no node agent has been here
        except OSError as error:
            who = "; root can see them" if isinstance(error, PermissionError) else ""
            notes.append(f"containers: {self._regions}: {error.strerror}{who}")
            return
        for directory in directories:
            try:
                claim = claims.read(directory)
            except CodecError:
                continue  # half made
            yield directory, ("container", f"{claim.pod_key} {claim.container}")

    def _all_runs(self) -> Iterator[tuple[Path, tuple[str, str]]]:
        roots = {self._runs}
        if self._is_root:
            roots |= {Path(path) for pattern in _OTHERS_RUNS for path in glob.glob(pattern)}
        for root in sorted(roots):
            for run in rundir.runs(root):
                name = f"run {run.note.pid} {Path(run.note.command[0]).name}"
                yield run.directory, ("run", name)


def _processes(
    uuid: str, reading: DeviceReading, whose: Mapping[int, str]
) -> Iterator[ProcessLook]:
    memory = {met.pid: met.used_bytes for met in reading.processes or ()}
    percents: dict[int, list[int]] = {}
    for sample in reading.samples or ():
        percents.setdefault(sample.pid, []).append(min(max(sample.percent, 0), 100))
    for pid in sorted(memory.keys() | percents.keys()):
        mine = percents.get(pid)
        told = None if reading.samples is None else 0
        yield ProcessLook(
            pid=pid,
            command=_command(pid),
            device=uuid,
            memory_bytes=memory.get(pid),
            use_percent=round(sum(mine) / len(mine)) if mine else told,
            tenant=whose.get(pid, ""),
        )


def _command(pid: int) -> str:
    """How it was called; empty: it has ended, or is hidden."""
    try:
        with Path(f"/proc/{pid}/cmdline").open("rb") as file:
            words = file.read(_NAME_BYTES).decode(errors="replace").split("\0")
    except OSError:
        return ""
    first = Path(words[0]).name
    return " ".join([first, *words[1:]]).strip()


def _tenant(place: _Place, processes: Sequence[ProcessLook], notes: list[str]) -> TenantLook | None:
    tenant = place.tenant
    try:
        use = region.read_usage(tenant.directory)
        control = tenant.control.control
    except (CodecError, OSError, ValueError) as error:
        notes.append(f"{place.name}: its usage cannot be read: {error}")
        return None
    mine = [process for process in processes if process.tenant == place.name]
    shares = []
    for index, device in enumerate(use.devices):
        said = control.devices[index]
        here = [process for process in mine if process.device == device.uuid]
        paced = said.core_mode in {CoreMode.LIMIT, CoreMode.BLOCK}
        rate = said.grants[said.grant_sequence % 2].rate_ns_per_second
        shares.append(
            ShareLook(
                device=device.uuid,
                memory_limit_bytes=device.memory_limit_bytes,
                used_bytes=use.used_bytes(index) + said.untracked_bytes,
                measured_bytes=_sum([process.memory_bytes for process in here]),
                core_limit_permille=device.core_limit_permille,
                mode=_mode(said.core_mode),
                pace_permille=min(round(rate / 1_000_000), 1000) if paced else None,
                use_percent=_sum([process.use_percent for process in here]),
                waited_seconds=sum(p.devices[index].waited_ns for p in use.processes) / 1e9,
            )
        )
    return TenantLook(
        kind=place.kind,
        name=place.name,
        namespace=tenant.namespace,
        pod=tenant.pod,
        container=tenant.container,
        directory=str(tenant.directory),
        processes=len(use.processes),
        devices=tuple(shares),
    )


def _mode(value: int) -> str:
    return CoreMode(value).name.lower() if value in set(CoreMode) else f"unknown ({value})"


def _sum(values: Sequence[int | None]) -> int | None:
    """None where one of them is not known."""
    return None if None in values else sum(value or 0 for value in values)
