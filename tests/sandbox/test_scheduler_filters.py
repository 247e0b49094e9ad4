"""The scheduler's own opinion of nodes, in kube-scheduler's words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hami.sandbox.scheduler.cache import Cache, NodeInfo
from hami.sandbox.scheduler.cycle import explain
from hami.sandbox.scheduler.filters import reasons_against, score
from hami.sandbox.scheduler.objects import Node, Pod, decode_node, decode_pod

GPU = "nvidia.com/gpu"


def make_pod(name: str = "a", requests: dict[str, str] | None = None, **spec: Any) -> Pod:
    resources = {"requests": requests or {}, "limits": requests or {}}
    body = {
        "metadata": {"name": name, "uid": name},
        "spec": {"containers": [{"name": "main", "resources": resources}]} | spec,
    }
    return decode_pod(msgspec.Raw(msgspec.json.encode(body)))


def make_node(
    name: str = "n", *, ready: str = "True", labels: dict[str, str] | None = None, **spec: Any
) -> Node:
    body = {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": spec,
        "status": {
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "2", GPU: "8"},
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }
    return decode_node(msgspec.Raw(msgspec.json.encode(body)))


def against(pod: Pod, node: Node, *others: Pod, ignored: frozenset[str] = frozenset()) -> list[str]:
    info = NodeInfo(node=node)
    for other in others:
        info.put(other)
    return reasons_against(pod, info, ignored=ignored)


NO_EXECUTE = [{"key": "k", "value": "v", "effect": "NoExecute"}]
PREFER = [{"key": "k", "effect": "PreferNoSchedule"}]
TOLERATED = [{"key": "k", "operator": "Equal", "value": "v"}]


@pytest.mark.parametrize(
    ("pod", "node", "reasons"),
    [
        pytest.param({}, {}, [], id="fits"),
        pytest.param({}, {"unschedulable": True}, ["node(s) were unschedulable"], id="cordoned"),
        pytest.param(
            {"tolerations": [{"operator": "Exists"}]}, {"unschedulable": True}, [], id="daemon"
        ),
        pytest.param(
            {},
            {"ready": "False"},
            ["node(s) had untolerated taint {node.kubernetes.io/not-ready: }"],
            id="not ready",
        ),
        pytest.param(
            {}, {"taints": NO_EXECUTE}, ["node(s) had untolerated taint {k: v}"], id="tainted"
        ),
        pytest.param({"tolerations": TOLERATED}, {"taints": NO_EXECUTE}, [], id="tolerated"),
        pytest.param({}, {"taints": PREFER}, [], id="a taint that only prefers"),
        pytest.param(
            {"nodeSelector": {"gpu": "on"}},
            {"labels": {"gpu": "off"}},
            ["node(s) didn't match Pod's node affinity/selector"],
            id="selector",
        ),
        pytest.param({"requests": {"cpu": "4100m"}}, {}, ["Insufficient cpu"], id="cpu"),
        pytest.param({"requests": {GPU: "9"}}, {}, [f"Insufficient {GPU}"], id="devices"),
        pytest.param(
            {"requests": {"x.com/y": "1"}}, {}, ["Insufficient x.com/y"], id="unknown resource"
        ),
        pytest.param(
            {"requests": {"cpu": "5", "memory": "9Gi"}},
            {},
            ["Insufficient cpu", "Insufficient memory"],
            id="all resources are named",
        ),
    ],
)
def test_each_check_says_why(pod: dict[str, Any], node: dict[str, Any], reasons: list[str]) -> None:
    assert against(make_pod(**pod), make_node(**node)) == reasons


def test_what_others_hold_counts() -> None:
    other = make_pod("b", {"cpu": "3", GPU: "7"})
    assert against(make_pod(requests={"cpu": "2", GPU: "2"}), make_node(), other) == [
        "Insufficient cpu",
        f"Insufficient {GPU}",
    ]
    assert against(make_pod(), make_node(), other, make_pod("c")) == ["Too many pods"]


def test_what_extenders_manage_is_not_counted() -> None:
    assert against(make_pod(requests={GPU: "9"}), make_node(), ignored=frozenset({GPU})) == []


def test_an_init_container_needs_its_share_beside_sidecars_only() -> None:
    def container(cpu: str, **fields: Any) -> dict[str, Any]:
        return {"name": "x", "resources": {"requests": {"cpu": cpu}}, **fields}

    pod = make_pod(
        initContainers=[container("1", restartPolicy="Always"), container("5")],
        containers=[container("2"), container("1")],
    )
    assert pod.requests == {"cpu": 6000}


def test_the_emptier_node_scores_higher() -> None:
    full = NodeInfo(node=make_node())
    full.put(make_pod("b", {"cpu": "2", "memory": "4Gi"}))
    assert score(make_pod(), full) < score(make_pod(), NodeInfo(node=make_node()))


def test_reasons_are_counted_and_sorted() -> None:
    reasons = [["Too many pods"], ["Insufficient cpu", "Too many pods"]]
    assert explain(3, reasons) == ("0/3 nodes are available: 1 Insufficient cpu, 2 Too many pods.")
    assert explain(3, []) == "0/3 nodes are available:"


def test_an_assumed_pod_counts_until_it_is_forgotten() -> None:
    cache = Cache()
    cache.set_node(make_node())
    pod = make_pod(requests={"cpu": "1"})
    cache.assume(pod, "n")
    assert cache.nodes()[0].requested["cpu"] == 1000
    assert cache.is_assumed("a")
    cache.forget("a")
    assert cache.nodes()[0].requested["cpu"] == 0
    assert not cache.is_assumed("a")


def test_a_pod_that_was_bound_elsewhere_counts_there() -> None:
    cache = Cache()
    for name in ("n", "m"):
        cache.set_node(make_node(name))
    cache.assume(make_pod(requests={"cpu": "1"}), "n")
    cache.confirm(make_pod(requests={"cpu": "1"}, nodeName="m"))
    assert [info.requested.get("cpu", 0) for info in cache.nodes()] == [0, 1000]


def test_pods_of_a_node_that_is_unknown_yet_are_not_lost() -> None:
    cache = Cache()
    cache.confirm(make_pod(requests={"cpu": "1"}, nodeName="n"))
    assert cache.nodes() == []
    cache.set_node(make_node())
    assert cache.nodes()[0].requested["cpu"] == 1000
    cache.remove_node("n")
    cache.forget("a")
    assert cache.nodes() == []
