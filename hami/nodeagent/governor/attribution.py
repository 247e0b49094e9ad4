"""Which container is a process of the host in? As the kernel says, never as a container does.

In this order: its cgroup is that of the pod, and of the container where several of the pod have
regions; the file at the control file's place in the process's root is the very inode of a region's
control file; the process maps that file. The cgroup comes first, for root in a container may move
the directories of its own file system about; no link in there is followed, since it would lead
through the host's. What was found out is kept as long as the process lives (pid and start time);
what could not be is tried again, since a process may yet be on its way. Blocking, but for a moment:
``/proc`` only.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hami.nodeagent.governor.tenants import FileId, Tenant

CONTROL_PLACE: Final = "usr/local/vgpu/control"
CHECK_NS: Final = 1_000_000_000
"""How long a process is believed to be the one it was; then its start time is read again."""
REMEMBERED: Final = 4096
MAX_MAPS_BYTES: Final = 4 * 2**20
_POD: Final = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})")
_CONTAINER: Final = re.compile(r"([0-9a-f]{64})")
_START: Final = 19
"""Of a process, among what follows its name in ``/proc/PID/stat``."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the host, and how its container counts it."""

    pid: int
    start_ticks: int
    namespace: int
    """Inode of its pid namespace; 0: not known."""
    inner_pid: int
    """Its pid there."""


@dataclass(slots=True)
class _Known:
    process: Process
    tenant: str
    """Key; empty: nobody's, as far as could be seen."""
    checked_ns: int


class Attribution:
    """Finds the tenants of processes; remembers."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._known: OrderedDict[int, _Known] = OrderedDict()
        self._index: _Index | None = None

    def find(
        self, pids: Iterable[int], tenants: Sequence[Tenant], *, now_ns: int
    ) -> dict[int, tuple[Process, Tenant]]:
        """The tenants of those processes that are somebody's, by pid."""
        if self._index is None or self._index.tenants != tuple(tenants):
            self._index = _Index.of(tenants)
        by_key = self._index.by_key
        found = {}
        for pid in pids:
            known = self._look(pid, by_key, self._index, now_ns)
            if known is not None and known.tenant:
                found[pid] = (known.process, by_key[known.tenant])
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return found

    def _look(
        self, pid: int, by_key: Mapping[str, Tenant], index: _Index, now_ns: int
    ) -> _Known | None:
        known = self._known.get(pid)
        if (
            known is not None
            and now_ns - known.checked_ns < CHECK_NS
            and (not known.tenant or known.tenant in by_key)
        ):
            self._known.move_to_end(pid)
            return known
        start = start_ticks(self._proc, pid)
        if start is None:
            self._known.pop(pid, None)
            return None
        if (
            known is None
            or known.process.start_ticks != start
            or known.tenant not in by_key  # nobody's so far, or of one that has gone
        ):
            tenant = self._tenant(pid, index)
            known = _Known(self._process(pid, start), tenant.key if tenant else "", now_ns)
        known.checked_ns = now_ns
        self._known[pid] = known
        self._known.move_to_end(pid)
        return known

    def _tenant(self, pid: int, index: _Index) -> Tenant | None:
        return (
            self._by_cgroup(pid, index)
            or index.files.get(self._control_in_root(pid))
            or self._by_mapping(pid, index)
        )

    def _control_in_root(self, pid: int) -> FileId | None:
        """What stands at the control file's place in the process's own file system."""
        *directories, name = CONTROL_PLACE.split("/")
        try:
            place = os.open(self._proc / str(pid) / "root", os.O_PATH | os.O_DIRECTORY)
            for directory in directories:
                above = place
                try:
                    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
                    place = os.open(directory, flags, dir_fd=above)
                finally:
                    os.close(above)
            try:
                status = os.stat(name, dir_fd=place, follow_symlinks=False)
            finally:
                os.close(place)
        except OSError:
            return None  # none there, or hidden from us
        return status.st_dev, status.st_ino

    def _by_mapping(self, pid: int, index: _Index) -> Tenant | None:
        """Outside of containers a process shows whose it is by what it has mapped."""
        try:
            with (self._proc / str(pid) / "maps").open("rb") as file:
                text = file.read(MAX_MAPS_BYTES)
        except OSError:
            return None
        for line in text.splitlines():
            fields = line.split(None, 5)
            if len(fields) == 6 and fields[5].endswith(b"/control"):
                major, _, minor = fields[3].partition(b":")
                device = int(major, 16), int(minor, 16)
                met = index.mapped.get((device, int(fields[4])))
                if met is not None:
                    return met
        return None

    def _by_cgroup(self, pid: int, index: _Index) -> Tenant | None:
        try:
            text = (self._proc / str(pid) / "cgroup").read_text(errors="replace")
        except OSError:
            return None
        for pod in _POD.findall(text):
            tenants = index.pods.get(_plain(pod), ())
            if len(tenants) == 1:
                return tenants[0]
            ids = set(_CONTAINER.findall(text))
            for tenant in tenants:
                if tenant.container_id and tenant.container_id in ids:
                    return tenant
        return None

    def _process(self, pid: int, start: int) -> Process:
        """How its own namespace counts it; the host's pid where that is hidden."""
        namespace, inner = 0, pid
        try:
            target = (self._proc / str(pid) / "ns" / "pid").readlink().name
            namespace = int(target.partition("[")[2].rstrip("]") or 0)
            for line in (self._proc / str(pid) / "status").read_text(errors="replace").splitlines():
                if line.startswith("NSpid:"):
                    inner = int(line.split()[-1])
        except (OSError, ValueError):
            pass
        return Process(pid, start, namespace, inner)


@dataclass(frozen=True, slots=True)
class _Index:
    """The tenants by what identifies them."""

    tenants: tuple[Tenant, ...]
    by_key: Mapping[str, Tenant]
    files: Mapping[FileId | None, Tenant]
    mapped: Mapping[tuple[tuple[int, int], int], Tenant]
    """By (major, minor) and inode, as ``/proc/PID/maps`` has it."""
    pods: Mapping[str, list[Tenant]]

    @classmethod
    def of(cls, tenants: Sequence[Tenant]) -> _Index:
        pods: dict[str, list[Tenant]] = {}
        for tenant in tenants:
            if tenant.pod_uid:
                pods.setdefault(_plain(tenant.pod_uid), []).append(tenant)
        return cls(
            tenants=tuple(tenants),
            by_key={tenant.key: tenant for tenant in tenants},
            files={tenant.control_id: tenant for tenant in tenants},
            mapped={_as_mapped(tenant.control_id): tenant for tenant in tenants},
            pods=pods,
        )


def start_ticks(proc: Path, pid: int) -> int | None:
    """When the process started; None: there is none."""
    try:
        text = (proc / str(pid) / "stat").read_bytes()
        return int(text[text.rindex(b")") + 2 :].split()[_START])
    except (OSError, ValueError, IndexError):
        return None


def _as_mapped(file: FileId) -> tuple[tuple[int, int], int]:
    device, inode = file
    return (os.major(device), os.minor(device)), inode


def _plain(uid: str) -> str:
    """A pod's uid without the strokes that systemd and cgroupfs write differently."""
    return uid.replace("-", "").replace("_", "").lower()
