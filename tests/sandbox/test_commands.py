"""What the command line does with a running sandbox, against its real API server."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hami.core import codec
from hami.core.allocation import ContainerDevice
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import KubeError, NotFoundError, SandboxError
from hami.sandbox import commands, lifecycle, screen
from hami.sandbox.apiserver import ApiServer, LogQuery
from tests.support.builders import given, make_devices
from tests.support.sandbox import short_directory


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A state directory with an API server behind it, and nothing else."""

    place: Path
    api: ApiServer


@asynccontextmanager
async def running() -> AsyncIterator[Cluster]:
    with short_directory() as place, lifecycle.claim(place):
        async with ApiServer().running() as api:
            kubeconfig = place / "kubeconfig"
            kubeconfig.write_text(api.kubeconfig())
            facts = {"kubeconfig": str(kubeconfig), "logs": str(place / "logs")}
            lifecycle.announce(place, facts | {"isolation": "plain", "metrics": "http://x/metrics"})
            yield Cluster(place=place, api=api)


async def apply(cluster: Cluster, *documents: Any) -> list[str]:
    """What is said when these are applied."""
    file = cluster.place / "manifest.yaml"
    file.write_text("\n---\n".join(json.dumps(document) for document in documents))
    said: list[str] = []
    await commands.apply(cluster.place, file, say=said.append)
    return said


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


async def test_apply_creates_and_later_changes() -> None:
    async with running() as cluster:
        assert await apply(cluster, config_map("a", x="1", y="2")) == ["configmap/a created"]
        assert await apply(cluster, config_map("a", x="3")) == ["configmap/a configured"]

        assert cluster.api.store.get("configmaps", "a")["data"] == {"x": "3", "y": "2"}


async def test_apply_takes_lists_namespaces_and_generated_names() -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}
    elsewhere = config_map("b")
    elsewhere["metadata"] = {"namespace": "team", "generateName": "b-"}
    several = {"apiVersion": "v1", "kind": "List", "items": [config_map("a"), elsewhere]}

    async with running() as cluster:
        said = await apply(cluster, namespace, None, several)

        (made,) = cluster.api.store.list("configmaps", "team")
        assert said[:2] == ["namespace/team created", "configmap/a created"]
        assert said[2] == f"configmap/{made['metadata']['name']} created"


async def test_refused_object_ends_apply_after_those_before_it_were_told() -> None:
    bad = config_map("Not A Name")
    said: list[str] = []

    async with running() as cluster:
        file = cluster.place / "manifest.yaml"
        file.write_text(json.dumps({"kind": "List", "items": [config_map("a"), bad]}))
        with pytest.raises(KubeError, match="Not A Name"):
            await commands.apply(cluster.place, file, say=said.append)

    assert said == ["configmap/a created"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("", "at least one object", id="nothing"),
        pytest.param("- a", "met list", id="no object"),
        pytest.param("{kind: Pod, apiVersion: v1}", "met none", id="no name"),
        pytest.param("{kind: Pod, apiVersion: v1, metadata: x}", "met none", id="odd metadata"),
        pytest.param("{kind: P, apiVersion: v1, metadata: {name: a}}", "'P'", id="unknown kind"),
        pytest.param("{kind: List, items: [1]}", "met int", id="list of something else"),
        pytest.param("a: &a [*a]", "recursion", id="recursive"),
        pytest.param("{", "flow", id="no YAML"),
    ],
)
async def test_manifest_that_is_none_is_refused_in_one_line(text: str, told: str) -> None:
    async with running() as cluster:
        file = cluster.place / "manifest.yaml"
        file.write_text(f"{json.dumps(config_map('first'))}\n---\n{text}" if text else "")

        with pytest.raises(SandboxError, match=told) as error:
            await commands.apply(cluster.place, file, say=pytest.fail)

        assert "\n" not in str(error.value)
        assert cluster.api.store.list("configmaps", "default") == []


async def read_log(
    namespace: str, name: str, container: str, query: LogQuery
) -> AsyncGenerator[bytes, None]:
    async def lines() -> AsyncGenerator[bytes, None]:
        yield f"{namespace}/{name}/{container}\xff\n".encode("latin-1")

    return lines()


def pod(name: str, *, containers: int = 1, namespace: str = "default") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [{"name": f"c{n}", "image": "x"} for n in range(containers)]},
    }


