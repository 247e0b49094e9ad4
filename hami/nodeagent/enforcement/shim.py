"""The backend with a shim: a library in front of the driver, and a region that tells its limits."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from hami.config import NodeAgentSettings
from hami.core import codec_enforcement
from hami.core.allocation import ContainerDevice
from hami.errors import CodecError
from hami.nodeagent import allocate, region
from hami.nodeagent.allocate import Grant, Limits, Shim
from hami.nodeagent.claims import Claim
from hami.nodeagent.controlfile import ControlFile
from hami.nodeagent.enforcement.contract import Guarantee
from hami.nodeagent.nvml import DeviceUse
from hami.nodeagent.samples import DeviceSample

_POLICIES: Final = {
    "default": region.Policy.DEFAULT,
    "force": region.Policy.FORCE,
    "disable": region.Policy.DISABLE,
}


class ShimBackend:
    """Shares of devices; see ``docs/shim.md`` and ``docs/region.md``."""

    name = codec_enforcement.SHIM
    guarantee = Guarantee(
        memory="limit", compute="paced", faults="shared", counts="processes", resizes=True
    )
    keeps_region = True

    def prepare(self, directory: Path, claim: Claim, limits: Limits) -> None:
        """Make the region anew."""
        region.create(
            directory,
            devices=[
                region.RegionDevice(
                    uuid=device.uuid,
                    memory_limit_bytes=device.memory_bytes,
                    core_limit_permille=device.core_permille,
                    physical_bytes=device.physical_bytes,
                )
                for device in limits.devices
            ],
            owner=region.Owner(
                pod_uid=claim.uid,
                pod_namespace=claim.namespace,
                pod_name=claim.pod,
                container_name=claim.container,
            ),
            priority=limits.priority,
            weight=limits.weight,
            policy=_POLICIES[limits.policy],
            flags=_flags(limits),
        )

    def grant(
        self,
        devices: Sequence[ContainerDevice],
        *,
        directory: Path,
        shim: Shim,
        settings: NodeAgentSettings,
    ) -> Grant:
        """Region, library and preload file, and the variables that tell of them."""
        return allocate.grant(devices, region=directory, shim=shim, settings=settings)

    def limit(self, directory: Path, limits: Limits) -> bool:
        """Store what differs; a limit below the use of now only stops growth."""
        with ControlFile(directory) as control:
            now = control.devices
            if [device.uuid for device in now] != [device.uuid for device in limits.devices]:
                raise CodecError(f"{directory}: its devices are not those of the new limits")
            changed = False
            for index, (old, new) in enumerate(zip(now, limits.devices, strict=True)):
                if old.memory_limit_bytes != new.memory_bytes:
                    control.set_memory_limit(index, new.memory_bytes)
                    changed = True
                if old.core_limit_permille != new.core_permille:
                    control.set_core_limit(index, new.core_permille)
                    changed = True
        return changed

    def measure(
        self, directory: Path, claim: Claim, use: Mapping[str, DeviceUse]
    ) -> tuple[DeviceSample, ...]:
        """What the container's processes report."""
        found = region.read_usage(directory)
        return tuple(
            DeviceSample(
                uuid=device.uuid,
                used_bytes=found.used_bytes(index),
                limit_bytes=device.memory_limit_bytes,
            )
            for index, device in enumerate(found.devices)
        )

    def release(self, directory: Path) -> None:
        """Remove the region with its directory."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(directory)


def _flags(limits: Limits) -> region.Flag:
    flags = region.Flag.FAIL_OPEN if limits.fail_open else region.Flag.NONE
    return flags | region.Flag.OVERSUBSCRIBE if limits.oversubscribe else flags
