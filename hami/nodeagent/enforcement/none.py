"""The backend without a shim: the container has whole devices, or was allowed to do without."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from hami.config import NodeAgentSettings
from hami.core import codec_enforcement
from hami.core.allocation import ContainerDevice
from hami.nodeagent import allocate, region
from hami.nodeagent.allocate import Grant, Limits, Shim
from hami.nodeagent.claims import Claim
from hami.nodeagent.enforcement.contract import Guarantee
from hami.nodeagent.nvml import DeviceUse
from hami.nodeagent.samples import DeviceSample


class NoneBackend:
    """Nothing is preloaded and nothing mounted: the program meets the driver as it is."""

    name = codec_enforcement.NONE
    guarantee = Guarantee(
        memory="device", compute="device", faults="own", counts="device", resizes=False
    )
    keeps_region = False

    def prepare(self, directory: Path, claim: Claim, limits: Limits) -> None:
        """Nothing but the directory; files of another backend go."""
        directory.mkdir(parents=True, exist_ok=True)
        for name in (region.CONTROL, region.USAGE):
            (directory / name).unlink(missing_ok=True)

    def grant(
        self,
        devices: Sequence[ContainerDevice],
        *,
        directory: Path,
        shim: Shim,
        settings: NodeAgentSettings,
    ) -> Grant:
        """The devices' names, for the container runtime."""
        return Grant(envs=allocate.visible(devices), mounts=())

    def limit(self, directory: Path, limits: Limits) -> bool:
        """Never changes anything."""
        return False

    def measure(
        self, directory: Path, claim: Claim, use: Mapping[str, DeviceUse]
    ) -> tuple[DeviceSample, ...]:
        """All that is used of its devices, where nobody else has a part of them."""
        if not claim.whole:
            return ()
        used = [(uuid, use[uuid].memory_used_bytes) for uuid in claim.devices if uuid in use]
        return tuple(
            DeviceSample(uuid=uuid, used_bytes=found, limit_bytes=None)
            for uuid, found in used
            if found is not None
        )

    def release(self, directory: Path) -> None:
        """Remove the directory."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(directory)
