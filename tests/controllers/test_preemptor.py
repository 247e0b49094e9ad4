"""Pods of lower priority make room for one that fits nowhere: the right ones, and no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anyio
import pytest

from hami.config import Settings
from hami.core import codec
from hami.sandbox.apiserver import ApiServer
from hami.sandbox.apiserver.faults import Fault
from tests.support.controller import Controller, pod_object, quota_object, running
from tests.support.kube import until

NODES = ["n0", "n1"]
DEVICES = [("n0", 0), ("n0", 1), ("n1", 0), ("n1", 1)]
Configure = Callable[..., Settings]


async def occupy(
    server: ApiServer,
    controller: Controller,
    node: str,
    name: str,
    *,
    priority: int = 0,
    labels: Mapping[str, str] | None = None,
    memory: int = 39_000,
    **spec: Any,
) -> None:
    """A running pod that has one of the node's two devices to itself."""
    pod = pod_object(name, memory=memory)
    pod["metadata"]["labels"] = dict(labels or {})
    pod["spec"] |= {"priority": priority, **spec}
    created = server.store.create(pod)
    assert (await controller.filter(created, [node]))["NodeNames"] == [node]
    assert await controller.bind(created, node) == ""
    bound = server.store.get("pods", name, "default")
    bound["metadata"]["annotations"][codec.BIND_PHASE_KEY] = "success"
    bound["status"] = {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    server.store.update(bound)


async def occupy_all(
    server: ApiServer, controller: Controller, priorities: Mapping[str, int] | None = None
) -> None:
    """Four pods on four devices: ``n0-0`` and so on."""
    for node, number in DEVICES:
        name = f"{node}-{number}"
        await occupy(server, controller, node, name, priority=(priorities or {}).get(name, 0))


def important(name: str = "important", *, priority: int = 10, **asked: Any) -> dict[str, Any]:
    pod = pod_object(name, memory=asked.pop("memory", 39_000), **asked)
    pod["spec"]["priority"] = priority
    return pod


async def refused(controller: Controller, pod: Mapping[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = await controller.filter(pod, NODES)
    assert answer["NodeNames"] == [], answer
    return answer


def ending(server: ApiServer) -> list[str]:
    """Who has been told to go."""
    pods = server.store.list("pods")
    return sorted(p["metadata"]["name"] for p in pods if "deletionTimestamp" in p["metadata"])


async def until_ending(server: ApiServer, *names: str) -> None:
    async def they_are() -> bool:
        return ending(server) == sorted(names)

    await until(they_are)


async def until_counted(controller: Controller, result: str, number: int = 1) -> None:
    async def counted() -> bool:
        return await controller.value("hami_preemptions_total", result=result) >= number

    await until(counted)


def budget(server: ApiServer, labels: Mapping[str, str], *, allowed: int, least: int) -> None:
    server.store.create(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "few", "namespace": "default"},
            "spec": {"selector": {"matchLabels": dict(labels)}, "minAvailable": least},
            "status": {"disruptionsAllowed": allowed},
        }
    )


def end(server: ApiServer, *names: str) -> None:
    """What kubelets do with a pod that is told to go."""
    for name in names:
        server.store.delete("pods", name, "default")


async def note_of(controller: Controller, name: str) -> tuple[str, ...]:
    async with controller.session.get(
        f"{controller.health_url}/v1/explain/default/{name}"
    ) as response:
        return tuple((await response.json()).get("notes", ()))


# -- the whole way -----------------------------------------------------------------------------


async def test_the_least_important_pod_goes_and_its_device_is_the_preemptors(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        await occupy_all(server, controller, {"n0-0": 5, "n0-1": 5, "n1-0": 4, "n1-1": 5})
        pod = server.store.create(important())
        await refused(controller, pod)
        await until_ending(server, "n1-0")
        await until_counted(controller, "evicted")
        assert await controller.value("hami_preemption_victims_total") == 1

        async def nominated() -> bool:
            found = server.store.get("pods", "important", "default")
            return bool(found.get("status", {}).get("nominatedNodeName") == "n1")

        await until(nominated)
        assert await note_of(controller, "important") == (
            "evicts default/n1-0 on node n1, which is held for it",
        )

        await refused(controller, pod)  # it is asked about while the victim still runs
        end(server, "n1-0")

        async def called() -> bool:
            found = server.store.get("pods", "important", "default")
            return codec.NUDGE_KEY in (found["metadata"].get("annotations") or {})

        with anyio.fail_after(2.0):
            await until(called)
        third = server.store.create(pod_object("third", memory=39_000))
        await refused(controller, third)
        pod = server.store.get("pods", "important", "default")
        assert (await controller.filter(pod, NODES))["NodeNames"] == ["n1"]
        assert await controller.bind(pod, "n1") == ""
        usage = await controller.usage()

        async def told() -> bool:
            reasons = {(e["reason"], e["involvedObject"]["name"]) for e in events(server)}
            return {("Preempting", "important"), ("Preempted", "n1-0")} <= reasons

        await until(told)

    assert len(usage) == 4
    assert all(memory <= 40_000 * 2**20 for _, memory, _ in usage.values())


def events(server: ApiServer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.store.list("events")
    return found


async def test_the_room_is_kept_from_a_third_pod_while_victims_end_and_after(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        await occupy_all(server, controller)
        pod = server.store.create(important(gpus=2))
        third = server.store.create(pod_object("third", memory=39_000))
        await refused(controller, pod)
        await until_ending(server, "n0-0", "n0-1")
        for name in ("n0-0", "n0-1"):
            await refused(controller, third)
            await refused(controller, pod)
            await refused(controller, third)
            end(server, name)

            async def seen(name: str = name) -> bool:
                return (await explained(controller, name)) == "unknown"

            await until(seen)
        await refused(controller, third)
        assert (await controller.filter(pod, NODES))["NodeNames"] == ["n0"]


async def explained(controller: Controller, name: str) -> str:
    async with controller.session.get(
        f"{controller.health_url}/v1/explain/default/{name}"
    ) as response:
        return str((await response.json()).get("state"))


async def test_the_hold_ends_if_the_preemptor_goes_away(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        await occupy_all(server, controller, {"n0-1": 5, "n1-0": 5, "n1-1": 5})
        await refused(controller, server.store.create(important()))
        await until_ending(server, "n0-0")
        await until_counted(controller, "evicted")
        assert sum(memory for _, memory, _ in (await controller.usage()).values()) // 2**20 == (
            5 * 39_000
        )
        end(server, "important")

        async def given_back() -> bool:
            usage = await controller.usage()
            return sum(memory for _, memory, _ in usage.values()) // 2**20 == 4 * 39_000

        await until(given_back)


async def test_pods_that_end_already_are_waited_for_and_nobody_else_goes(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        await occupy_all(server, controller, {"n1-1": 50})
        leaving = server.store.get("pods", "n1-1", "default")
        leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        leaving["metadata"]["deletionGracePeriodSeconds"] = 30
        server.store.update(leaving)
        pod = server.store.create(important())
        third = server.store.create(pod_object("third", memory=39_000))
        await refused(controller, pod)
        await until_counted(controller, "awaited")
        assert ending(server) == ["n1-1"]
        end(server, "n1-1")
        await refused(controller, third)
        assert (await controller.filter(pod, NODES))["NodeNames"] == ["n1"]


async def test_two_preemptors_get_a_device_each(server: ApiServer, configure: Configure) -> None:
    async with running(configure()) as controller:
        await occupy_all(server, controller)
        for name in ("first", "second"):
            await refused(controller, server.store.create(important(name)))
        await until_counted(controller, "evicted", 2)
        assert len(ending(server)) == 2


# -- whom nothing is done for ------------------------------------------------------------------


@pytest.mark.parametrize("case", ["never", "off", "as_important", "no_help", "quota", "gang"])
async def test_nobody_is_evicted(server: ApiServer, configure: Configure, case: str) -> None:
    """A second pod, for which others do go, shows that the first had its turn."""
    async with running(configure(preemption=case != "off")) as controller:
        await occupy_all(server, controller, dict.fromkeys(["n0-0", "n0-1", "n1-0"], 10))
        pod = important(priority=0 if case == "as_important" else 10)
        match case:
            case "never":
                pod["spec"]["preemptionPolicy"] = "Never"
            case "no_help":
                pod = important(memory=41_000)
            case "quota":
                server.store.create(quota_object("little", memory=4 * 39_000 + 1000))
            case "gang":
                pod["metadata"]["labels"] = {"scheduling.x-k8s.io/pod-group": "g"}
        await refused(controller, server.store.create(pod))
        if case == "no_help":
            await until_counted(controller, "none")
        probe = important("probe", priority=5, memory=1001 if case == "quota" else 2000)
        await refused(controller, server.store.create(probe))
        if case in {"off", "quota"}:
            await anyio.sleep(0.6)  # nothing tells that nothing was done
            assert ending(server) == []
        else:
            await until_ending(server, "n1-1")
        assert await controller.value("hami_preemption_victims_total") == len(ending(server))
        waiting = server.store.get("pods", "important", "default")
        assert "nominatedNodeName" not in waiting.get("status", {})


# -- budgets -----------------------------------------------------------------------------------


async def test_a_pod_that_a_budget_protects_stays_if_another_can_go(
    server: ApiServer, configure: Configure
) -> None:
    budget(server, {"app": "db"}, allowed=0, least=3)
    async with running(configure()) as controller:
        for node, number in DEVICES:
            labels = {} if (node, number) == ("n1", 1) else {"app": "db"}
            await occupy(
                server,
                controller,
                node,
                f"{node}-{number}",
                labels=labels,
                priority=0 if labels else 5,
            )
        await refused(controller, server.store.create(important()))
        await until_ending(server, "n1-1")


@pytest.mark.parametrize(("allowed", "least"), [(0, 4), (1, 3)])
async def test_nobody_goes_where_a_budget_forbids_one_of_the_victims(
    server: ApiServer, configure: Configure, allowed: int, least: int
) -> None:
    budget(server, {"app": "db"}, allowed=allowed, least=least)
    async with running(configure()) as controller:
        for node, number in DEVICES:
            await occupy(server, controller, node, f"{node}-{number}", labels={"app": "db"})
        await refused(controller, server.store.create(important(gpus=2)))
        await until_counted(controller, "budget")
        assert ending(server) == []
        usage = await controller.usage()
        (note,) = await note_of(controller, "important")

    assert "could be had for default/n0-" in note
    assert "disruption budget" in note
    assert sum(memory for _, memory, _ in usage.values()) // 2**20 == 4 * 39_000


@pytest.mark.faults
async def test_what_is_held_is_given_back_where_an_eviction_fails(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        await occupy_all(server, controller)
        server.faults.add(Fault(verb="create", resource="pods/eviction", status=500))
        await refused(controller, server.store.create(important()))
        await until_counted(controller, "failed")
        assert ending(server) == []
        usage = await controller.usage()

    assert sum(memory for _, memory, _ in usage.values()) // 2**20 == 4 * 39_000


# -- the scheduler's own preemption ------------------------------------------------------------


def uid_of(server: ApiServer, name: str) -> str:
    uid: str = server.store.get("pods", name, "default")["metadata"]["uid"]
    return uid


async def preempt(controller: Controller, body: Mapping[str, Any]) -> Any:
    status, answer = await controller.post("/preempt", body)
    assert status == 200
    return answer["NodeNameToMetaVictims"]


async def test_victims_that_make_room_are_kept_others_completed_and_useless_nodes_left_out(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        await occupy_all(server, controller, {"n1-0": 10, "n1-1": 10, "n0-0": 3})
        uids = {name: uid_of(server, name) for name in ("n0-0", "n0-1", "n1-0")}
        pod = important()
        given = {
            "n0": {"Pods": [{"UID": "no-devices"}], "NumPDBViolations": 1},
            "n1": {"Pods": [{"UID": "other"}]},
        }
        answer = await preempt(controller, {"Pod": pod, "NodeNameToMetaVictims": given})
        assert list(answer) == ["n0"]
        assert {pod["UID"] for pod in answer["n0"]["Pods"]} == {"no-devices", uids["n0-1"]}
        assert answer["n0"]["NumPDBViolations"] == 1

        enough = {"n1": {"pods": [{"uid": uids["n1-0"]}], "numpdbviolations": 0}}
        answer = await preempt(controller, {"pod": pod, "nodenametometavictims": enough})
        assert answer == {"n1": {"Pods": [{"UID": uids["n1-0"]}], "NumPDBViolations": 0}}

        whole = {"n1": {"Pods": [server.store.get("pods", "n1-0", "default")]}}
        answer = await preempt(controller, {"Pod": pod, "NodeNameToVictims": whole})
        assert answer == {"n1": {"Pods": [{"UID": uids["n1-0"]}], "NumPDBViolations": 0}}

        plain = pod_object("plain", memory=None)
        plain["spec"]["containers"][0]["resources"] = {}
        answer = await preempt(controller, {"Pod": plain, "NodeNameToMetaVictims": given})
        assert set(answer) == {"n0", "n1"}
        assert ending(server) == []


@pytest.mark.parametrize(
    "body", [b"{}", b"nonsense", b'{"Pod":{},"NodeNameToMetaVictims":{"n0":{"Pods":[{}]}}}']
)
async def test_preempt_that_cannot_be_read_is_no_answer(
    server: ApiServer, configure: Configure, body: bytes
) -> None:
    async with running(configure()) as controller:
        status, answer = await controller.post("/preempt", body)

    assert status == 503
    assert answer["Error"]


async def test_follower_evicts_nobody(server: ApiServer, configure: Configure) -> None:
    """It is not asked, and where it is, it refuses."""
    async with running(configure()) as leader:
        await occupy_all(server, leader)
    settings = configure(leader_elect=True, scheduler_lease_name="nobody")
    async with running(settings) as follower:
        pod = server.store.create(important())
        answer = await follower.filter(pod, NODES)
        assert "not the leader" in answer["Error"]
        status, _ = await follower.post("/preempt", {"Pod": pod, "NodeNameToMetaVictims": {}})
        assert status == 503
        assert ending(server) == []
