"""Bind, over HTTP, against an API server that refuses, forgets and changes things meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import msgspec
import pytest

from hami.config import Settings
from hami.core import codec
from hami.core.vendors.nvidia import NVIDIA
from hami.sandbox.apiserver import ApiServer
from hami.sandbox.apiserver.faults import Drop, Fault
from tests.support.controller import Controller, gpus, node_object, pod_object, running
from tests.support.kube import until

NODES = ["n0", "n1"]
Configure = Callable[..., Settings]


def pod_in(server: ApiServer, name: str) -> dict[str, Any]:
    return server.store.get("pods", name)


def annotations_of(server: ApiServer, name: str) -> dict[str, str]:
    found: dict[str, str] = pod_in(server, name)["metadata"].get("annotations") or {}
    return found


def node_of(server: ApiServer, name: str) -> str | None:
    node: str | None = pod_in(server, name)["spec"].get("nodeName")
    return node


def say_allocated(server: ApiServer, name: str, phase: str = "success") -> None:
    """What the node's agent writes once the kubelet has asked it for the pod's devices."""
    pod = pod_in(server, name)
    pod["metadata"]["annotations"][codec.BIND_PHASE_KEY] = phase
    server.store.update(pod)


async def test_bind_writes_the_record_and_gives_the_pod_to_the_node(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p", gpus=2, memory=8000, cores=30))

    async with running(configure()) as controller:
        assert await controller.bind(pod, "n1") == ""
        usage = await controller.usage()

    bound = pod_in(server, "p")
    written = bound["metadata"]["annotations"]
    record = "GPU-n1-1,NVIDIA,8000,30:GPU-n1-0,NVIDIA,8000,30:;"
    assert bound["spec"]["nodeName"] == "n1"
    assert bound["metadata"]["labels"] == {codec.NODE_KEY: "n1"}
    assert written[codec.NODE_KEY] == "n1"
    assert written[codec.BIND_PHASE_KEY] == "allocating"
    assert sorted(written[NVIDIA.allocated_key].rstrip(":;").split(":")) == sorted(
        record.rstrip(":;").split(":")
    )
    assert written[NVIDIA.to_allocate_key] == written[NVIDIA.allocated_key]
    assert int(written[codec.BIND_TIME_KEY]) > 1_700_000_000
    assert usage == {
        ("n1", "GPU-n1-0"): (1, 8000 * 2**20, 30),
        ("n1", "GPU-n1-1"): (1, 8000 * 2**20, 30),
    }


@pytest.mark.parametrize("mode", ["cooperative", "exclusive"])
async def test_filter_then_bind_moves_the_hold_to_the_node_that_was_chosen(
    server: ApiServer, configure: Configure, mode: str
) -> None:
    pod = server.store.create(pod_object("p"))

    async with running(configure(mode=mode)) as controller:
        await controller.filter(pod, NODES)
        assert await controller.bind(pod, "n1") == ""
        assert {node for node, _ in await controller.usage()} == {"n1"}
        assert await controller.value("hami_reservations", state="confirmed") == 1


async def test_bind_of_a_bound_pod_is_done_already_or_too_late(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p"))

    async with running(configure()) as controller:
        assert await controller.bind(pod, "n0") == ""
        before = pod_in(server, "p")
        assert await controller.bind(pod, "n0") == ""
        error = await controller.bind(pod, "n1")
        filtered = await controller.filter(pod, NODES)

    assert "already bound to node n0" in error
    assert "already bound to node n0" in filtered["Error"]
    assert pod_in(server, "p") == before


async def test_pod_without_devices_is_bound_plainly(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p", gpus=0, memory=None))
    server.store.create(node_object("cpu", ()))

    async with running(configure()) as controller:
        assert await controller.bind(pod, "cpu") == ""

    assert node_of(server, "p") == "cpu"
    assert annotations_of(server, "p") == {}


async def test_node_that_fits_no_longer_is_refused_and_nothing_stays_held(
    server: ApiServer, configure: Configure
) -> None:
    first = server.store.create(pod_object("first", gpus=2, memory=30_000))
    second = server.store.create(pod_object("second", gpus=2, memory=20_000))

    async with running(configure()) as controller:
        await controller.filter(second, ["n0"])
        assert await controller.bind(first, "n1") == ""
        error = await controller.bind(second, "n1")
        held = await controller.usage()

    assert "2/2 CardInsufficientMemory" in error
    assert node_of(server, "second") is None
    assert {node for node, _ in held} == {"n1"}, "the hold on n0 has ended"


async def test_recreated_pod_is_not_bound_in_place_of_the_one_meant(
    server: ApiServer, configure: Configure
) -> None:
    old = server.store.create(pod_object("p"))

    async with running(configure()) as controller:
        await controller.filter(old, NODES)
        server.store.delete("pods", "p")
        server.store.create(pod_object("p"))
        error = await controller.bind(old, "n0")

        async def freed() -> bool:
            return not await controller.usage()

        await until(freed)

    assert "created again" in error
    assert node_of(server, "p") is None
    assert annotations_of(server, "p") == {}


async def test_deleted_pod_is_an_error_and_frees_its_hold(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p"))

    async with running(configure()) as controller:
        await controller.filter(pod, NODES)
        server.store.delete("pods", "p")
        error = await controller.bind(pod, "n0")

        async def freed() -> bool:
            return not await controller.usage()

        await until(freed)

    assert "404" in error


@pytest.mark.faults
async def test_pod_that_changed_meanwhile_is_read_and_decided_again(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p"))
    conflict = server.faults.add(Fault(verb="patch", resource="pods", status=409, times=2))

    async with running(configure()) as controller:
        assert await controller.bind(pod, "n0") == ""
        assert await controller.value("hami_bind_conflicts_total") == 2

    assert conflict.hits == 2
    assert node_of(server, "p") == "n0"


@pytest.mark.faults
async def test_pod_that_changes_all_the_time_is_given_up(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p"))
    server.faults.add(Fault(verb="patch", resource="pods", status=409))

    async with running(configure(max_attempts=2)) as controller:
        error = await controller.bind(pod, "n0")

    assert "changed during each of 2 attempts" in error
    assert node_of(server, "p") is None


@pytest.mark.faults
async def test_refused_binding_leaves_no_trace_but_an_event(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p", annotations={"mine": "stays"}))
    server.faults.add(Fault(verb="create", resource="pods/binding", status=403))

    async with running(configure()) as controller:
        error = await controller.bind(pod, "n0")
        usage = await controller.usage()

        async def told() -> bool:
            return any(e["reason"] == "BindingFailed" for e in server.store.list("events"))

        await until(told)

    assert "403" in error
    assert usage == {}
    assert annotations_of(server, "p") == {"mine": "stays"}
    assert pod_in(server, "p")["metadata"].get("labels") in (None, {})


@pytest.mark.faults
@pytest.mark.parametrize("moment", list(Drop))
@pytest.mark.parametrize(("verb", "resource"), [("patch", "pods"), ("create", "pods/binding")])
async def test_lost_answer_ends_with_the_pod_bound_once(
    server: ApiServer, configure: Configure, moment: Drop, verb: str, resource: str
) -> None:
    pod = server.store.create(pod_object("p"))
    server.faults.add(Fault(verb=verb, resource=resource, drop=moment, times=1))

    async with running(configure()) as controller:
        error = await controller.bind(pod, "n0")
        if error:
            assert node_of(server, "p") is None
            assert await controller.usage() == {}
            assert await controller.bind(pod, "n0") == ""
        usage = await controller.usage()

    assert node_of(server, "p") == "n0"
    assert len(usage) == 1


@pytest.mark.faults
async def test_binding_whose_fate_is_unknown_stays_reserved_until_the_watch_tells(
    server: ApiServer, configure: Configure
) -> None:
    """The Binding is made, but every answer about the pod is lost."""
    pod = server.store.create(pod_object("p", gpus=2, memory=30_000))
    rival = server.store.create(pod_object("rival", gpus=2, memory=30_000))
    server.faults.add(Fault(verb="watch", resource="pods", drop=Drop.BEFORE))
    server.faults.add(Fault(verb="create", resource="pods/binding", drop=Drop.AFTER))
    blind = server.faults.add(Fault(verb="get", resource="pods", name="p", drop=Drop.BEFORE))

    async with running(configure()) as controller:
        server.faults.drop_streams()
        error = await controller.bind(pod, "n0")
        refused = await controller.filter(rival, ["n0"])
        assert error
        assert refused["NodeNames"] == []
        assert "perhaps already bound" in (await controller.filter(pod, NODES))["Error"]
        server.faults.remove(blind)
        assert await controller.bind(pod, "n0") == ""
        assert await controller.value("hami_reservations", state="confirmed") == 1

    assert node_of(server, "p") == "n0"


@pytest.mark.faults
async def test_pod_whose_record_was_spoilt_before_the_answer_came_is_bound_and_counted(
    server: ApiServer, configure: Configure
) -> None:
    """The Binding is made, its answer is lost, and somebody writes nonsense on the pod."""
    pod = server.store.create(pod_object("p"))
    blind = server.faults.add(Fault(verb="watch", resource="pods", drop=Drop.BEFORE))
    server.faults.add(Fault(verb="create", resource="pods/binding", drop=Drop.AFTER, times=1))
    late = server.faults.add(Fault(verb="create", resource="pods/binding", delay_seconds=0.5))

    async with running(configure()) as controller, anyio.create_task_group() as group:
        server.faults.drop_streams()
        answers = await bind_in_background(group, controller, pod, "n0")

        async def bound() -> bool:
            return node_of(server, "p") == "n0" and late.hits > 0

        await until(bound)
        spoilt = pod_in(server, "p")
        spoilt["metadata"]["annotations"][NVIDIA.allocated_key] = "GPU-n0-0,NVIDIA,lots,0:;"
        server.store.update(spoilt)

        async def answered() -> bool:
            return bool(answers)

        await until(answered)
        assert answers == [""]
        assert len(await controller.usage()) == 1
        server.faults.remove(blind)

        async def kept() -> bool:
            return await controller.value("hami_reservations", state="confirmed") == 1

        await until(kept)


# -- twins --------------------------------------------------------------------------------------


async def bind_in_background(
    group: anyio.abc.TaskGroup, controller: Controller, pod: dict[str, Any], node: str
) -> list[str]:
    """A list that will hold the bind's answer."""
    answers: list[str] = []

    async def bind() -> None:
        answers.append(await controller.bind(pod, node))

    group.start_soon(bind)
    return answers


