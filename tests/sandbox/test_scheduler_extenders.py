"""The scheduler stand-in speaks to extenders as kube-scheduler does."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
import yaml

from hami.kube.client import KubeClient, connect
from hami.kube.resources import NODES, PODS
from hami.sandbox.apiserver import ApiServer
from hami.sandbox.scheduler import Scheduler, load_config
from tests.support.cluster import open_cluster
from tests.support.extender import ScriptedExtender
from tests.support.kube import SOON
from tests.support.node import eventually

CARD = "example.com/card"
NAME = "test-scheduler"


@dataclass(slots=True)
class Bench:
    server: ApiServer
    client: KubeClient
    extender: ScriptedExtender

    async def add_node(self, name: str, *, cpu: str = "8", **fields: Any) -> None:
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name},
            "status": {
                "allocatable": {"cpu": cpu, "memory": "64Gi", "pods": "110"},
                "capacity": {"cpu": cpu, "memory": "64Gi", "pods": "110"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        } | fields
        await self.client.post(NODES.path(), node)

    async def add_pod(self, name: str, *, cards: int = 1, cpu: str = "", **spec: Any) -> None:
        limits = ({CARD: str(cards)} if cards else {}) | ({"cpu": cpu} if cpu else {})
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "schedulerName": NAME,
                "containers": [{"name": "main", "image": "none", "resources": {"limits": limits}}],
            }
            | spec,
        }
        await self.client.post(PODS.path("default"), pod)

    def find(self, name: str) -> dict[str, Any]:
        pods = self.server.store.list("pods")
        return next((pod for pod in pods if pod["metadata"]["name"] == name), {})

    async def bound(self, name: str, node: str) -> None:
        await eventually(
            lambda: self.find(name).get("spec", {}).get("nodeName") == node,
            lambda: self.find(name),
        )

    async def refused(self, name: str, message: str) -> dict[str, Any]:
        """The pod's condition, once it says this."""

        def said() -> dict[str, Any] | None:
            for each in self.find(name).get("status", {}).get("conditions", []):
                if each["type"] == "PodScheduled" and message in each.get("message", ""):
                    found: dict[str, Any] = each
                    return found
            return None

        return await eventually(said, lambda: self.find(name).get("status"))

    async def event(self, reason: str) -> dict[str, Any]:
        def said() -> dict[str, Any] | None:
            events = self.server.store.list("events")
            return next((event for event in events if event["reason"] == reason), None)

        return await eventually(said, lambda: self.server.store.list("events"))

    async def calls(self, verb: str, count: int) -> list[dict[str, Any]]:
        """What the extender was asked, once it was asked so often."""
        await eventually(
            lambda: len(self.extender.asked(verb)) >= count, lambda: self.extender.calls
        )
        return self.extender.asked(verb)


@asynccontextmanager
async def open_bench(
    configure: Callable[[ScriptedExtender], None] = lambda extender: None,
    *,
    nodes: tuple[str, ...] = ("n1", "n2"),
    site: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    **extender_fields: Any,
) -> AsyncIterator[Bench]:
    """A cluster with these nodes, a scheduler, and an extender that manages cards."""
    async with (
        open_cluster() as cluster,
        connect(cluster.settings) as client,
        ScriptedExtender(client).serving(**(site or {})) as extender,
    ):
        configure(extender)
        bench = Bench(cluster.sandbox, client, extender)
        for name in nodes:
            await bench.add_node(name)
        settings = {
            "urlPrefix": extender.url,
            "filterVerb": "filter",
            "prioritizeVerb": "prioritize",
            "bindVerb": "bind",
            "weight": 1,
            "nodeCacheCapable": True,
            "managedResources": [{"name": CARD, "ignoredByScheduler": True}],
        }
        document = {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "podInitialBackoffSeconds": 0.05,
            "podMaxBackoffSeconds": 0.2,
            "profiles": [{"schedulerName": NAME}],
            "extenders": [settings | extender_fields],
        }
        scheduler = Scheduler(client, load_config(yaml.safe_dump(document | (config or {}))))
        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(SOON):
                await tasks.start(scheduler.run)
            yield bench
            tasks.cancel_scope.cancel()


