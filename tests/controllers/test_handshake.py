"""The handshake: when agents are asked, and what silence means."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from hami.config import ControllerSettings
from hami.controllers.counters import ControllerCounters
from hami.controllers.handlers import NodeHandler
from hami.controllers.handshake import Handshake
from hami.core import codec
from hami.core.cache import AllocationCache
from hami.core.objects import Node
from hami.core.vendors.nvidia import NVIDIA
from hami.kube.client import connect
from hami.kube.events import EventRecorder
from hami.kube.informer import Informer
from hami.kube.reflector import Reflector
from hami.kube.resources import NODES
from hami.sandbox.apiserver import ApiServer
from hami.sandbox.apiserver.faults import Fault
from tests.support.builders import VENDORS
from tests.support.cluster import sandbox_only
from tests.support.controller import gpus, node_object, settings_for
from tests.support.kube import eventually, following, value_of

pytestmark = sandbox_only("needs a Node that nobody else writes to, versions and all")

KEY = NVIDIA.handshake_key
NOW = datetime(2026, 8, 21, 7, 15, 4, tzinfo=UTC)


class Scene:
    """A handshake over a real API server, with a clock that stands still until it is moved."""

    def __init__(self, server: ApiServer, nodes: Informer[Node], client: Any) -> None:
        self.now = 1000.0
        self.server = server
        self.cache = AllocationCache()
        self.counters = ControllerCounters(CollectorRegistry())
        handler = NodeHandler(
            self.cache,
            vendors=VENDORS,
            recorder=EventRecorder(client, component="test"),
            counters=self.counters,
        )
        nodes.add_handler(handler.on_set, handler.on_delete)
        self.nodes = nodes
        self.handshake = Handshake(
            client,
            nodes,
            handler=handler,
            vendors=VENDORS,
            settings=ControllerSettings(handshake_seconds=300, handshake_timeout_seconds=60),
            counters=self.counters,
            guard=lambda: None,
            clock=lambda: self.now,
            wall_clock=lambda: NOW,
            uniform=lambda: 0.5,
        )

    async def look(self) -> str:
        """One round; what the node says after it."""
        await self.handshake.look()
        value = self.server.store.get("nodes", "n0", "")["metadata"]["annotations"].get(KEY, "")
        await eventually(self.nodes, lambda: self.seen().annotations.get(KEY, "") == value)
        return str(value)

    async def say(self, value: str | None = None, *, allocatable: str | None = "20") -> None:
        """The agent writes its answer, or the kubelet its count."""
        node = self.server.store.get("nodes", "n0", "")
        if value is not None:
            node["metadata"]["annotations"][KEY] = value
        node["status"]["allocatable"] = (
            {} if allocatable is None else {NVIDIA.resources.count: allocatable}
        )
        version = self.server.store.update(node)["metadata"]["resourceVersion"]
        await eventually(self.nodes, lambda: self.seen().metadata.resource_version == version)

    async def register(self, devices: Any) -> None:
        node = self.server.store.get("nodes", "n0", "")
        node["metadata"]["annotations"][NVIDIA.register_key] = codec.encode_register(devices)
        version = self.server.store.update(node)["metadata"]["resourceVersion"]
        await eventually(self.nodes, lambda: self.seen().metadata.resource_version == version)

    def seen(self) -> Node:
        node = self.nodes.get("", "n0")
        assert node is not None
        return node

    @property
    def healthy(self) -> bool:
        return all(device.healthy for device in self.cache.table.devices("n0"))


@pytest.fixture
async def scene(server: ApiServer, tmp_path: Path) -> Any:
    return lambda: open_scene(server, tmp_path)


@asynccontextmanager
async def open_scene(server: ApiServer, directory: Path) -> AsyncIterator[Scene]:
    server.store.delete("nodes", "n1", "")
    server.store.create(node_object("cpu", ()))
    async with connect(settings_for(server, directory).kube) as client:
        decode = msgspec.json.Decoder(Node).decode
        nodes = Informer(Reflector(client, NODES, decode=decode))
        opened = Scene(server, nodes, client)
        async with following(nodes):
            yield opened


async def test_node_with_devices_is_asked_once_and_others_never(scene: Any) -> None:
    async with scene() as s:
        assert await s.look() == "Requesting_2026-08-21 07:15:04"
        before = s.server.store.get("nodes", "n0", "")
        s.now += 1000
        await s.look()

        assert s.server.store.get("nodes", "n0", "") == before, "an open question is left open"
        cpu = s.server.store.get("nodes", "cpu", "")
        assert KEY not in cpu["metadata"].get("annotations", {})


async def test_answered_node_is_asked_again_after_a_while(scene: Any) -> None:
    async with scene() as s:
        await s.look()
        await s.say("Reported_2026-08-21 07:15:31.10 +0000 UTC")
        assert (await s.look()).startswith("Reported_")
        s.now += 299
        assert (await s.look()).startswith("Reported_")
        s.now += 1
        assert (await s.look()).startswith("Requesting_")
        assert value_of(s.counters.handshakes, "answered") == 1


@pytest.mark.parametrize(
    ("allocatable", "healthy"),
    [("20", True), (None, False), pytest.param("many", False, id="unreadable")],
)
async def test_silence_counts_where_the_kubelet_has_nothing_to_give_either(
    scene: Any, allocatable: str | None, healthy: bool
) -> None:
    async with scene() as s:
        await s.say(allocatable=allocatable)
        await s.look()
        await s.look()
        s.now += 59
        await s.look()
        assert s.healthy
        s.now += 1
        await s.look()
        assert s.healthy is healthy


async def test_late_answer_makes_the_devices_usable_again(scene: Any) -> None:
    async with scene() as s:
        await s.say(allocatable=None)
        for _ in range(3):
            await s.look()
            s.now += 60
        assert not s.healthy
        await s.say("Reported_now", allocatable=None)
        await s.look()
        assert s.healthy


async def found_silent(s: Any) -> None:
    await s.say(allocatable=None)
    for _ in range(3):
        await s.look()
        s.now += 60
    assert not s.healthy


@pytest.mark.parametrize(
    "value", ["", "Deleted_2026-08-21 07:15:04", "Requesting_2026-08-21 08:00:00"]
)
async def test_silent_agent_is_not_thought_alive_because_the_question_is_another(
    scene: Any, value: str
) -> None:
    """No flapping: however often the question is taken away, and asked again, nobody answers."""
    async with scene() as s:
        await found_silent(s)
        for _ in range(4):
            await s.say(value, allocatable=None)
            for _ in range(3):
                await s.look()
                assert not s.healthy
                s.now += 150
        assert value_of(s.counters.handshakes, "answered") == 0


@pytest.mark.parametrize(
    "value",
    [
        "Reported_2026.01.02 15:04:05",
        "Reported 2026-08-21 07:15:31.1 +0000 UTC m=+0.1",
        "Reported_someday",
        "hello",
    ],
)
async def test_answer_in_any_form_is_a_sign_of_life(scene: Any, value: str) -> None:
    async with scene() as s:
        await found_silent(s)
        await s.say(value, allocatable=None)
        await s.look()
        assert s.healthy


async def test_new_inventory_and_the_kubelets_word_are_signs_of_life(scene: Any) -> None:
    async with scene() as s:
        await found_silent(s)
        await s.say(allocatable="20")
        await s.look()
        assert s.healthy

        await s.say(allocatable=None)
        await s.look()
        assert not s.healthy, "the question is still open"
        await s.register(gpus("n0", 1))
        await s.look()
        assert s.healthy
        s.now += 60
        await s.look()
        assert not s.healthy, "the question is late again"


@pytest.mark.parametrize("value", ["Requesting", "Requesting_someday", "Requesting_2020-01-01"])
async def test_question_whose_time_cannot_be_read_is_an_open_one(scene: Any, value: str) -> None:
    async with scene() as s:
        await s.say(value, allocatable=None)
        assert await s.look() == value
        s.now += 60
        assert await s.look() == value
        assert not s.healthy


@pytest.mark.faults
async def test_node_that_cannot_be_written_is_left_for_a_while(scene: Any) -> None:
    async with scene() as s:
        s.server.faults.add(Fault(verb="patch", resource="nodes", status=403, times=1))
        assert await s.look() == ""
        assert await s.look() == ""
        s.now += 60
        assert (await s.look()).startswith("Requesting_")
        assert value_of(s.counters.handshakes, "failed") == 1


@pytest.mark.faults
async def test_node_that_changed_meanwhile_is_asked_in_the_next_round(scene: Any) -> None:
    async with scene() as s:
        s.server.faults.add(Fault(verb="patch", resource="nodes", status=409, times=1))
        assert await s.look() == ""
        assert (await s.look()).startswith("Requesting_")
        assert value_of(s.counters.handshakes, "conflicted") == 1
