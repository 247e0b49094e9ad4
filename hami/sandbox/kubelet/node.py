"""The Node object and its lease: how the cluster knows that this node is there and what it has.

Owns the Node's creation, its status and the lease in ``kube-node-lease``. What the node has beside
the machine itself comes from the device manager's book.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import anyio
import msgspec

from hami.errors import ConflictError, KubeError, NotFoundError
from hami.kube.backoff import Backoff, Delays
from hami.kube.client import STRATEGIC_MERGE_PATCH, KubeClient
from hami.kube.resources import LEASES, NODES
from hami.kube.throttle import Lane
from hami.logs import get_logger
from hami.sandbox.kubelet.book import DeviceBook
from hami.sandbox.kubelet.environment import ADDRESS
from hami.sandbox.kubelet.settings import VERSION, KubeletSettings

log = get_logger(__name__)

LEASE_NAMESPACE: Final = "kube-node-lease"
RETRY: Final = Backoff(base_seconds=0.2, cap_seconds=5.0)


class _Known(msgspec.Struct, frozen=True):
    metadata: dict[str, Any]


class NodeReporter:
    """Keeps one Node object true."""

    def __init__(
        self,
        client: KubeClient,
        settings: KubeletSettings,
        *,
        book: Callable[[], DeviceBook],
        before_round: Callable[[], None],
    ) -> None:
        """Report nothing yet.

        Args:
            client: Where to report.
            settings: What the node is.
            book: The book of devices as it is now.
            before_round: Called before each round; may change the book.
        """
        self._client = client
        self._settings = settings
        self._book = book
        self._before_round = before_round
        self._changed = anyio.Event()
        self._reported: dict[str, Any] = {}
        self._ready_since = now()
        self._uid = ""

    @property
    def labels(self) -> dict[str, str]:
        """The labels that the node gives itself."""
        name = self._settings.node_name
        return {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            **self._settings.labels,
        }

    @property
    def uid(self) -> str:
        """The Node object's, for Events on it."""
        return self._uid

    def allocatable(self) -> dict[str, int]:
        """What pods may have: cpu in thousandths, memory in bytes, devices by resource."""
        machine = {
            "cpu": self._settings.cpus * 1000,
            "memory": self._settings.memory_bytes,
        }
        return machine | dict(self._settings.devices) | self._book().allocatable()

    def wake(self) -> None:
        """Something changed: report it now rather than with the next round.

        The real kubelet waits for its next round, up to ten seconds.
        """
        self._changed.set()

    async def register(self) -> None:
        """Create the Node, or take over the one that is there, as a starting kubelet does.

        Raises:
            KubeError: The API server refuses.
        """
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self._settings.node_name, **self._metadata()},
            "status": self._status(),
        }
        try:
            answer = await self._client.post(NODES.path(), node)
        except ConflictError:
            answer = await self._client.patch(
                NODES.path("", self._settings.node_name),
                {"metadata": self._metadata()},
                content_type=STRATEGIC_MERGE_PATCH,
            )
        self._uid = msgspec.json.decode(answer, type=_Known).metadata.get("uid", "")
        self._reported = {}  # a Node that was there before may say otherwise of what it has
        self._changed.set()
        log.info("node_registered", node=self._settings.node_name)

    async def run(self) -> NoReturn:
        """Report changes at once, and the lease with each round."""
        delays = Delays(RETRY)
        due = 0.0
        while True:
            self._changed = anyio.Event()
            self._before_round()
            try:
                if time.monotonic() >= due:
                    await self._renew_lease()
                    due = time.monotonic() + self._settings.status_seconds
                await self._report()
                wait = max(0.0, due - time.monotonic())
            except KubeError as error:
                wait = delays.after_failure()
                log.warning("node_report_failed", node=self._settings.node_name, error=str(error))
            with anyio.move_on_after(wait):
                await self._changed.wait()

    async def _report(self) -> None:
        status = self._status()
        if status == self._reported:
            return
        await self._client.patch(
            NODES.path("", self._settings.node_name, subresource="status"),
            {"status": self._with_heartbeat(status)},
            content_type=STRATEGIC_MERGE_PATCH,
        )
        self._reported = status

    def _metadata(self) -> dict[str, Any]:
        return {"labels": self.labels, "annotations": dict(self._settings.annotations)}

    def _status(self) -> dict[str, Any]:
        machine = {
            "cpu": str(self._settings.cpus),
            "memory": f"{self._settings.memory_bytes // 1024}Ki",
            "pods": str(self._settings.pods),
        }
        machine |= _counts(dict(self._settings.devices))
        book = self._book()
        return {
            "capacity": machine | _counts(book.capacity()),
            "allocatable": machine | _counts(book.allocatable()),
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "KubeletReady",
                    "message": "kubelet is posting ready status",
                    "lastTransitionTime": self._ready_since,
                }
            ],
            "addresses": [
                {"type": "InternalIP", "address": ADDRESS},
                {"type": "Hostname", "address": self._settings.node_name},
            ],
            "nodeInfo": {
                "kubeletVersion": VERSION,
                "kubeProxyVersion": "",
                "containerRuntimeVersion": "sandbox://1",
                "operatingSystem": "linux",
                "architecture": "amd64",
                "osImage": "hami sandbox",
                "kernelVersion": "",
                "machineID": self._settings.node_name,
                "systemUUID": self._settings.node_name,
                "bootID": self._settings.node_name,
            },
        }

    def _with_heartbeat(self, status: dict[str, Any]) -> dict[str, Any]:
        beat = now()
        conditions = [{**each, "lastHeartbeatTime": beat} for each in status["conditions"]]
        return {**status, "conditions": conditions}

    async def _renew_lease(self) -> None:
        name = self._settings.node_name
        spec = {
            "holderIdentity": name,
            "leaseDurationSeconds": self._settings.lease_seconds,
            "renewTime": now(micro=True),
        }
        try:
            await self._client.patch(
                LEASES.path(LEASE_NAMESPACE, name), {"spec": spec}, lane=Lane.URGENT
            )
        except NotFoundError:
            await self._client.post(
                LEASES.path(LEASE_NAMESPACE),
                {
                    "apiVersion": LEASES.api_version,
                    "kind": LEASES.kind,
                    "metadata": {"name": name, "namespace": LEASE_NAMESPACE},
                    "spec": spec,
                },
                lane=Lane.URGENT,
            )


def now(*, micro: bool = False) -> str:
    """The wall clock as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")


def _counts(amounts: dict[str, int]) -> dict[str, str]:
    return {resource: str(amount) for resource, amount in amounts.items()}
