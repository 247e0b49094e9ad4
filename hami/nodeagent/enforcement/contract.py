"""What every way of enforcing a container's limits offers: the contract, and what it promises.

A backend works on a container's directory and keeps nothing in memory, so a restart forgets
nothing: the claim beside the files names the backend. Its calls block and may be repeated.
``tests/nodeagent/test_enforcement.py`` holds every backend to what stands here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from hami.config import NodeAgentSettings
from hami.core.allocation import ContainerDevice
from hami.nodeagent.allocate import Grant, Limits, Shim
from hami.nodeagent.claims import Claim
from hami.nodeagent.nvml import DeviceUse
from hami.nodeagent.samples import DeviceSample


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """What a backend promises."""

    memory: Literal["limit", "device"]
    """``limit``: not a byte beyond the limit; ``device``: the device's own end alone."""
    compute: Literal["paced", "device"]
    """``paced``: held to its share while others want the device; ``device``: all of it."""
    faults: Literal["shared", "own"]
    """Whether a crash on the device can reach other containers; ``own``: nobody else is there."""
    counts: Literal["processes", "device"]
    """What ``measure`` adds up: what its processes report, or all that is used of its devices."""
    resizes: bool
    """Whether ``limit`` changes anything while the container runs."""


class Backend(Protocol):
    """One way of enforcing limits."""

    @property
    def name(self) -> str:
        """As claims, annotations and metrics say it; never changed, since files carry it."""

    @property
    def guarantee(self) -> Guarantee:
        """What it promises."""

    @property
    def keeps_region(self) -> bool:
        """Whether the directory holds a region, which governor and housekeeping look after."""

    def prepare(self, directory: Path, claim: Claim, limits: Limits) -> None:
        """Make the directory's files for this container, in place of any that are there.

        Raises:
            CodecError: The limits cannot be written down.
            OSError: The host's file system refuses.
        """

    def grant(
        self,
        devices: Sequence[ContainerDevice],
        *,
        directory: Path,
        shim: Shim,
        settings: NodeAgentSettings,
    ) -> Grant:
        """What the container gets of a directory that was prepared. Pure."""

    def limit(self, directory: Path, limits: Limits) -> bool:
        """Put these limits into force, for processes that run as well; whether any was another.

        Only ever called by the one writer of the region.

        Raises:
            CodecError: The files are no region's, or have other devices.
            OSError: They cannot be opened.
        """

    def measure(
        self, directory: Path, claim: Claim, use: Mapping[str, DeviceUse]
    ) -> tuple[DeviceSample, ...]:
        """What the container uses now, in the order of its devices; empty where that is unknown.

        Args:
            directory: Of the container.
            claim: Whose it is.
            use: What the driver says of each device, by uuid.

        Raises:
            CodecError: The files are not what was prepared.
            OSError: They cannot be read.
        """

    def release(self, directory: Path) -> None:
        """Remove all that was prepared; nothing there is fine.

        Raises:
            OSError: The host's file system refuses.
        """
