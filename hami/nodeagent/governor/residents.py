"""The tenants of the agent's governor: the containers' regions, and what their pods' authors want.

Opens a region once its files are there, opens it anew when they were replaced, and closes it when
the region goes. From the pod come the annotations that steer it; a malformed one steers nothing and
becomes an event on the pod.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import anyio.to_thread

from hami.config import NodeAgentSettings
from hami.core import codec_steering
from hami.core.objects import Pod
from hami.errors import CodecError, HamiError
from hami.kube.events import EventRecorder
from hami.kube.informer import Informer
from hami.kube.resources import PODS, ObjectRef
from hami.logs import get_logger
from hami.nodeagent import allocate
from hami.nodeagent.claims import Claim
from hami.nodeagent.controlfile import ControlFile
from hami.nodeagent.governor.suspicion import Suspicion
from hami.nodeagent.governor.tenants import Tenant
from hami.nodeagent.nodepod import NodePod
from hami.nodeagent.regions import Regions

log = get_logger(__name__)

LOOK_SECONDS: Final = 0.5
"""How often it is looked whether a region's files are still the same."""


class Residents:
    """The tenants of this node."""

    def __init__(
        self,
        settings: NodeAgentSettings,
        *,
        regions: Regions,
        pods: Informer[Pod],
        events: EventRecorder,
        heed: Callable[[Path, Claim, Pod], None] = lambda _path, _claim, _pod: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._regions, self._pods, self._events = settings, regions, pods, events
        self._heed_limits, self._clock = heed, clock
        self._tenants: dict[Path, tuple[Claim, Tenant]] = {}
        self._looked_at = float("-inf")
        self._complained: dict[str, str] = {}

    async def refresh(self) -> Sequence[Tenant]:
        """All regions that can be opened, as they are now."""
        claims = dict(self._regions.kept)
        due = self._clock() - self._looked_at >= LOOK_SECONDS
        changed = len(claims) != len(self._tenants) or any(
            path not in self._tenants or self._tenants[path][0] is not claim
            for path, claim in claims.items()
        )
        if due or changed:
            self._looked_at = self._clock()
            await anyio.to_thread.run_sync(self._open_and_close, claims)
        for path, (claim, tenant) in self._tenants.items():
            self._heed(path, claim, tenant)
        if due:
            present = {claim.uid for claim in claims.values()}
            self._complained = {u: text for u, text in self._complained.items() if u in present}
        return [tenant for _, tenant in self._tenants.values()]

    def control(self, path: Path) -> ControlFile | None:
        """The region's control file, for whoever changes its limits while it runs; None: not open.

        There must be one writer only, so nobody else opens one.
        """
        known = self._tenants.get(path)
        return known[1].control if known else None

    def close(self) -> None:
        """Close all files."""
        for _, tenant in self._tenants.values():
            tenant.close()
        self._tenants.clear()

    def report(self, suspicion: Suspicion) -> None:
        """Say on its pod that a tenant is suspected."""
        tenant = suspicion.tenant
        pod = self._pods.get(tenant.namespace, tenant.pod)
        if pod is None or pod.metadata.uid != tenant.pod_uid:
            return
        text = f"container {tenant.container}, device {suspicion.uuid}: {suspicion.detail}"
        if suspicion.suspends:
            text += "; its submissions wait"
        self._events.record(ObjectRef.to(PODS, pod), "DeviceUsedAroundShim", text, type="Warning")

    def _open_and_close(self, claims: dict[Path, Claim]) -> None:
        for path in [path for path in self._tenants if path not in claims]:
            self._tenants.pop(path)[1].close()
        for path, claim in claims.items():
            known = self._tenants.get(path)
            if known is not None and known[1].is_current():
                self._tenants[path] = (claim, known[1])
                continue
            if known is not None:
                self._tenants.pop(path)[1].close()
            with contextlib.suppress(FileNotFoundError):  # it is just being made, or removed
                try:
                    self._tenants[path] = (claim, Tenant.open(path))
                except (HamiError, OSError, ValueError) as error:
                    if isinstance(error, FileNotFoundError):
                        raise
                    log.warning("region_not_opened", path=str(path), error=str(error))

    def _heed(self, path: Path, claim: Claim, tenant: Tenant) -> None:
        """What the pod's annotations ask for."""
        pod = self._pods.get(claim.namespace, claim.pod)
        if pod is None or pod.metadata.uid != claim.uid:
            return
        self._heed_limits(path, claim, pod)
        if isinstance(pod, NodePod):
            tenant.container_id = pod.container_id(claim.container)
        tenant.enforced = all(
            allocate.enforced(container, self._settings)
            for container, _ in pod.containers()
            if container.name == claim.container
        )
        problems = []
        try:
            weight = codec_steering.decode_core_weight(pod.annotations)
            if weight != tenant.control.weight:
                tenant.control.set_weight(weight)
        except CodecError as error:
            problems.append(str(error))
        try:
            tenant.suspended = codec_steering.decode_suspend(pod.annotations)
        except CodecError as error:
            tenant.suspended = False
            problems.append(str(error))
        if problems:
            self._complain(pod, "; ".join(problems))

    def _complain(self, pod: Pod, text: str) -> None:
        """Once for each pod and message."""
        if self._complained.get(pod.metadata.uid) == text:
            return
        self._complained[pod.metadata.uid] = text
        log.warning("annotation_malformed", pod=pod.key, error=text)
        self._events.record(ObjectRef.to(PODS, pod), "AnnotationMalformed", text, type="Warning")
