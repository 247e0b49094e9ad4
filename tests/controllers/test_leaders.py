"""Two controllers in processes of their own: one decides, and the change of hands is safe."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from hami.core import codec
from hami.sandbox.apiserver import ApiServer
from hami.sandbox.apiserver.faults import Fault
from tests.support.commands import Process
from tests.support.controller import Controller, controller_process, pod_object
from tests.support.kube import until
from tests.support.leaders import (
    BRIEF,
    UNBOUND,
    candidate_settings,
    has_record,
    leads,
    memory_given,
    pause,
    resume,
    role,
)

pytestmark = [pytest.mark.slow, pytest.mark.faults]  # looks at Leases in the sandbox's store

ON_THE_WAY_SECONDS = 12.0
"""How long a request of the paused leader stays on its way: longer than its Lease, and not so long
that it is given up (15 s)."""
BIG: dict[str, Any] = {"gpus": 2, "memory": 30_000}
"""Two such pods do not fit on one node."""

Running = tuple[Controller, Process]


@asynccontextmanager
async def two(server: ApiServer, place: Path, **settings: Any) -> AsyncIterator[list[Running]]:
    """The first leads, the second follows."""
    async with controller_process(
        candidate_settings(server, place / "a", **settings), place / "a"
    ) as first:

        async def first_leads() -> bool:
            return await leads(first[0])

        await until(first_leads)
        async with controller_process(
            candidate_settings(server, place / "b", **settings), place / "b"
        ) as second:
            yield [first, second]


async def until_leads(controller: Controller) -> None:
    async def answers() -> bool:
        return await leads(controller)

    await until(answers)


async def test_only_the_leader_answers_and_the_other_stands_by(
    server: ApiServer, tmp_path: Path
) -> None:
    async with two(server, tmp_path) as [(leader, process), (follower, _)]:
        pod = server.store.create(pod_object("p"))
        refused = await follower.filter(pod, ["n0"])
        assert refused["Error"].startswith("not the leader; the leader is ")
        assert not refused["NodeNames"]
        assert await follower.prioritize(pod, ["n0"]) == {}
        assert "not the leader" in await follower.bind(pod, "n0")
        assert (await role(leader), await role(follower)) == ("leader", "follower")
        assert await follower.is_ready(), "admission works on every replica"
        review = {"request": {"uid": "u", "object": pod, "operation": "CREATE"}}
        status, answer = await follower.post("/webhook", {"kind": "AdmissionReview", **review})
        assert (status, answer["response"]["allowed"]) == (200, True)

        assert await leader.bind(pod, "n0") == ""
        assert has_record(server, "p")
        mark = server.store.get("pods", "p")["metadata"]["annotations"][codec.SCHEDULED_BY_KEY]
        holder = server.store.get("leases", "hami-controller")["spec"]["holderIdentity"]
        assert mark == f"{holder}/0"

        async def warm() -> bool:
            return bool(await follower.usage())

        await until(warm)
        assert await follower.usage() == await leader.usage()
        assert await leader.value("hami_leader") == 1.0
        assert await follower.value("hami_leader") == 0.0

        process.stop()
        await until_leads(follower)
        assert await follower.value("hami_leader") == 1.0
        assert await follower.value("hami_leader_term") == 1.0
        assert await process.wait() == 0


async def test_when_the_leader_is_killed_the_other_follows(
    server: ApiServer, tmp_path: Path
) -> None:
    async with two(server, tmp_path, **BRIEF) as [(leader, process), (follower, _)]:
        pods = [server.store.create(pod_object(f"p{i}", **BIG)) for i in range(3)]
        assert await leader.bind(pods[0], "n0") == ""
        process.process.send_signal(signal.SIGKILL)

        await until_leads(follower)

        answer = await follower.filter(pods[1], ["n0", "n1"])
        assert answer["NodeNames"] == ["n1"], "what the other bound is known at once"


@pytest.mark.parametrize(
    ("verb", "resource"),
    [("create", "pods/binding"), ("patch", "pods")],
    ids=["its Binding is on the way", "its record is on the way"],
)
async def test_a_leader_paused_within_a_bind_writes_nothing_when_it_goes_on(
    server: ApiServer, tmp_path: Path, verb: str, resource: str
) -> None:
    late = Fault(verb=verb, resource=resource, times=1, delay_seconds=ON_THE_WAY_SECONDS)
    answers: list[str] = []

    async with two(server, tmp_path, **BRIEF, orphan_seconds=1.0) as [
        (leader, process),
        (follower, _),
    ]:
        ours, theirs = (server.store.create(pod_object(name, **BIG)) for name in ("p", "q"))
        server.faults.add(late)
        async with anyio.create_task_group() as group:

            async def bind() -> None:
                answers.append(await leader.bind(ours, "n0"))

            async def under_way() -> bool:
                return late.hits > 0

            group.start_soon(bind)
            await until(under_way)
            pause(process)
            await until_leads(follower)
            assert await follower.bind(theirs, "n0") == "", "on the very devices"
            assert not answers
            resume(process)

        assert answers != [""]
        assert "not the leader" in answers[0]

        async def tidy() -> bool:
            return not has_record(server, "p")

        await until(tidy)
        assert server.store.get("pods", "p")["spec"].get("nodeName") is None
        assert server.store.get("pods", "q")["spec"]["nodeName"] == "n0"
        assert memory_given(server) == {("n0", "GPU-n0-0"): 30_000, ("n0", "GPU-n0-1"): 30_000}
        assert await role(leader) == "follower"
        assert "not the leader" in (await leader.filter(UNBOUND, ["n1"]))["Error"]


async def test_the_controller_beside_the_leading_scheduler_leads(
    server: ApiServer, tmp_path: Path
) -> None:
    def hold(holder: str) -> None:
        found = server.store.find("leases", "hami-scheduler")
        spec = {"holderIdentity": holder, "leaseDurationSeconds": 3600}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        meta = {"name": "hami-scheduler", "namespace": "default"}
        if found is None:
            server.store.create({**body, "metadata": meta, "spec": spec})
        else:
            server.store.update({**found, "spec": {**found["spec"], **spec}})

    hold("x-10_a")
    beside = {"scheduler_lease_name": "hami-scheduler"}
    settings = {
        name: candidate_settings(server, tmp_path / name, identity=name, **beside)
        for name in ("x-1", "x-10")
    }
    async with (
        controller_process(settings["x-1"], tmp_path / "x-1") as (one, _),
        controller_process(settings["x-10"], tmp_path / "x-10") as (ten, _),
    ):
        await until_leads(ten)
        assert await role(one) == "follower", "x-1 is not x-10"
        hold("x-1_b")
        await until_leads(one)
        assert await role(ten) == "follower"
        hold("elsewhere_c")

        async def nobody() -> bool:
            spec = server.store.get("leases", "hami-controller")["spec"]
            return (await role(one), spec["holderIdentity"]) == ("follower", "")

        await until(nobody)
        assert "nobody is" in (await one.filter(UNBOUND, ["n0"]))["Error"]


async def test_each_says_its_role_on_its_own_pod(server: ApiServer, tmp_path: Path) -> None:
    names = ["hami-a", "hami-b"]
    for name in names:
        server.store.create(pod_object(name, gpus=0, memory=None))
    settings = [candidate_settings(server, tmp_path / name) for name in names]
    variables = [{"POD_NAME": name, "POD_NAMESPACE": "default"} for name in names]

    def labels() -> list[str]:
        pods = [server.store.get("pods", name)["metadata"] for name in names]
        return [(pod.get("labels") or {}).get(codec.ROLE_LABEL, "") for pod in pods]

    async with controller_process(settings[0], tmp_path / names[0], environment=variables[0]) as (
        first,
        process,
    ):
        await until_leads(first)
        async with controller_process(
            settings[1], tmp_path / names[1], environment=variables[1]
        ) as (second, _):

            async def told() -> bool:
                return labels() == ["leader", "follower"]

            await until(told)
            pod = server.store.get("pods", names[0])
            assert pod["metadata"]["annotations"][codec.TERM_KEY].endswith("/0")
            process.stop()
            await until_leads(second)
            assert labels()[1] == "leader"
