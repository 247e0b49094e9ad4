"""The region directories of this node's containers: made, found again, handed over, removed.

Owns ``<host_dir>/containers``: one directory a container, named after the pod's uid and the
container, with the region's two files (see ``region``) and the claim that says whose they are.
Directories survive this process; their claims are read back at start. File work runs in threads.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from hami.errors import AllocateError, CodecError
from hami.logs import get_logger
from hami.nodeagent import claims, processes, region
from hami.nodeagent.allocate import Limits
from hami.nodeagent.claims import Claim
from hami.nodeagent.counters import AgentMetrics
from hami.nodeagent.enforcement import BACKENDS
from hami.nodeagent.nvml import DeviceUse
from hami.nodeagent.reclaim import reclaim
from hami.nodeagent.samples import ContainerSample

log = get_logger(__name__)

T = TypeVar("T")

USAGE_BYTES: Final = ctypes.sizeof(region.Usage)
ROUNDING_BYTES: Final = 2**20
"""What a file system may set aside for a usage file beyond its size, without a container's help."""
_BLOCK_BYTES: Final = 512
"""Of ``st_blocks``, whatever the file system's own are."""
MAX_SAME_NAME: Final = 8
"""Directories of one container: more than one only after a swap of twins (see ``identity``)."""


class Regions:
    """The directories and their claims."""

    def __init__(self, root: Path, *, metrics: AgentMetrics) -> None:
        self._root = root
        self._metrics = metrics
        self._claims: dict[Path, Claim] = {}
        self._files = anyio.CapacityLimiter(1)

    @property
    def claims(self) -> Mapping[Path, Claim]:
        """Every region's claim, by directory."""
        return MappingProxyType(self._claims)

    async def load(self) -> None:
        """Read back the claims that an earlier process left.

        Raises:
            AllocateError: The directory cannot be made or read.
        """
        try:
            found = await self._in_thread(partial(_load, self._root))
        except OSError as error:
            raise AllocateError(f"region directory {self._root}: {error}") from error
        self._claims = found
        log.info("regions_loaded", regions=len(found))

    async def prepare(self, claim: Claim, limits: Limits) -> Path:
        """The container's region, made anew: doing it twice leaves one directory.

        Raises:
            AllocateError: The files cannot be made.
        """
        path = self._path_for(claim)
        await self._write(path, claim, limits)
        return path

    async def hand_over(self, path: Path, claim: Claim, limits: Limits) -> None:
        """Make the region another container's, before that starts.

        Raises:
            AllocateError: The files cannot be made.
        """
        await self._write(path, claim, limits)

    def holding(self, ids: Collection[str]) -> tuple[tuple[Path, Claim], ...]:
        """The regions that the pod got which was last given just these device ids.

        More than one where its app container took over an init container's devices.
        """
        wanted = tuple(sorted(ids))
        found = [(path, claim) for path, claim in self._claims.items() if claim.ids == wanted]
        if not found:
            return ()
        _, newest = max(found, key=lambda item: item[1].created_ns)
        return tuple(item for item in found if item[1].uid == newest.uid)

    @property
    def kept(self) -> Mapping[Path, Claim]:
        """Those with files of a region, by directory."""
        return {p: claim for p, claim in self._claims.items() if _keeps_region(claim)}

    def limit(self, path: Path, limits: Limits) -> bool:
        """Put other limits into force, for processes that run as well; whether any was another.

        Raises:
            CodecError: The files are not what was prepared.
            OSError: They cannot be opened.
        """
        return BACKENDS[self._claims[path].backend].limit(path, limits)

    async def samples(self, use: Mapping[str, DeviceUse]) -> tuple[ContainerSample, ...]:
        """What every container uses; one whose files cannot be read is left out.

        Args:
            use: What the driver says of each device, by uuid.
        """
        found = []
        for path, claim in list(self._claims.items()):
            try:
                measure = partial(BACKENDS[claim.backend].measure, path, claim, use)
                devices = await self._in_thread(measure)
            except (CodecError, OSError) as error:
                self._metrics.malformed_regions.inc()
                log.warning("region_unreadable", path=str(path), error=str(error))
                continue
            found.append(ContainerSample(claim=claim, devices=devices))
        return tuple(found)

    async def reclaim(self) -> int:
        """Empty the slots that dead processes left; how many.

        A container's next process does the same when it needs the room; this is for containers
        whose last process has ended.
        """
        earlier = await self._in_thread(partial(processes.look))
        emptied = 0
        for path in self.kept:
            try:
                is_dead = DeathCheck(earlier)
                emptied += await self._in_thread(partial(reclaim, path, is_dead))
            except (CodecError, OSError, subprocess.TimeoutExpired) as error:
                self._metrics.malformed_regions.inc()
                log.warning("region_not_reclaimed", path=str(path), error=str(error))
        return emptied

    async def trim(self) -> None:
        """Cut usage files back to their size: a container can make its own longer, without bound.

        Nothing is lost: whatever stands beyond the format's end is none of it.
        """
        for path in self.kept:
            try:
                cut = await self._in_thread(partial(_trim, path / region.USAGE))
            except OSError as error:
                log.warning("region_not_trimmed", path=str(path), error=str(error))
                continue
            if cut:
                self._metrics.malformed_regions.inc()
                log.warning("region_trimmed", path=str(path), bytes=cut)

    async def remove(self, path: Path) -> None:
        """Remove a region that no container uses any more.

        Raises:
            AllocateError: The host's file system refuses.
        """
        claim = self._claims.pop(
            path
        )  # first: who prepares it anew meanwhile has its turn after us
        try:
            await self._in_thread(partial(BACKENDS[claim.backend].release, path))
        except OSError as error:
            self._claims.setdefault(path, claim)
            raise AllocateError(f"removing region {path}: {error}") from error

    def _path_for(self, claim: Claim) -> Path:
        name = f"{claim.uid}_{claim.container}"
        for number in range(MAX_SAME_NAME):
            path = self._root / (f"{name}_{number}" if number else name)
            held = self._claims.get(path)
            if held is None or _purpose(held) == _purpose(claim):
                return path
        raise AllocateError(f"region {name}: expected a free directory, met {MAX_SAME_NAME} taken")

    async def _write(self, path: Path, claim: Claim, limits: Limits) -> None:
        self._claims[path] = claim  # first: a call cut off in the middle leaves nothing unknown
        try:
            await self._in_thread(partial(_write, path, claim, limits))
        except (OSError, CodecError) as error:
            raise AllocateError(f"preparing region {path}: {error}") from error

    async def _in_thread(self, call: partial[T]) -> T:
        return await anyio.to_thread.run_sync(call, limiter=self._files)


