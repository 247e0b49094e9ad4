"""Nodes and pods of several makers, through the whole controller: given, locked, counted."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from hami.config import Settings
from hami.controllers.binder import CRASH_POINTS
from hami.core import codec
from hami.core.nodelock import LOCK_KEY
from hami.core.vendors.enflame import ENFLAME_GCU
from hami.core.vendors.hygon import HYGON
from hami.core.vendors.nvidia import NVIDIA
from hami.sandbox.apiserver import ApiServer
from hami.sandbox.apiserver.faults import Fault
from tests.support.cluster import sandbox_only
from tests.support.controller import (
    SOON,
    Controller,
    controller_process,
    gpus,
    node_object,
    pod_object,
    running,
)
from tests.support.kube import until

pytestmark = sandbox_only("needs Nodes that nobody else writes to")

Configure = Callable[..., Settings]
GPU, GPUMEM = NVIDIA.resources.count, NVIDIA.resources.memory
NUM, MEM, CORES = HYGON.resources.all()
(CARDS,) = ENFLAME_GCU.resources.all()
MIB = 2**20


def dcus(*uuids: str, memory: int = 65520) -> str:
    return "".join(
        f"{uuid},4,{memory},100,DCU-K100_AI,0,true,{i},hami-core:" for i, uuid in enumerate(uuids)
    )


def mixed_node(name: str = "mixed", *, cards: int = 2, dcu: str | None = None) -> dict[str, Any]:
    """Two GPUs, two DCUs and some GCUs, as three agents and the kubelet tell."""
    node = node_object(name, gpus(name))
    node["metadata"]["annotations"][HYGON.register_key] = dcu or dcus(f"{name}-A", f"{name}-B")
    for told in node["status"].values():
        told |= {NUM: "8", CARDS: str(cards)}
    return node


def asking(
    name: str, *limits: dict[str, int], init: dict[str, int] | None = None, **fields: Any
) -> dict[str, Any]:
    """A pod whose containers ask for these, one each."""
    pod = pod_object(name, containers=len(limits), **fields)
    for container, asked in zip(pod["spec"]["containers"], limits, strict=True):
        texts = {key: str(value) for key, value in asked.items()}
        container["resources"] = {"limits": texts, "requests": texts}
    if init is not None:
        first = {**pod["spec"]["containers"][0], "name": "init"}
        texts = {key: str(value) for key, value in init.items()}
        first["resources"] = {"limits": texts, "requests": texts}
        pod["spec"]["initContainers"] = [first]
    return pod


def annotated(server: ApiServer, kind: str, name: str) -> dict[str, str]:
    found: dict[str, str] = server.store.get(kind, name, "" if kind == "nodes" else "default")[
        "metadata"
    ].get("annotations", {})
    return found


def change_node(server: ApiServer, name: str, **changes: str | None) -> None:
    """Change annotations, capacity or labels: ``register``, ``lock``, ``cards``, ``pool``."""
    node = server.store.get("nodes", name, "")
    keys = {"register": HYGON.register_key, "lock": LOCK_KEY, "cordon": codec.CORDON_KEY}
    for what, value in changes.items():
        places = [node["metadata"]["annotations"]]
        if what == "cards":
            places = [node["status"]["capacity"], node["status"]["allocatable"]]
        if what == "pool":
            places = [node["metadata"].setdefault("labels", {})]
        for place in places:
            place.pop(key := keys.get(what, CARDS if what == "cards" else what), None)
            if value is not None:
                place[key] = value
    server.store.update(node)


def serve(server: ApiServer, name: str, *, node: str = "mixed", phase: str = "success") -> None:
    """What the maker's agent does once it has handed out the pod's devices."""
    pod = server.store.get("pods", name)
    pod["metadata"]["annotations"] |= {
        HYGON.to_allocate_key: ";",
        codec.BIND_PHASE_KEY: phase,
    }
    server.store.update(pod)
    change_node(server, node, lock=None)


class Binds:
    """Binds in the background."""

    def __init__(self, controller: Controller, group: anyio.abc.TaskGroup) -> None:
        self._controller, self._group = controller, group
        self.answers: dict[str, str] = {}

    def start(self, pod: dict[str, Any], node: str = "mixed") -> None:
        async def bind() -> None:
            self.answers[pod["metadata"]["name"]] = await self._controller.bind(pod, node)

        self._group.start_soon(bind)

    async def ended(self, *names: str) -> None:
        async def all_there() -> bool:
            return set(names) <= set(self.answers)

        await until(all_there)


async def registered(controller: Controller, count: int) -> None:
    """Return once so many devices are known."""

    async def known() -> bool:
        return len((await controller.metrics()).get("hami_gpu_core_limit_ratio", {})) == count

    await until(known)


async def settled(controller: Controller, agents: int) -> None:
    """Return once every agent has been asked whether it lives: no more writes come from that."""

    async def asked() -> bool:
        return await controller.value("hami_handshakes_total", result="asked") >= agents

    await until(asked)


# -- what is written ----------------------------------------------------------------------------


async def test_pod_of_three_vendors_gets_devices_of_each(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(mixed_node())
    limits = {GPU: 1, GPUMEM: 3000, NUM: 1, MEM: 2000, CORES: 60}
    pod = server.store.create(asking("p", limits, {}, {CARDS: 2}))

    async with running(configure()) as controller:
        filtered = await controller.filter(pod, ["n0", "mixed"])
        assert filtered["NodeNames"] == ["mixed"]
        assert await controller.bind(pod, "mixed") == ""
        usage = await controller.usage()

    written = annotated(server, "pods", "p")
    assert written[NVIDIA.allocated_key] == "GPU-mixed-1,NVIDIA,3000,0:;;;"
    assert written[HYGON.allocated_key] == "mixed-B,DCU,2000,60:;;;"
    assert written[ENFLAME_GCU.allocated_key] == (
        ";;mixed-GCU-1,GCU,100,100:mixed-GCU-0,GCU,100,100:;"
    )
    for vendor in (NVIDIA, HYGON, ENFLAME_GCU):
        assert written[vendor.to_allocate_key] == written[vendor.allocated_key]
    lock = annotated(server, "nodes", "mixed")[LOCK_KEY]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ,default,p", lock)
    assert usage == {
        ("mixed", "GPU-mixed-1"): (1, 3000 * MIB, 0),
        ("mixed", "mixed-B"): (1, 2000 * MIB, 60),
        ("mixed", "mixed-GCU-0"): (1, 100 * MIB, 100),
        ("mixed", "mixed-GCU-1"): (1, 100 * MIB, 100),
    }


async def test_node_must_have_devices_of_every_vendor_asked_for(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(mixed_node())
    pod = server.store.create(asking("p", {GPU: 1, NUM: 1}))

    async with running(configure()) as controller:
        answer = await controller.filter(pod, ["n0", "mixed"])

    assert answer["NodeNames"] == ["mixed"]
    assert set(answer["FailedNodes"]) == {"n0"}


async def test_pod_with_a_lock_costs_four_writes(server: ApiServer, configure: Configure) -> None:
    """Lock, record, Binding and one Event; the agent removes the lock."""
    server.store.create(mixed_node())
    pod = server.store.create(asking("p", {NUM: 1, MEM: 100, CORES: 10}))

    async with running(configure()) as controller:
        await settled(controller, 4)
        before = await writes(controller)
        await controller.filter(pod, ["mixed"])
        assert await controller.bind(pod, "mixed") == ""

        async def told() -> bool:
            return bool(server.store.list("events"))

        await until(told)
        after = await writes(controller)

    assert {key: n - before.get(key, 0) for key, n in after.items() if n != before.get(key, 0)} == {
        ("patch", "nodes"): 1,
        ("patch", "pods"): 1,
        ("post", "pods/binding"): 1,
        ("post", "events"): 1,
    }


async def writes(controller: Controller) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for labels, value in (await controller.metrics()).get("hami_kube_requests_total", {}).items():
        by_name = dict(labels)
        key = by_name["verb"].lower(), by_name["resource"]
        if key[0] not in {"get", "list", "watch"}:
            found[key] = found.get(key, 0) + value
    return found


# -- the lock -----------------------------------------------------------------------------------


async def test_pods_of_vendors_with_a_lock_go_one_at_a_time(
    server: ApiServer, configure: Configure
) -> None:
    """Whatever they ask for; binds here never meet each other's lock over the API."""
    server.store.create(mixed_node())
    pods = [
        server.store.create(asking(f"p{i}", {NUM: 1 + i % 2, MEM: 100, CORES: 1})) for i in range(4)
    ]
    plain = server.store.create(asking("plain", {GPU: 1, GPUMEM: 5}))

    async with running(configure()) as controller, anyio.create_task_group() as group:
        await settled(controller, 4)
        binds = Binds(controller, group)
        for pod in pods:
            binds.start(pod)
            await anyio.wait_all_tasks_blocked()
        for pod in pods:
            name = pod["metadata"]["name"]
            await binds.ended(name)
            assert annotated(server, "nodes", "mixed")[LOCK_KEY].endswith(f",default,{name}")
            assert await controller.bind(plain, "mixed") == "", "others need not wait"
            serve(server, name)

        assert set(binds.answers.values()) == {""}
        assert await controller.value("hami_node_locks_total", result="taken") == 4
        assert await controller.value("hami_node_locks_total", result="taken over") == 0