def only(*names: str) -> Callable[[dict[str, Any]], object]:
    """Passes these nodes and says why not of the others."""

    def answer(asked: dict[str, Any]) -> object:
        return {
            "NodeNames": [name for name in asked["NodeNames"] if name in names],
            "FailedNodes": {name: "card busy" for name in asked["NodeNames"] if name not in names},
            "Error": "",
        }

    return answer


async def test_a_pod_is_filtered_scored_and_bound_by_the_extender() -> None:
    async with open_bench() as bench:
        await bench.add_pod("a")
        await bench.calls("bind", 1)
        [asked] = bench.extender.asked("filter")
        [bind] = bench.extender.asked("bind")
        pod = bench.find("a")
        assert asked["Pod"]["metadata"]["uid"] == pod["metadata"]["uid"]
        assert sorted(asked["NodeNames"]) == ["n1", "n2"]
        assert asked["Nodes"] is None
        assert bind == {
            "PodName": "a",
            "PodNamespace": "default",
            "PodUID": pod["metadata"]["uid"],
            "Node": "n1",
        }
        assert len(bench.extender.asked("prioritize")) == 1
        await bench.bound("a", "n1")
        scheduled = await bench.event("Scheduled")
        assert scheduled["message"] == "Successfully assigned default/a to n1"


async def test_the_whole_nodes_are_sent_to_an_extender_without_a_cache() -> None:
    def configure(extender: ScriptedExtender) -> None:
        extender.filter = lambda asked: {
            "nodes": {"items": [each for each in asked["Nodes"]["items"]
                                if each["metadata"]["name"] == "n2"]}
        }  # fmt: skip

    async with open_bench(configure, nodeCacheCapable=False) as bench:
        await bench.add_pod("a")
        await bench.bound("a", "n2")
        [asked] = bench.extender.asked("filter")
        assert asked["NodeNames"] is None
        assert asked["Nodes"]["items"][0]["status"]["allocatable"]["cpu"] == "8"


async def test_scores_decide_and_are_weighted() -> None:
    def configure(extender: ScriptedExtender) -> None:
        extender.prioritize = lambda asked: [
            {"Host": "n1", "Score": 1}, {"Host": "n2", "Score": 10}, {"Host": "nobody", "Score": 9}
        ]  # fmt: skip

    async with open_bench(configure) as bench:
        await bench.add_pod("a")
        await bench.bound("a", "n2")


async def test_one_node_left_needs_no_score() -> None:
    async with open_bench(lambda extender: setattr(extender, "filter", only("n2"))) as bench:
        await bench.add_pod("a")
        await bench.bound("a", "n2")
        assert bench.extender.asked("prioritize") == []


async def test_an_extender_that_gives_no_scores_does_not_stop_the_pod() -> None:
    def configure(extender: ScriptedExtender) -> None:
        extender.prioritize = lambda asked: {"Error": "no scores today"}

    async with open_bench(configure) as bench:
        await bench.add_pod("a")
        await bench.bound("a", "n1")


async def test_an_extender_is_not_asked_about_what_it_does_not_manage() -> None:
    async with open_bench() as bench:
        await bench.add_pod("a", cards=0)
        await bench.bound("a", "n1")
        assert bench.extender.calls == []


async def test_the_extender_sees_only_nodes_that_passed_before() -> None:
    async with open_bench(nodes=("n1",)) as bench:
        await bench.add_node("small", cpu="1")
        await bench.add_pod("a", cpu="2")
        await bench.bound("a", "n1")
        assert bench.extender.asked("filter")[0]["NodeNames"] == ["n1"]


async def test_a_pod_that_fits_nowhere_says_why_for_each_node() -> None:
    async with open_bench(lambda extender: setattr(extender, "filter", only())) as bench:
        await bench.add_node("small", cpu="1")
        await bench.add_pod("a", cpu="2")
        message = "0/3 nodes are available: 1 Insufficient cpu, 2 card busy."
        condition = await bench.refused("a", message)
        assert condition["reason"] == "Unschedulable"
        assert condition["status"] == "False"
        event = await bench.event("FailedScheduling")
        assert event["message"] == message
        assert event["type"] == "Warning"


