"""What a controller says of its role on its own pod, and on no other.

The label lets a Service select the leader's pod. The annotation names the latest reign: it is
written anew at the beginning of each, so that the watch of pods shows *something* that is later
than everything an earlier leader did (``succession.py``). Outside of a pod nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NoReturn

import anyio

from hami.controllers.leadership import Leadership, Mandate
from hami.core import codec
from hami.errors import KubeError, NotFoundError
from hami.kube import patching
from hami.kube.client import KubeClient
from hami.kube.resources import PODS, ObjectRef
from hami.kube.throttle import Lane
from hami.logs import get_logger

log = get_logger(__name__)

LOOK_SECONDS: Final = 1.0
"""A reign may end by the clock, which tells nobody."""


def own_pod(environment: Mapping[str, str]) -> ObjectRef | None:
    """The pod this process runs in, as the deployment's environment says; None outside of one."""
    name, namespace = environment.get("POD_NAME", ""), environment.get("POD_NAMESPACE", "")
    return ObjectRef(resource=PODS, name=name, namespace=namespace) if name and namespace else None


class RoleLabel:
    """Keeps the label on the own pod true."""

    def __init__(self, client: KubeClient, pod: ObjectRef | None, leadership: Leadership) -> None:
        self._client = client
        self._pod = pod
        self._leadership = leadership
        self._written = ""

    async def proclaim(self, mandate: Mandate) -> bool:
        """Say that a reign begins; whether anybody can see it."""
        try:
            return await self._write("leader", {codec.TERM_KEY: mandate.mark})
        except KubeError as error:
            log.warning("role_not_written", pod=str(self._pod), role="leader", error=str(error))
            return False

    async def run(self) -> NoReturn:
        """Follow the role of this process."""
        while True:
            role = self._leadership.role
            if role != self._written:
                try:
                    await self._write(role)
                except NotFoundError as error:
                    log.warning("own_pod_not_found", pod=str(self._pod), error=str(error))
                    await anyio.sleep_forever()
                except KubeError as error:
                    log.warning("role_not_written", pod=str(self._pod), role=role, error=str(error))
            await self._leadership.changed(within_seconds=LOOK_SECONDS)

    async def _write(self, role: str, annotations: Mapping[str, str | None] | None = None) -> bool:
        if self._pod is None:
            return False
        await patching.patch_metadata(
            self._client,
            self._pod,
            labels={codec.ROLE_LABEL: role},
            annotations=annotations or {},
            lane=Lane.URGENT,
        )
        self._written = role
        log.info("role_written", pod=str(self._pod), role=role)
        return True
