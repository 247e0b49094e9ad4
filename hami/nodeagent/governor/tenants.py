"""Whom the governor governs: one tenant a region, and where the current ones come from.

A Tenant holds its region's control file open for writing and its usage file for reading. Knows no
Kubernetes: in the agent the tenants are the containers' regions (``residents``), under ``hami run``
it is the one region of that command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from hami.nodeagent import region
from hami.nodeagent.controlfile import ControlFile
from hami.nodeagent.governor.probe import UsageProbe

FileId = tuple[int, int]
"""Device and inode."""


@dataclass(slots=True, kw_only=True, eq=False)
class Tenant:
    """One region, open."""

    key: str
    """Unique among the tenants: the region's directory."""
    directory: Path
    control: ControlFile
    probe: UsageProbe
    control_id: FileId
    devices: tuple[str, ...]
    """UUIDs in the order of the control file."""
    pod_uid: str = ""
    namespace: str = ""
    pod: str = ""
    container: str = ""
    container_id: str = ""
    """As the container runtime names it; empty where that is not known."""
    enforced: bool = True
    """Whether the shim is loaded: containers may be allowed to do without."""
    suspended: bool = False
    """Whether its submissions are to wait until told otherwise."""

    @classmethod
    def open(cls, directory: Path) -> Self:
        """The tenant of a region's directory.

        Raises:
            CodecError: The files are no region's of this version.
            OSError: They cannot be opened.
        """
        control_id = file_id(directory / region.CONTROL)
        control = ControlFile(directory)
        try:
            said = control.control
            return cls(
                key=str(directory),
                directory=directory,
                control=control,
                probe=UsageProbe(directory, devices=said.device_count),
                control_id=control_id,
                devices=tuple(device.uuid for device in control.devices),
                pod_uid=_text(said.pod_uid),
                namespace=_text(said.pod_namespace),
                pod=_text(said.pod_name),
                container=_text(said.container_name),
            )
        except BaseException:
            control.close()
            raise

    def is_current(self) -> bool:
        """Whether the directory still holds the file that is open here."""
        try:
            return file_id(self.directory / region.CONTROL) == self.control_id
        except OSError:
            return False

    def close(self) -> None:
        """Close its files. Doing it twice is fine."""
        self.control.close()
        self.probe.close()

    @property
    def name(self) -> str:
        """For messages."""
        where = f"{self.namespace}/{self.pod}" if self.pod else self.key
        return f"{where} {self.container}".strip()


class TenantSource(Protocol):
    """Where the current tenants come from."""

    async def refresh(self) -> Sequence[Tenant]:
        """All tenants of now. One stays the same object while it lives, and is closed here."""


class OneRegion:
    """A single region, as of ``hami run``."""

    def __init__(self, directory: Path) -> None:
        """Open it. Raises CodecError or OSError, as ``Tenant.open`` does."""
        self.tenant = Tenant.open(directory)

    async def refresh(self) -> Sequence[Tenant]:
        """That one."""
        return (self.tenant,)


def file_id(path: Path) -> FileId:
    """Which file it is. Raises OSError."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _text(field: bytes) -> str:
    return field.decode(errors="replace")