async def test_an_empty_cluster_is_named() -> None:
    async with open_bench(nodes=()) as bench:
        await bench.add_pod("a")
        condition = await bench.refused("a", "no nodes available to schedule pods")
        assert condition["reason"] == "Unschedulable"
        await bench.add_node("n1")
        await bench.bound("a", "n1")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param({"Error": "cache is cold"}, "cache is cold", id="an error in words"),
        pytest.param(
            {"NodeNames": ["n9"]}, "claims a filtered node 'n9' which is not found", id="stranger"
        ),
        pytest.param({"NodeNames": "n1"}, "filter of extender", id="another shape"),
        pytest.param([], "filter of extender", id="another type"),
    ],
)
async def test_an_answer_outside_the_protocol_is_an_error_and_retried(
    answer: object, said: str
) -> None:
    answers = [answer]

    def configure(extender: ScriptedExtender) -> None:
        extender.filter = lambda asked: answers.pop() if answers else only("n1")(asked)

    async with open_bench(configure) as bench:
        await bench.add_pod("a")
        event = await bench.event("FailedScheduling")
        assert said in event["message"]
        await bench.bound("a", "n1")


async def test_keys_are_read_in_any_case() -> None:
    def configure(extender: ScriptedExtender) -> None:
        extender.filter = lambda asked: {"nodenames": ["n2"], "ERROR": "", "failedNodes": None}

    async with open_bench(configure) as bench:
        await bench.add_pod("a")
        await bench.bound("a", "n2")


async def test_a_failing_extender_is_an_error_of_the_scheduler() -> None:
    async with open_bench(lambda extender: setattr(extender, "status", 500)) as bench:
        await bench.add_pod("a")
        condition = await bench.refused("a", "failed filter with extender at URL")
        assert condition["reason"] == "SchedulerError"
        assert "code 500" in condition["message"]
        bench.extender.status = 200
        await bench.bound("a", "n1")


async def test_a_slow_extender_is_given_up() -> None:
    async with open_bench(httpTimeout="50ms") as bench:
        bench.extender.hold = anyio.Event()
        await bench.add_pod("a")
        await bench.refused("a", "context deadline exceeded")
        bench.extender.hold.set()
        await bench.bound("a", "n1")


async def test_an_ignorable_extender_is_passed_over() -> None:
    async with open_bench(ignorable=True) as bench:
        bench.extender.status = 503
        await bench.add_pod("a")
        await bench.bound("a", "n1")


async def test_without_a_bind_verb_the_scheduler_binds() -> None:
    async with open_bench(bindVerb="") as bench:
        await bench.add_pod("a")
        await bench.bound("a", "n1")
        assert bench.extender.asked("bind") == []


async def test_a_refused_bind_is_tried_again_from_the_start() -> None:
    refusals = [{"Error": "node is locked"}]
    async with open_bench() as bench:
        bench.extender.bind = lambda body: refusals.pop() if refusals else {"Error": "still"}
        await bench.add_pod("a")
        await bench.refused("a", "node is locked")
        bench.extender.bind = None
        await bench.bound("a", "n1")
        assert len(bench.extender.asked("filter")) >= 2


async def test_a_slow_bind_does_not_keep_others_waiting() -> None:
    async with open_bench() as bench:
        held = anyio.Event()

        async def bind(body: dict[str, Any]) -> object:
            if body["PodName"] == "slow":
                await held.wait()
            return await original(body)

        original = bench.extender._bind
        bench.extender._bind = bind  # type: ignore[method-assign]
        await bench.add_pod("slow")
        await bench.calls("bind", 1)
        await bench.add_pod("quick")
        await eventually(
            lambda: bench.find("quick")["spec"].get("nodeName"), lambda: bench.find("quick")
        )
        assert "nodeName" not in bench.find("slow")["spec"]
        held.set()
        await eventually(
            lambda: bench.find("slow")["spec"].get("nodeName"), lambda: bench.find("slow")
        )