async def test_forty_pods_with_a_lock_go_onto_one_node_without_a_failed_bind(
    server: ApiServer, configure: Configure
) -> None:
    """An agent that answers at once sets the pace; nobody meets a lock, or a conflict."""
    server.store.create(mixed_node(dcu=dcus(*(f"D{i}" for i in range(10)))))
    pods = [server.store.create(asking(f"p{i}", {NUM: 1, MEM: 100, CORES: 1})) for i in range(40)]

    async def agent() -> None:
        while True:
            for pod in server.store.list("pods"):
                written = pod["metadata"].get("annotations") or {}
                if pod["spec"].get("nodeName") and "," in written.get(HYGON.to_allocate_key, ""):
                    serve(server, pod["metadata"]["name"])
            await anyio.sleep(0.005)

    async with (
        running(configure(bind_timeout_seconds=60.0)) as controller,
        anyio.create_task_group() as group,
    ):
        await settled(controller, 4)
        binds = Binds(controller, group)
        for pod in pods:
            binds.start(pod)
        group.start_soon(agent)
        for pod in pods:
            await binds.ended(pod["metadata"]["name"])

        assert set(binds.answers.values()) == {""}
        assert await controller.value("hami_node_locks_total", result="taken") == 40
        assert await controller.value("hami_node_locks_total") == 40, "no other result"
        group.cancel_scope.cancel()


