"""Asks node agents whether they are alive, by the annotations of HAMi's handshake.

The controller writes ``Requesting_<time>`` on the node, a living agent overwrites it. No answer
makes devices unusable only where the kubelet has none to give out either: some agents never answer,
and their kubelets speak for them. An agent that was found silent stays so until it really answers,
its inventory changes or the kubelet speaks for it: that a question was taken away, or asked anew by
somebody else, is no sign of life. Ages are measured by this process's own clock, from when it first
saw the open question, so neither clock skew nor time zones count.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NoReturn

import anyio
from anyio.lowlevel import checkpoint

from hami.config import ControllerSettings
from hami.controllers.counters import ControllerCounters
from hami.controllers.handlers import NodeHandler
from hami.core import codec, inventory
from hami.core.device import VendorName
from hami.core.objects import Node
from hami.core.vendor import Vendor, VendorTable
from hami.errors import CodecError, ConflictError, KubeError, NotFoundError, NotLeaderError
from hami.kube import patching
from hami.kube.client import Guard, KubeClient
from hami.kube.informer import Informer
from hami.kube.resources import NODES, ObjectRef
from hami.logs import get_logger

log = get_logger(__name__)

ROUND_SECONDS: Final = 5.0
"""Between two looks at all nodes."""
NODES_AT_A_TIME: Final = 200
"""Looked at before others get their turn on the event loop."""
QUESTIONS_PER_ROUND: Final = 100
"""So that asking thousands of nodes leaves requests for others."""
JITTER: Final = 0.1


@dataclass(slots=True, kw_only=True)
class _Agent:
    """What is known of one vendor's agent on one node."""

    ask_at: float = 0.0
    question: str = ""
    """The open question last seen; empty while there is none."""
    asked_at: float = 0.0
    """When it was first seen, or asked here."""
    asked_version: str = ""
    """The node's resourceVersion that the last question of ours was asked on."""
    silent_with: str | None = None
    """The inventory with which it was found silent; None while it is thought alive."""


class Handshake:
    """Asks, and tells the node handler which agents are silent."""

    def __init__(
        self,
        client: KubeClient,
        nodes: Informer[Node],
        *,
        handler: NodeHandler,
        vendors: VendorTable,
        settings: ControllerSettings,
        counters: ControllerCounters,
        guard: Guard,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._nodes = nodes
        self._handler = handler
        self._vendors = vendors
        self._settings = settings
        self._counters = counters
        self._guard = guard
        self._clock = clock
        self._wall_clock = wall_clock
        self._uniform = uniform
        self._agents: dict[tuple[str, VendorName], _Agent] = {}

    async def run(self) -> NoReturn:
        """Look at all nodes again and again."""
        while True:
            await self.look()
            await anyio.sleep(ROUND_SECONDS)

    async def look(self) -> None:
        """One round: judge every agent, then, while this process leads, ask those that are due."""
        nodes = self._nodes.list()
        due: list[tuple[Node, Vendor]] = []
        seen: dict[tuple[str, VendorName], _Agent] = {}
        for start in range(0, len(nodes), NODES_AT_A_TIME):
            for node in nodes[start : start + NODES_AT_A_TIME]:
                due += self._judge(node, seen)
            await checkpoint()
        self._agents = seen
        for node, vendor in due[:QUESTIONS_PER_ROUND]:
            if not await self._ask(node, vendor):
                return  # the next one would very likely fail too

    def _judge(
        self, node: Node, seen: dict[tuple[str, VendorName], _Agent]
    ) -> Iterator[tuple[Node, Vendor]]:
        """Tell the handler who is silent on the node; yield whom to ask."""
        silent: list[VendorName] = []
        for vendor in self._vendors.values() if self._handler.offers(node.name) else ():
            if not vendor.handshake_key or vendor.register_key not in node.annotations:
                continue
            key = node.name, vendor.name
            agent = seen[key] = self._agents.get(key) or _Agent()
            # The watch may not have shown our own question yet: nothing is new then.
            if node.metadata.resource_version != agent.asked_version and self._is_due(
                node, vendor, agent
            ):
                yield node, vendor
            if agent.silent_with is not None:
                silent.append(vendor.name)
        self._handler.set_silent(node.name, silent)

    def _is_due(self, node: Node, vendor: Vendor, agent: _Agent) -> bool:
        """Bring up to date what is known of the agent; whether to ask it."""
        now, question = self._clock(), _open_question(node, vendor)
        answers = _is_answer(node.annotations.get(vendor.handshake_key, ""))
        if question != agent.question:
            if not question and answers:
                self._counters.handshakes.labels("answered").inc()
            agent.question, agent.asked_at = question, now
        inventory_text = node.annotations[vendor.register_key]
        if answers:
            agent.silent_with = None
        if agent.silent_with not in {None, inventory_text}:
            agent.silent_with, agent.asked_at = None, now  # it lives; it has not seen the question
        late = now - agent.asked_at >= self._settings.handshake_timeout_seconds
        if inventory.allocatable(node, vendor):
            agent.silent_with = None
        elif question and late:
            agent.silent_with = inventory_text
        return not question and now >= agent.ask_at

    async def _ask(self, node: Node, vendor: Vendor) -> bool:
        """Write the question, if the node is still as it was judged; False if writing fails."""
        agent = self._agents[node.name, vendor.name]
        value = codec.encode_handshake_request(self._wall_clock())
        try:
            await patching.patch_metadata(
                self._client,
                ObjectRef.to(NODES, node),
                annotations={vendor.handshake_key: value},
                resource_version=node.metadata.resource_version,
                guard=self._guard,
            )
        except NotLeaderError:
            return False  # the leader asks
        except (ConflictError, NotFoundError) as error:
            self._counters.handshakes.labels("conflicted").inc()
            log.debug("handshake_not_asked", node=node.name, vendor=vendor.name, error=str(error))
            return True
        except KubeError as error:
            self._counters.handshakes.labels("failed").inc()
            log.warning("handshake_not_asked", node=node.name, vendor=vendor.name, error=str(error))
            agent.ask_at = self._clock() + self._settings.handshake_timeout_seconds  # others first
            return False
        self._counters.handshakes.labels("asked").inc()
        wait = self._settings.handshake_seconds * (1 + JITTER * (2 * self._uniform() - 1))
        now = self._clock()
        agent.ask_at, agent.question, agent.asked_at = now + wait, value, now
        agent.asked_version = node.metadata.resource_version
        return True


def _is_answer(value: str) -> bool:
    """Whether an agent wrote it, in whatever form; ``Deleted_`` was written by older schedulers."""
    return bool(value) and "Requesting" not in value and not value.startswith("Deleted")


def _open_question(node: Node, vendor: Vendor) -> str:
    """The question that nobody has answered yet; also one whose time cannot be read."""
    value = node.annotations.get(vendor.handshake_key, "")
    try:
        return value if codec.decode_handshake_request(value) is not None else ""
    except CodecError:
        return value