def _write(path: Path, claim: Claim, limits: Limits) -> None:
    """The claim first: files without one would never be found again."""
    path.mkdir(parents=True, exist_ok=True)
    claims.write(path, claim)
    BACKENDS[claim.backend].prepare(path, claim, limits)


def _keeps_region(claim: Claim) -> bool:
    return BACKENDS[claim.backend].keeps_region


def _trim(usage: Path) -> int:
    """How many bytes too many were cut off, those set aside beyond the file's end among them."""
    handle = os.open(usage, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        met = os.fstat(handle)
        excess = max(met.st_size, met.st_blocks * _BLOCK_BYTES - ROUNDING_BYTES) - USAGE_BYTES
        if excess > 0:
            os.ftruncate(handle, min(met.st_size, USAGE_BYTES))
        return max(excess, 0)
    finally:
        os.close(handle)


class DeathCheck:
    """Judges the processes of one region that was just read.

    Whoever an earlier look did not see may have started since: of these, only those are dead whom a
    new look does not see either. It is taken once at most, whatever a container wrote.
    """

    def __init__(self, earlier: processes.Living) -> None:
        self._earlier = earlier
        self._now: processes.Living | None = None

    def __call__(self, process: region.ProcessUse) -> bool:
        """Whether the process is surely dead. Blocking."""
        if not self._earlier.is_dead(process.pid_namespace, process.pid):
            return False
        if self._now is None:
            self._now = processes.look()
        return self._now.is_dead(process.pid_namespace, process.pid)


def _purpose(claim: Claim) -> tuple[object, ...]:
    return claim.uid, claim.container, claim.ids


def _load(root: Path) -> dict[Path, Claim]:
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o700)  # a usage file is its container's to write and to chmod: nobody's to run here
    found = {}
    for path in sorted(root.iterdir()):
        if path.is_symlink() or not path.is_dir():
            continue
        try:
            claim = claims.read(path)
        except CodecError as error:  # another agent's, or half made: nothing of ours runs on it
            log.warning("region_without_claim", path=str(path), error=str(error))
            continue
        if claim.backend in BACKENDS:
            found[path] = claim
        else:  # a later version's: it knows what to do about it
            log.warning("backend_unknown", path=str(path), backend=claim.backend[:80])
    return found