async def test_twins_are_bound_one_after_the_other(server: ApiServer, configure: Configure) -> None:
    """The second waits until the first has its devices; the third, of other counts, does not."""
    pods = [server.store.create(pod_object(f"p{i}")) for i in range(2)]
    other = server.store.create(pod_object("other", gpus=2))

    async with running(configure()) as controller, anyio.create_task_group() as group:
        assert await controller.bind(pods[0], "n0") == ""
        second = await bind_in_background(group, controller, pods[1], "n0")
        assert await controller.bind(other, "n0") == ""
        assert (second, node_of(server, "p1")) == ([], None)

        say_allocated(server, "p0")

        async def bound() -> bool:
            return second == [""]

        await until(bound)
    assert node_of(server, "p1") == "n0"


@pytest.mark.parametrize("end", ["failed phase", "running", "deleted", "pod failed"])
async def test_twin_goes_on_however_the_first_ends(
    server: ApiServer, configure: Configure, end: str
) -> None:
    pods = [server.store.create(pod_object(f"p{i}")) for i in range(2)]

    async with running(configure()) as controller, anyio.create_task_group() as group:
        assert await controller.bind(pods[0], "n0") == ""
        second = await bind_in_background(group, controller, pods[1], "n0")
        match end:
            case "failed phase":
                say_allocated(server, "p0", "failed")
            case "deleted":
                server.store.delete("pods", "p0")
            case _:
                phase = "Running" if end == "running" else "Failed"
                server.store.update({**pod_in(server, "p0"), "status": {"phase": phase}})

        async def bound() -> bool:
            return second == [""]

        await until(bound)