async def test_a_bind_whose_answer_was_lost_is_not_made_twice() -> None:
    async with open_bench(httpTimeout="200ms") as bench:
        lost = anyio.Event()

        async def bind(body: dict[str, Any]) -> object:
            answer = await original(body)
            await lost.wait()
            return answer

        original = bench.extender._bind
        bench.extender._bind = bind  # type: ignore[method-assign]
        await bench.add_pod("a")
        await bench.bound("a", "n1")
        lost_pod = bench.find("a")
        bench.extender._bind = original  # type: ignore[method-assign]
        await bench.add_pod("b")
        await bench.calls("bind", 2)
        lost.set()
        assert [body["PodName"] for body in bench.extender.asked("bind")] == ["a", "b"]
        assert bench.find("a")["metadata"]["uid"] == lost_pod["metadata"]["uid"]


async def test_room_that_is_given_back_is_noticed() -> None:
    async with open_bench(nodes=()) as bench:
        await bench.add_node("n1", cpu="2")
        await bench.add_pod("a", cards=0, cpu="2")
        await bench.bound("a", "n1")
        await bench.add_pod("b", cards=0, cpu="1")
        await bench.refused("b", "0/1 nodes are available: 1 Insufficient cpu.")
        await bench.client.delete(PODS.path("default", "a"), {"gracePeriodSeconds": 0})
        await bench.bound("b", "n1")


async def test_a_pod_that_changes_is_tried_again() -> None:
    async with open_bench(lambda extender: setattr(extender, "filter", only())) as bench:
        await bench.add_pod("a")
        await bench.refused("a", "2 card busy")
        bench.extender.filter = only("n1")
        body = {"metadata": {"annotations": {"changed": "yes"}}}
        await bench.client.patch(PODS.path("default", "a"), body)
        await bench.bound("a", "n1")


async def test_a_node_that_changes_lets_its_pods_be_tried_again() -> None:
    async with open_bench(lambda extender: setattr(extender, "filter", only())) as bench:
        await bench.add_pod("a")
        await bench.refused("a", "2 card busy")
        bench.extender.filter = only("n2")
        body = {"metadata": {"annotations": {"cards": "8"}}}
        await bench.client.patch(NODES.path("", "n2"), body)
        await bench.bound("a", "n2")


async def test_a_gated_pod_waits_for_its_gates() -> None:
    async with open_bench() as bench:
        await bench.add_pod("a", schedulingGates=[{"name": "example.com/quota"}])
        await bench.add_pod("b")
        await bench.bound("b", "n1")
        assert "nodeName" not in bench.find("a")["spec"]
        gone: list[object] = [{"op": "remove", "path": "/spec/schedulingGates"}]
        await bench.client.patch(
            PODS.path("default", "a"), gone, content_type="application/json-patch+json"
        )
        await eventually(lambda: bench.find("a")["spec"].get("nodeName"), lambda: bench.find("a"))


async def test_pods_of_another_scheduler_are_left_alone() -> None:
    async with open_bench() as bench:
        await bench.add_pod("a", schedulerName="somebody-else")
        await bench.add_pod("b")
        await bench.bound("b", "n1")
        assert "nodeName" not in bench.find("a")["spec"]


async def test_an_unchanged_reason_is_written_once() -> None:
    async with open_bench(lambda extender: setattr(extender, "filter", only())) as bench:
        await bench.add_pod("a")
        await bench.refused("a", "2 card busy")
        for round_ in range(3):
            body = {"metadata": {"annotations": {"round": str(round_)}}}
            await bench.client.patch(PODS.path("default", "a"), body)
            await bench.calls("filter", round_ + 2)
        assert bench.server.requests["patch", "pods/status"] == 1


async def test_an_extender_is_reached_over_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    async with open_bench(
        site={"ssl_context": server}, enableHTTPS=True, tlsConfig={"caFile": str(ca_file)}
    ) as bench:
        await bench.add_pod("a")
        await bench.bound("a", "n1")


async def test_an_extender_with_a_strangers_certificate_is_not_trusted(tmp_path: Path) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(server)
    ca_file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(ca_file))
    async with open_bench(
        site={"ssl_context": server}, enableHTTPS=True, tlsConfig={"caFile": str(ca_file)}
    ) as bench:
        await bench.add_pod("a")
        await bench.refused("a", "CERTIFICATE_VERIFY_FAILED")


async def test_an_insecure_extender_needs_no_authority() -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(server)
    async with open_bench(
        site={"ssl_context": server}, enableHTTPS=True, tlsConfig={"insecure": True}
    ) as bench:
        await bench.add_pod("a")
        await bench.bound("a", "n1")
