"""Node locks over a real API server, with clocks that stand still until they are moved."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from prometheus_client import CollectorRegistry

from hami.config import ControllerSettings, Settings
from hami.controllers.counters import ControllerCounters
from hami.controllers.nodelocks import NodeLocks
from hami.core.codec import BIND_PHASE_KEY
from hami.core.nodelock import LOCK_KEY
from hami.core.objects import Node
from hami.core.vendors.hygon import HYGON
from hami.errors import HamiError, NotFoundError
from hami.kube.client import connect
from hami.kube.informer import Informer
from hami.kube.reflector import Reflector
from hami.kube.resources import NODES, PODS, ObjectRef
from hami.sandbox.apiserver import ApiServer
from hami.sandbox.apiserver.faults import Drop, Fault
from hami.site import vendor_table
from tests.support.cluster import sandbox_only
from tests.support.controller import node_object, pod_object, settings_for
from tests.support.kube import SOON, eventually, following, pod_informer, value_of

pytestmark = sandbox_only("needs Nodes that nobody else writes to")

NOW = datetime(2026, 8, 21, 7, 15, 4, tzinfo=UTC)
DCU = "A,4,65520,100,DCU-K100_AI,0,true,0,hami-core:"


class NotLeadingError(HamiError):
    """This process may not write."""


class Scene:
    """The locks of one node, and those who write to it."""

    def __init__(self, server: ApiServer, client: Any) -> None:
        self.server, self.client = server, client
        self.clock, self.leads = 1000.0, True
        self.nodes = Informer(Reflector(client, NODES, decode=msgspec.json.Decoder(Node).decode))
        self.pods = pod_informer(client, "")
        self.counters = ControllerCounters(CollectorRegistry())
        self.locks = self.restarted()

    def restarted(self) -> NodeLocks:
        """Locks of a process that knows nothing yet."""
        return NodeLocks(
            self.client,
            self.nodes,
            self.pods,
            vendors=vendor_table(Settings()),
            settings=ControllerSettings(bind_timeout_seconds=20, node_lock_timeout_seconds=300),
            counters=self.counters,
            guard=self.guard,
            clock=lambda: self.clock,
            wall_clock=lambda: NOW + timedelta(seconds=self.clock - 1000),
        )

    def guard(self) -> None:
        if not self.leads:
            raise NotLeadingError

    async def pod(self, name: str, **fields: Any) -> ObjectRef:
        made = self.server.store.create({**pod_object(name), **fields})
        await eventually(self.pods, lambda: self.pods.get("default", name))
        return ObjectRef(resource=PODS, name=name, namespace="default", uid=made["metadata"]["uid"])

    async def change_pod(
        self, name: str, *, node: str = "", phase: str = "", ended: bool = False
    ) -> None:
        pod = self.server.store.get("pods", name)
        status = {"phase": "Succeeded" if ended else "Pending"}
        pod["metadata"].setdefault("annotations", {})[BIND_PHASE_KEY] = phase
        if node:
            pod["spec"]["nodeName"] = node
        version = self.server.store.update({**pod, "status": status})["metadata"]["resourceVersion"]
        await eventually(self.pods, lambda: self.version_of_pod(name) == version)

    def version_of_pod(self, name: str) -> str:
        pod = self.pods.get("default", name)
        return "" if pod is None else pod.metadata.resource_version

    @property
    def lock(self) -> str | None:
        """What the node says."""
        value: str | None = self.server.store.get("nodes", "n", "")["metadata"]["annotations"].get(
            LOCK_KEY
        )
        return value

    async def set_lock(self, text: str | None, *, seen: bool = True) -> None:
        """Somebody writes or removes the lock."""
        node = self.server.store.get("nodes", "n", "")
        node["metadata"]["annotations"].pop(LOCK_KEY, None)
        if text is not None:
            node["metadata"]["annotations"][LOCK_KEY] = text
        self.server.store.update(node)
        if seen:
            await self.sees(text)

    async def sees(self, text: str | None) -> None:
        def same() -> bool:
            node = self.nodes.get("", "n")
            return node is not None and node.annotations.get(LOCK_KEY) == text

        await eventually(self.nodes, same)

    def counted(self, result: str) -> float:
        return value_of(self.counters.node_locks, result)

    @asynccontextmanager
    async def taking(self, ref: ObjectRef) -> AsyncIterator[Callable[[], bool]]:
        """Somebody waits for the lock; the question whether it was got."""
        got = anyio.Event()

        async def take() -> None:
            await self.locks.take(ref, "n")
            got.set()

        async with anyio.create_task_group() as group:
            group.start_soon(take)
            await anyio.wait_all_tasks_blocked()
            yield got.is_set
            with anyio.fail_after(SOON):
                await got.wait()


@pytest.fixture
async def scene(server: ApiServer, tmp_path: Path) -> Any:
    return lambda: open_scene(server, tmp_path)


@asynccontextmanager
async def open_scene(server: ApiServer, directory: Path) -> AsyncIterator[Scene]:
    server.store.create(node_object("n", (), **{HYGON.register_key: DCU}))
    async with connect(settings_for(server, directory).kube) as client:
        opened = Scene(server, client)
        async with following(opened.nodes), following(opened.pods):
            yield opened


async def test_free_lock_is_taken_in_the_protocols_form_with_one_write(scene: Any) -> None:
    async with scene() as s:
        ref = await s.pod("p")
        writes = s.server.faults.add(Fault(resource="nodes", name="n", delay_seconds=0.001))
        await s.locks.take(ref, "n")
        await s.sees("2026-08-21T07:15:04Z,default,p")
        await s.locks.take(ref, "n")

        assert writes.hits == 1, "taken again, it is ours already"
        assert s.counted("taken") == 1


async def test_released_lock_is_gone_and_anothers_stays(scene: Any) -> None:
    async with scene() as s:
        ref = await s.pod("p")
        await s.locks.take(ref, "n")
        await s.locks.release(ref.uid)
        assert s.lock is None

        await s.locks.release(ref.uid)
        await s.sees(None)
        await s.locks.take(ref, "n")
        await s.set_lock("2026-08-21T07:15:05Z,default,other")
        await s.locks.release(ref.uid)
        assert s.lock == "2026-08-21T07:15:05Z,default,other"


async def test_anothers_lock_is_waited_for_until_the_watch_shows_that_it_is_gone(
    scene: Any,
) -> None:
    async with scene() as s:
        ref = await s.pod("p")
        await s.pod("other", spec={**pod_object("other")["spec"], "schedulerName": "theirs"})
        await s.set_lock("2026-08-21T09:15:04+02:00,default,other")
        async with s.taking(ref) as got:
            assert not got()
            await s.set_lock(None, seen=False)
        assert s.lock == "2026-08-21T07:15:04Z,default,p"
        assert s.counted("taken") == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        pytest.param("2026-08-21T07:15:04Z,default,other", 301, id="expired"),
        pytest.param("2026-08-21T07:15:04Z", 301, id="without an owner"),
        pytest.param("2126-08-21T07:15:04Z,default,other", 301, id="of the future"),
        pytest.param("locked", 10, id="malformed"),
        pytest.param("", 10, id="empty"),
    ],
)
async def test_lock_that_stands_is_taken_over_in_time(
    scene: Any, text: str, seconds: float
) -> None:
    async with scene() as s:
        ref = await s.pod("p")
        await s.pod("other", spec={**pod_object("other")["spec"], "schedulerName": "theirs"})
        await s.set_lock(text)
        async with s.taking(ref) as got:
            s.clock += seconds - 1.5
            await anyio.wait_all_tasks_blocked()
            assert not got()
            s.clock += 1.5
        assert s.lock is not None
        assert s.lock.endswith(",default,p")
        assert s.counted("taken over") == 1


async def test_lock_of_a_pod_that_cannot_need_it_is_taken_over_at_once(scene: Any) -> None:
    async with scene() as s:
        ref = await s.pod("p")
        await s.set_lock("2026-08-21T07:15:04Z,default,gone")
        await s.locks.take(ref, "n")
        assert s.lock == "2026-08-21T07:15:04Z,default,p"

        await s.pod("over")
        await s.change_pod("over", ended=True)
        await s.set_lock("2026-08-21T07:15:04Z,default,over")
        await s.locks.take(ref, "n")
        assert s.lock == "2026-08-21T07:15:04Z,default,p"
        assert s.counted("taken over") == 2


async def test_earlier_life_of_a_pod_leaves_no_claim(scene: Any) -> None:
    """The lock names the pod, and it was another pod of that name: it is written anew."""
    async with scene() as s:
        await s.set_lock("2026-08-21T07:11:00Z,default,p")
        await s.locks.take(await s.pod("p"), "n")
        assert s.lock == "2026-08-21T07:15:04Z,default,p"


async def test_what_an_earlier_process_left_is_taken_over_after_a_binds_time(scene: Any) -> None:
    async with scene() as s:
        left = await s.pod("left")
        await s.locks.take(left, "n")
        await s.sees("2026-08-21T07:15:04Z,default,left")
        s.locks = s.restarted()
        async with s.taking(await s.pod("p")) as got:
            assert not got()
            s.clock += 20
        assert s.lock == "2026-08-21T07:15:24Z,default,p"


@pytest.mark.faults
@pytest.mark.parametrize("status", [409, 503])
async def test_write_that_fails_once_is_made_again_on_what_is_there_then(
    scene: Any, status: int
) -> None:
    async with scene() as s:
        ref = await s.pod("p")
        s.server.faults.add(Fault(verb="patch", resource="nodes", status=status, times=1))
        await s.locks.take(ref, "n")
        assert s.lock == "2026-08-21T07:15:04Z,default,p"


@pytest.mark.faults
async def test_write_whose_answer_is_lost_is_known_for_ours(scene: Any) -> None:
    async with scene() as s:
        ref = await s.pod("p")
        s.server.faults.add(Fault(verb="patch", resource="nodes", drop=Drop.AFTER, times=1))
        await s.locks.take(ref, "n")
        assert s.lock == "2026-08-21T07:15:04Z,default,p"
        await s.locks.release(ref.uid)
        assert s.lock is None


@pytest.mark.faults
async def test_stale_view_of_the_node_never_overwrites_a_lock(scene: Any) -> None:
    """The watch does not show that somebody locked the node meanwhile."""
    async with scene() as s:
        ref = await s.pod("p")
        await s.pod("other", spec={**pod_object("other")["spec"], "schedulerName": "theirs"})
        blind = s.server.faults.add(Fault(verb="watch", resource="nodes", drop=Drop.BEFORE))
        s.server.faults.drop_streams()
        await s.set_lock("2026-08-21T07:15:04Z,default,other", seen=False)
        with anyio.move_on_after(0.5) as waiting:
            await s.locks.take(ref, "n")
        assert waiting.cancelled_caught
        assert s.lock == "2026-08-21T07:15:04Z,default,other"
        s.server.faults.remove(blind)


async def test_node_that_is_gone_and_a_process_that_does_not_lead_take_nothing(scene: Any) -> None:
    async with scene() as s:
        ref = await s.pod("p")
        with pytest.raises(NotFoundError):
            await s.locks.take(ref, "nowhere")
        s.leads = False
        with pytest.raises(NotLeadingError):
            await s.locks.take(ref, "n")
        assert s.lock is None


# -- the cleaner --------------------------------------------------------------------------------


@pytest.mark.faults
async def test_lock_that_could_not_be_given_back_is_given_back_later(scene: Any) -> None:
    async with scene() as s:
        ref = await s.pod("p")
        await s.locks.take(ref, "n")
        down = s.server.faults.add(Fault(resource="nodes", status=403))
        await s.locks.release(ref.uid)
        s.locks.leave(ref.uid)
        assert s.lock is not None
        s.server.faults.remove(down)
        s.clock += 20
        await s.locks.clean()
        assert s.lock is None


async def test_lock_of_a_bind_whose_outcome_was_unknown_goes_if_the_pod_was_not_bound(
    scene: Any,
) -> None:
    async with scene() as s:
        ref = await s.pod("p")
        await s.locks.take(ref, "n")
        await s.locks.clean()
        assert s.lock is not None, "the bind is under way"
        s.locks.leave(ref.uid)
        s.clock += 19
        await s.locks.clean()
        assert s.lock is not None, "what was sent may still take effect"
        s.clock += 1
        await s.locks.clean()
        assert s.lock is None


async def test_lock_of_a_bound_pod_is_its_agents(scene: Any) -> None:
    async with scene() as s:
        ref = await s.pod("p")
        await s.locks.take(ref, "n")
        s.locks.leave(ref.uid)
        await s.change_pod("p", node="n", phase="allocating")
        await s.locks.clean()
        s.clock += 299
        await s.locks.clean()
        assert s.lock is not None
        s.clock += 2
        await s.locks.clean()
        assert s.lock is None
        assert s.counted("cleaned") == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-08-21T07:10:03Z,default,other", 301),
        ("2026-08-21T07:10:03Z", 0),
        ("2026-08-21T07:15:04Z,default,gone", 0),
        ("locked", 10),
    ],
)
async def test_stale_and_malformed_locks_are_removed(scene: Any, text: str, seconds: float) -> None:
    async with scene() as s:
        await s.pod("other")
        await s.set_lock(text)
        if seconds:
            await s.locks.clean()
            assert s.lock == text
            s.clock += seconds
        await s.locks.clean()
        assert s.lock is None


async def test_only_the_leader_cleans_and_only_nodes_of_vendors_it_knows(scene: Any) -> None:
    async with scene() as s:
        await s.set_lock("2020-01-01T00:00:00Z,default,gone")
        s.leads = False
        await s.locks.clean()
        assert s.lock is not None
        s.leads = True
        node = s.server.store.get("nodes", "n", "")
        del node["metadata"]["annotations"][HYGON.register_key]
        s.server.store.update(node)

        def unknown() -> bool:
            seen = s.nodes.get("", "n")
            return seen is not None and HYGON.register_key not in seen.annotations

        await eventually(s.nodes, unknown)
        await s.locks.clean()
        assert s.lock is not None


@pytest.mark.faults
async def test_cleaner_outlives_a_server_that_does_not_answer(scene: Any) -> None:
    async with scene() as s:
        await s.set_lock("2020-01-01T00:00:00Z,default,gone")
        s.server.faults.add(Fault(verb="patch", resource="nodes", status=409))
        await s.locks.clean()
        assert s.lock is not None
        s.server.faults.clear()
        await s.locks.clean()
        assert s.lock is None
