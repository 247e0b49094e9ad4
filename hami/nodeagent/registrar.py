"""Keeps the Node's annotations true: the inventory of devices, and the answer to the handshake.

Reconciles against the watched Node rather than what was written last, so a deleted or foreign value
is put right and an unchanged one costs nothing. Input: ``inventory`` and the node's informer.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, NoReturn

import anyio

from hami.core import codec
from hami.core.device import Device
from hami.core.objects import Node
from hami.core.vendor import Vendor
from hami.errors import CodecError, KubeError
from hami.kube.backoff import Backoff, Delays
from hami.kube.client import KubeClient
from hami.kube.informer import Informer
from hami.kube.patching import patch_metadata
from hami.kube.resources import NODES, ObjectRef
from hami.logs import get_logger
from hami.nodeagent.counters import AgentMetrics
from hami.nodeagent.inventory import Inventory

log = get_logger(__name__)

BACKOFF: Final = Backoff(base_seconds=0.5, cap_seconds=15.0)
SETTLE_SECONDS: Final = 5.0
"""How long a write may take to be seen on the watch before it is made again."""


class Registrar:
    """One vendor's annotations on this node."""

    def __init__(
        self,
        client: KubeClient,
        *,
        node_name: str,
        vendor: Vendor,
        nodes: Informer[Node],
        inventory: Inventory,
        metrics: AgentMetrics,
    ) -> None:
        self._client = client
        self._node_name = node_name
        self._vendor = vendor
        self._nodes = nodes
        self._inventory = inventory
        self._metrics = metrics
        self._due = anyio.Event()

    async def run(self) -> NoReturn:
        """Write whatever differs, for ever."""
        self._nodes.add_handler(self._wake, self._wake)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow_devices, name="registrar-devices")
            await self._reconcile()
        raise AssertionError("unreachable: reconciles until cancelled")

    def _wake(self, *_: object) -> None:
        self._due.set()

    async def _follow_devices(self) -> NoReturn:
        version = 0
        while True:
            version = await self._inventory.newer_than(version)
            self._wake()

    async def _reconcile(self) -> NoReturn:
        delays = Delays(BACKOFF)
        written = ""
        while True:
            await self._due.wait()
            self._due = anyio.Event()
            while (changes := self.changes()) is not None:
                register = changes.get(self._vendor.register_key, "")
                try:
                    await self._write(changes)
                except KubeError as error:
                    delay = delays.after_failure()
                    log.warning("node_not_written", seconds=delay, error=str(error))
                    await anyio.sleep(delay)
                    continue
                if register and register == written:
                    delay = delays.after_failure()  # two that put each other right must not race
                    log.warning("node_was_overwritten", node=self._node_name, seconds=delay)
                    await anyio.sleep(delay)
                written = register or written

    def changes(self) -> dict[str, str] | None:
        """The annotations that must be written now; None if all are true, or there is no node."""
        node = self._nodes.get("", self._node_name)
        if node is None or not self._inventory.devices:
            return None
        changes = {}
        register = codec.encode_register(self._inventory.devices)
        if not self._says(node, register, self._inventory.devices):
            changes[self._vendor.register_key] = register
        handshake = self._vendor.handshake_key
        if handshake and _asked(node.annotations.get(handshake, "")):
            changes[handshake] = codec.encode_handshake_report(datetime.now(UTC))
        return changes or None

    def _says(self, node: Node, register: str, devices: tuple[Device, ...]) -> bool:
        """Whether the node's annotation means the same, in whatever form it is written."""
        text = node.annotations.get(self._vendor.register_key)
        if text is None or text == register:
            return text is not None
        try:
            return codec.decode_register(text, self._vendor.name) == devices
        except CodecError as error:
            log.warning("register_annotation_unreadable", node=node.name, error=str(error))
            return False

    async def _write(self, changes: dict[str, str]) -> None:
        """Write, and wait until the watch shows it, so that nothing is written twice."""
        node = self._nodes.get("", self._node_name)
        if node is None:
            return
        await patch_metadata(self._client, ObjectRef.to(NODES, node), annotations=changes)
        for key in sorted(changes):
            what = "register" if key == self._vendor.register_key else "handshake"
            self._metrics.node_writes.labels(what).inc()
            log.info("node_written", node=self._node_name, what=what)
        try:
            await self._nodes.wait_for(
                lambda: self._nodes.get("", self._node_name) is not node,
                timeout_seconds=SETTLE_SECONDS,
            )
        except TimeoutError:
            log.info("node_write_not_seen", node=self._node_name)


def _asked(handshake: str) -> bool:
    """Whether the value is a controller's question; one without a readable time is answered too."""
    try:
        return codec.decode_handshake_request(handshake) is not None
    except CodecError:
        return True