async def test_twins_on_different_nodes_do_not_wait(
    server: ApiServer, configure: Configure
) -> None:
    pods = [server.store.create(pod_object(f"p{i}")) for i in range(2)]

    async with running(configure()) as controller:
        assert await controller.bind(pods[0], "n0") == ""
        assert await controller.bind(pods[1], "n1") == ""


async def test_pod_that_cannot_wait_any_longer_fails_and_frees_everything(
    server: ApiServer, configure: Configure
) -> None:
    pods = [server.store.create(pod_object(f"p{i}")) for i in range(2)]

    async with running(configure(bind_timeout_seconds=0.2)) as controller:
        assert await controller.bind(pods[0], "n0") == ""
        await controller.filter(pods[1], NODES)
        error = await controller.bind(pods[1], "n0")
        usage = await controller.usage()

    assert "its twins on the node" in error
    assert sum(slots for slots, _, _ in usage.values()) == 1
    assert node_of(server, "p1") is None


async def test_dead_agent_does_not_hold_back_its_node_for_ever(
    server: ApiServer, configure: Configure
) -> None:
    pods = [server.store.create(pod_object(f"p{i}")) for i in range(2)]

    async with running(configure(allocate_timeout_seconds=0.1)) as controller:
        assert await controller.bind(pods[0], "n0") == ""
        assert await controller.bind(pods[1], "n0") == ""


