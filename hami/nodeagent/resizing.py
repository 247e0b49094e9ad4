"""Puts resized allocations into force in running containers, and says on their pods what is so.

``heed`` is called by whoever holds the regions open (``residents``), between the governor's ticks,
so that each region keeps one writer. It compares the pod's record with the region: a new limit
counts at the next allocation of any process. One below the use of now kills nothing and frees
nothing: it only stops growth, and the pod says by how much it is blocked until that is gone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NoReturn

import anyio
import anyio.to_thread

from hami.core.codec_resize import (
    RESIZE_APPLIED_KEY,
    RESIZE_STATUS_KEY,
    Applied,
    encode_applied,
    number_of,
)
from hami.core.objects import Pod
from hami.core.quantity import BYTES_PER_MIB
from hami.core.vendor import Vendor
from hami.errors import CodecError, KubeError
from hami.kube.client import KubeClient
from hami.kube.informer import Informer
from hami.kube.patching import patch_metadata
from hami.kube.resources import PODS, ObjectRef
from hami.logs import get_logger
from hami.nodeagent import pending, region
from hami.nodeagent.allocate import Limits
from hami.nodeagent.claims import Claim
from hami.nodeagent.pending import Entry
from hami.nodeagent.regions import Regions

log = get_logger(__name__)

TELL_SECONDS: Final = 0.5
"""How often it is looked what to say: no pod is written to more often."""


class Resizing:
    """Compares records with regions, and tells."""

    def __init__(
        self,
        client: KubeClient,
        *,
        vendor: Vendor,
        pods: Informer[Pod],
        regions: Regions,
        limits: Callable[[Pod, Entry], Limits],
    ) -> None:
        self._client, self._vendor = client, vendor
        self._pods, self._regions, self._limits = pods, regions, limits
        self._heeded: dict[Path, tuple[Claim, str, int]] = {}
        """Which claim, and which record and decision of its pod a region was last compared with."""
        self._told: dict[str, str] = {}

    def heed(self, path: Path, claim: Claim, pod: Pod) -> None:
        """Let the region say what the pod's record says. Cheap where nothing changed."""
        text = pod.annotations.get(self._vendor.allocated_key, "")
        seen = (claim, text, number_of(pod.annotations.get(RESIZE_STATUS_KEY, "")))
        if self._heeded.get(path) == seen:
            return
        try:
            for entry in pending.recorded(pod, self._vendor):
                uuids = tuple(device.uuid for device in entry.devices)
                same = entry.container == claim.container and uuids == claim.devices
                if same and self._regions.limit(path, self._limits(pod, entry)):
                    log.info("container_resized", pod=pod.key, container=claim.container)
        except (CodecError, OSError) as error:
            log.warning("container_not_resized", pod=pod.key, error=str(error))
        self._heeded[path] = seen

    async def run(self) -> NoReturn:
        """Tell for ever."""
        while True:
            await anyio.sleep(TELL_SECONDS)
            await self.tell()

    async def tell(self) -> None:
        """Say on each pod that was ever resized what is in force of its containers."""
        kept = self._regions.kept
        self._heeded = {path: seen for path, seen in self._heeded.items() if path in kept}
        claims: dict[str, list[tuple[Path, Claim]]] = defaultdict(list)
        for path, claim in kept.items():
            claims[claim.uid].append((path, claim))
        self._told = {uid: text for uid, text in self._told.items() if uid in claims}
        for pod in self._pods.list():
            asked = pod.annotations.keys() & {RESIZE_STATUS_KEY, RESIZE_APPLIED_KEY}
            own = claims.get(pod.metadata.uid)
            if asked and own and not pod.finished:
                await self._tell(pod, own)

    async def _tell(self, pod: Pod, own: list[tuple[Path, Claim]]) -> None:
        uid = pod.metadata.uid
        numbers = {path: seen[2] for path, _ in own if (seen := self._heeded.get(path))}
        try:
            applied = await anyio.to_thread.run_sync(_applied, own, numbers)
        except (CodecError, OSError) as error:
            log.warning("resize_not_told", pod=pod.key, error=str(error))
            return
        text = encode_applied(applied)
        if text in {pod.annotations.get(RESIZE_APPLIED_KEY), self._told.get(uid)}:
            return
        try:
            await patch_metadata(
                self._client, ObjectRef.to(PODS, pod), annotations={RESIZE_APPLIED_KEY: text}
            )
        except KubeError as error:
            log.warning("resize_not_told", pod=pod.key, error=str(error))
        else:
            self._told[uid] = text


def _applied(own: list[tuple[Path, Claim]], numbers: Mapping[Path, int]) -> dict[str, Applied]:
    """What each container's region says. Blocking.

    What the driver has measured beyond the processes' own word is in use as well.
    """
    found = {}
    for path, claim in own:
        use = region.read_usage(path)
        beyond = [
            use.used_bytes(index) + device.untracked_bytes - device.memory_limit_bytes
            for index, device in enumerate(use.devices)
            if device.memory_limit_bytes is not None
        ]
        first = use.devices[0]
        found[claim.container] = Applied(
            gpumem=(first.memory_limit_bytes or 0) // BYTES_PER_MIB,
            gpucores=first.core_limit_permille // 10,
            number=numbers.get(path, 0),
            blocked=-(-max(0, *beyond) // BYTES_PER_MIB) if beyond else 0,
        )
    return found