async def test_init_container_alone_needs_the_lock_as_well(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(mixed_node())
    pod = server.store.create(asking("p", {GPU: 1, GPUMEM: 5}, init={NUM: 1}))

    async with running(configure()) as controller:
        assert await controller.bind(pod, "mixed") == ""

    assert annotated(server, "nodes", "mixed")[LOCK_KEY].endswith(",default,p")
    assert annotated(server, "pods", "p")[HYGON.allocated_key] == "mixed-B,DCU,65520,100:;;"


@pytest.mark.parametrize("limits", [{GPU: 1, GPUMEM: 5}, {CARDS: 1}])
async def test_other_vendors_pods_neither_take_nor_mind_the_lock(
    server: ApiServer, configure: Configure, limits: dict[str, int]
) -> None:
    server.store.create(mixed_node())
    foreign = "2126-01-01T00:00:00Z,default,other"
    server.store.create(asking("other", {GPU: 1}, namespace="default"))
    change_node(server, "mixed", lock=foreign)
    pod = server.store.create(asking("p", limits))

    async with running(configure()) as controller:
        assert await controller.bind(pod, "mixed") == ""

    assert annotated(server, "nodes", "mixed")[LOCK_KEY] == foreign


@pytest.mark.faults
async def test_lock_is_given_back_when_the_bind_fails(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(mixed_node())
    pod = server.store.create(asking("p", {NUM: 1}))
    refused = server.faults.add(Fault(verb="create", resource="pods/binding", status=403))

    async with running(configure()) as controller:
        assert await controller.bind(pod, "mixed") != ""
        assert LOCK_KEY not in annotated(server, "nodes", "mixed")
        assert await controller.usage() == {}
        server.faults.remove(refused)
        assert await controller.bind(pod, "mixed") == ""
        assert annotated(server, "nodes", "mixed")[LOCK_KEY].endswith(",default,p")


async def test_anothers_lock_is_waited_for_within_the_binds_deadline(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(mixed_node())
    theirs = asking("other", {NUM: 1})
    theirs["spec"]["schedulerName"] = "theirs"
    server.store.create(theirs)
    change_node(server, "mixed", lock="2126-01-01T00:00:00Z,default,other")
    pods = [server.store.create(asking(f"p{i}", {NUM: 1})) for i in range(2)]

    async with running(configure(bind_timeout_seconds=1.0)) as controller:
        error = await controller.bind(pods[0], "mixed")
        assert "waited for the lock of the node" in error
        assert await controller.usage() == {}
        async with anyio.create_task_group() as group:
            binds = Binds(controller, group)
            binds.start(pods[1])
            change_node(server, "mixed", lock=None)
            await binds.ended("p1")
        assert binds.answers == {"p1": ""}


@pytest.mark.slow
@pytest.mark.parametrize("point", [p for p in CRASH_POINTS if p != "bind.before-turn"])
async def test_lock_of_a_bind_that_died_holds_nobody_up_for_long(
    server: ApiServer, configure: Configure, tmp_path: Path, point: str
) -> None:
    """The pod itself is bound at once; another one after the time of a bind.

    Before its turn a bind has no lock yet.
    """
    settings = configure(bind_timeout_seconds=2.0, allocate_timeout_seconds=2.0)
    server.store.create(mixed_node())
    pods = [server.store.create(asking(f"p{i}", {NUM: 1, MEM: 100, CORES: 1})) for i in range(2)]

    async with controller_process(settings, tmp_path, crash_at=point) as (controller, process):
        with pytest.raises(aiohttp.ClientError):
            await controller.bind(pods[0], "mixed")
        assert await process.wait() == -signal.SIGKILL
    assert annotated(server, "nodes", "mixed")[LOCK_KEY].endswith(",default,p0")

    async with controller_process(settings, tmp_path) as (controller, _):
        if point == "bind.after-binding":
            serve(server, "p0")

        async def other_is_bound() -> bool:
            return await controller.bind(pods[1], "mixed") == ""

        await until(other_is_bound)
        assert annotated(server, "nodes", "mixed")[LOCK_KEY].endswith(",default,p1")
        serve(server, "p1")
        assert await controller.bind(pods[0], "mixed") == ""


async def test_stale_lock_is_cleaned(server: ApiServer, configure: Configure) -> None:
    server.store.create(mixed_node())
    change_node(server, "mixed", lock="2020-01-01T00:00:00Z,default,gone")

    async with running(configure()):

        async def cleaned() -> bool:
            return LOCK_KEY not in annotated(server, "nodes", "mixed")

        await until(cleaned)


# -- devices that come and go -------------------------------------------------------------------


async def test_pods_of_counted_devices_do_not_wait_for_each_other(
    server: ApiServer, configure: Configure
) -> None:
    """No agent will ever say that they have their devices."""
    server.store.create(mixed_node())
    pods = [server.store.create(asking(f"p{i}", {CARDS: 1})) for i in range(3)]

    async with running(configure()) as controller:
        with anyio.fail_after(SOON):
            answers = [await controller.bind(pod, "mixed") for pod in pods]

    assert answers[:2] == ["", ""]
    assert "2/2 ExclusiveDeviceAllocateConflict" in answers[2]


async def test_devices_whose_capacity_goes_are_offered_no_more_and_charged_when_back(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(mixed_node())
    pod = server.store.create(asking("p", {CARDS: 1}))
    next_pod = server.store.create(asking("next", {CARDS: 2}))

    async with running(configure(hold_seconds=0.01)) as controller:
        assert await controller.bind(pod, "mixed") == ""
        used = await controller.usage()
        change_node(server, "mixed", cards=None)
        await registered(controller, 8)
        assert await controller.value("hami_unknown_devices", node="mixed") == 1
        assert (await controller.filter(next_pod, ["mixed"]))["NodeNames"] == []

        change_node(server, "mixed", cards="2")
        await registered(controller, 10)
        assert await controller.usage() == used
        assert await controller.value("hami_unknown_devices", node="mixed") == 0
        answer = await controller.filter(next_pod, ["mixed"])
        assert "1/2 ExclusiveDeviceAllocateConflict" in answer["FailedNodes"]["mixed"]


async def test_changed_inventory_counts_at_once_and_a_broken_one_not_at_all(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(mixed_node())
    pod = server.store.create(asking("p", {NUM: 1, MEM: 100, CORES: 1}))

    async with running(configure()) as controller:
        assert await controller.bind(pod, "mixed") == ""
        used = await controller.usage()
        change_node(server, "mixed", register="mixed-A,4,x:")

        async def told() -> bool:
            return await controller.value("hami_malformed_annotations_total", kind="node") == 1

        await until(told)
        await registered(controller, 10)
        assert await controller.usage() == used

        change_node(server, "mixed", register=dcus("mixed-A"))
        await registered(controller, 9)
        assert await controller.value("hami_unknown_devices", node="mixed") == 1
        change_node(server, "mixed", register=None)
        await registered(controller, 8)
        change_node(server, "mixed", register=dcus("mixed-A", "mixed-B", "mixed-C"))
        await registered(controller, 11)
        assert await controller.usage() == used


async def test_nodes_of_other_labels_are_not_offered_and_their_pods_still_count(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(mixed_node())
    pod = server.store.create(asking("p", {NUM: 1}))
    change_node(server, "mixed", pool="gpu")

    async with running(configure(node_label_selector="pool in (gpu)")) as controller:
        await registered(controller, 6)
        assert await controller.bind(pod, "mixed") == ""
        used = await controller.usage()
        change_node(server, "mixed", pool="cpu")
        await registered(controller, 0)
        assert "unregistered" in str(
            (await controller.filter(asking("q", {GPU: 1}), ["mixed"]))["FailedNodes"]
        )
        change_node(server, "mixed", pool="gpu")
        await registered(controller, 6)
        assert await controller.usage() == used


async def test_another_machine_of_the_same_name_has_its_own_devices(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(mixed_node())

    async with running(configure()) as controller:
        await registered(controller, 10)
        server.store.delete("nodes", "mixed", "")
        server.store.create(mixed_node(cards=1, dcu="broken"))
        await registered(controller, 4 + 2 + 1)


async def test_cordoned_device_of_any_vendor_is_seen_at_once(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(mixed_node())
    pod = asking("p", {NUM: 2})

    async with running(configure()) as controller:
        change_node(server, "mixed", cordon="mixed-A,mixed-GCU-0")

        async def refused() -> bool:
            answer = await controller.filter(pod, ["mixed"])
            return "1/2 CardCordoned" in str(answer["FailedNodes"])

        await until(refused)


async def test_record_that_one_vendor_spoilt_still_counts_the_others(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(mixed_node())
    pod = asking("p", {GPU: 1, NUM: 1})
    pod["metadata"]["annotations"] = {
        codec.NODE_KEY: "mixed",
        NVIDIA.allocated_key: "GPU-mixed-0,NVIDIA,3000,30:;",
        HYGON.allocated_key: "mixed-A,DCU,lots,1:;",
    }
    pod["spec"]["nodeName"] = "mixed"
    server.store.create(pod)

    async with running(configure()) as controller:

        async def counted() -> bool:
            return await controller.usage() == {("mixed", "GPU-mixed-0"): (1, 3000 * MIB, 30)}

        await until(counted)
        assert await controller.value("hami_malformed_annotations_total", kind="pod") == 1