@pytest.mark.faults
async def test_second_bind_of_a_pod_under_way_is_refused(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p"))
    slow = server.faults.add(Fault(verb="create", resource="pods/binding", delay_seconds=0.5))

    async with running(configure()) as controller, anyio.create_task_group() as group:
        first = await bind_in_background(group, controller, pod, "n0")

        async def under_way() -> bool:
            return slow.hits > 0

        await until(under_way)
        assert "under way" in await controller.bind(pod, "n0")
        assert "under way" in (await controller.filter(pod, NODES))["Error"]
    assert first == [""]


async def test_burst_of_binds_never_gives_a_device_twice(
    server: ApiServer, configure: Configure
) -> None:
    """Eight pods of different sizes race for room for four."""
    server.store.create(node_object("tight", gpus("tight", 4)))
    pods = [server.store.create(pod_object(f"p{i}", memory=30_000 + i)) for i in range(8)]

    async with (
        running(configure(allocate_timeout_seconds=0.01)) as controller,
        anyio.create_task_group() as group,
    ):
        answers = [await bind_in_background(group, controller, pod, "tight") for pod in pods]

        async def answered() -> bool:
            return all(answers)

        await until(answered)
        usage = await controller.usage()

    assert sorted(answer[0] == "" for answer in answers) == [False] * 4 + [True] * 4
    assert [slots for slots, _, _ in usage.values()] == [1, 1, 1, 1]


# -- few calls, and none in vain ----------------------------------------------------------------


async def test_scheduled_pod_costs_three_writes(server: ApiServer, configure: Configure) -> None:
    """Its record, the Binding and one Event; filter, prioritize and the watch cost none."""
    pods = [server.store.create(pod_object(f"p{i}", gpus=1 + i % 2)) for i in range(4)]

    async with running(configure()) as controller:
        await until_handshaken(server)
        before = Counter(server.requests)
        for pod, node in zip(pods, ["n0", "n0", "n1", "n1"], strict=True):
            await controller.filter(pod, NODES)
            await controller.prioritize(pod, NODES)
            assert await controller.bind(pod, node) == ""

        async def told() -> bool:
            return len(server.store.list("events")) == len(pods)

        await until(told)
        calls = Counter(server.requests) - before

    writes = {key: n for key, n in calls.items() if key[0] not in {"get", "list", "watch"}}
    assert writes == {
        ("patch", "pods"): len(pods),
        ("create", "pods/binding"): len(pods),
        ("create", "events"): len(pods),
    }
    assert calls["get", "pods"] == 0, "the watch shows what there is to know"


async def until_handshaken(server: ApiServer) -> None:
    """Return once the agents have been asked whether they are alive, which is no pod's cost."""

    async def asked() -> bool:
        return server.requests["patch", "nodes"] >= len(NODES)

    await until(asked)


@pytest.mark.faults
async def test_bind_that_cannot_be_done_in_time_is_refused_at_once(
    server: ApiServer, configure: Configure
) -> None:
    """Each request is allowed every two seconds: the third bind would take ten, and may take six.

    What is under way is not disturbed, and nothing is written for the one that is refused.
    """
    pods = [server.store.create(pod_object(f"p{i}", gpus=1 + i)) for i in range(2)]
    late = server.store.create(pod_object("late"))
    settings = configure(bind_timeout_seconds=6.0)
    kube = msgspec.structs.replace(settings.kube, urgent_qps=0.5, urgent_burst=1)

    async with (
        running(msgspec.structs.replace(settings, kube=kube)) as controller,
        anyio.create_task_group() as group,
    ):
        for pod in pods:
            await bind_in_background(group, controller, pod, "n0")

        async def under_way() -> bool:
            return await controller.value("hami_reservations", state="reserved") == len(pods)

        await until(under_way)
        with anyio.fail_after(5):
            error = await controller.bind(late, "n1")
        assert await controller.value("hami_bind_total", result="busy") == 1
        assert await controller.value("hami_reservations", state="reserved") == len(pods)
        group.cancel_scope.cancel()

    assert "2 others are under way" in error
    assert "come again" in error
    assert annotations_of(server, "late") == {}