async def test_logs_are_a_pods_or_those_of_the_sandbox_itself() -> None:
    async with running() as cluster:
        cluster.api.log_reader = read_log
        (cluster.place / "logs" / "node-1.log").write_bytes(b"agent\xff\n")
        for name in ("one", "node-1"):
            cluster.api.store.create(pod(name))

        assert await commands.logs(cluster.place, "one") == "default/one/c0\ufffd\n"
        assert await commands.logs(cluster.place, "node-1") == "agent\ufffd\n"
        assert await commands.logs(cluster.place, "default/node-1") == "default/node-1/c0\ufffd\n"
        for name in ("nobody", "../../etc/passwd", "a/b/c"):
            with pytest.raises(NotFoundError):
                await commands.logs(cluster.place, name)


async def test_logs_of_several_containers_need_a_name() -> None:
    async with running() as cluster:
        cluster.api.log_reader = read_log
        cluster.api.store.create(pod("two", containers=2))

        with pytest.raises(KubeError, match=r"choose one of: \[c0 c1\]"):
            await commands.logs(cluster.place, "two")
        assert await commands.logs(cluster.place, "two", container="c1") == "default/two/c1\ufffd\n"


async def test_only_the_end_of_a_long_log_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "MAX_LOG_BYTES", 4)
    async with running() as cluster:
        (cluster.place / "logs" / "controller.log").write_text("0123456789")

        assert await commands.logs(cluster.place, "controller") == "6789"


def node(name: str, register: str) -> dict[str, Any]:
    annotations = {NVIDIA.register_key: register} if register else {}
    return {"kind": "Node", "metadata": {"name": name, "annotations": annotations}}


def holding(name: str, text: str, *, bound: bool = True, phase: str = "Running") -> dict[str, Any]:
    made = pod(name)
    made["metadata"]["annotations"] = {codec.NODE_KEY: "n1", NVIDIA.allocated_key: text}
    made["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
    if bound:
        made["spec"]["nodeName"] = "n1"
    made["status"] = {"phase": phase}
    return made


def encoded(*devices: ContainerDevice) -> str:
    return codec.encode_allocation([devices], NVIDIA.name)


async def state_of_a_small_cluster(cluster: Cluster) -> dict[str, Any]:
    """Two devices, one of them shared by two pods; and much that does not count."""
    first, second = make_devices(2, memory=40_000)
    store = cluster.api.store
    store.create(node("n1", codec.encode_register([first, second])))
    store.create(node("broken", "what?"))
    store.create(node("plain", ""))
    store.create(holding("a", encoded(given(first.uuid, memory=3000, cores=30))))
    store.create(holding("b", encoded(given(first.uuid, memory=1000))))
    store.create(holding("unbound", encoded(given(second.uuid, memory=1)), bound=False))
    store.create(holding("ended", encoded(given(second.uuid, memory=1)), phase="Succeeded"))
    store.create(holding("odd", "what?"))
    waiting = pod("waiting")
    waiting["status"] = {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "message": "no [room]"}],
    }
    store.create(waiting)
    return await commands.status(cluster.place)


async def test_status_counts_what_bound_and_living_pods_hold() -> None:
    async with running() as cluster:
        state = await state_of_a_small_cluster(cluster)

    devices = {n["name"]: n["devices"] for n in state["nodes"]}
    assert devices["broken"] == devices["plain"] == []
    used = [(d["used_slots"], d["used_memory"], d["used_cores"]) for d in devices["n1"]]
    assert used == [(2, 4000, 30), (0, 0, 0)]
    pods = {p["pod"]: p for p in state["pods"]}
    assert [d["memory"] for d in pods["default/a"]["devices"]] == [3000]
    assert pods["default/odd"]["devices"] == []
    assert pods["default/waiting"]["message"] == "no [room]"


async def test_status_is_readable_at_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    async with running() as cluster:
        state = await state_of_a_small_cluster(cluster)
        capsys.readouterr()
        screen.show(state)
        kubeconfig = cluster.place / "kubeconfig"

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in "".join(lines)
    text = "\n".join(lines)
    for part in ("4000/40000", "30 %", "no [room]", f"export KUBECONFIG={kubeconfig}"):
        assert part in text


async def test_status_is_plain_json() -> None:
    async with running() as cluster:
        state = await state_of_a_small_cluster(cluster)

    assert json.loads(json.dumps(state)) == state
