"""The clients that people use: kubectl itself, and kubernetes-asyncio."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml
from anyio.streams.buffered import BufferedByteReceiveStream
from kubernetes_asyncio import client, config, watch

from hami.sandbox.apiserver import ApiServer, LogQuery
from tests.support.kubectl import KUBECTL, Kubectl
from tests.support.rest import Rest, make_pod

MANIFEST = yaml.safe_dump(make_pod(labels={"app": "web"}, limits={"example.com/gpu": 1}))


@dataclass(frozen=True)
class Cluster:
    server: ApiServer
    kubectl: Kubectl


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with ApiServer().running() as server:
        yield Cluster(server, Kubectl.configured(tmp_path, server.kubeconfig()))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the store announces nothing
        await anyio.sleep(0.01)


def seed_node(server: ApiServer) -> None:
    server.store.create(
        {
            "kind": "Node",
            "metadata": {"name": "n1", "labels": {"node-role.kubernetes.io/gpu": ""}},
            "status": {
                "capacity": {"example.com/gpu": "8"},
                "allocatable": {"example.com/gpu": "8"},
                "conditions": [{"type": "Ready", "status": "True"}],
                "nodeInfo": {"kubeletVersion": "v1.33.0"},
            },
        }
    )


def run_pod(server: ApiServer) -> None:
    pod = server.store.get("pods", "web")
    pod["spec"]["nodeName"] = "n1"
    state = {"name": "main", "ready": True, "restartCount": 0, "state": {"running": {}}}
    conditions = [{"type": "Ready", "status": "True"}]
    pod["status"] |= {"phase": "Running", "containerStatuses": [state], "conditions": conditions}
    server.store.update(pod)


async def test_kubectl_applies_creates_and_updates_objects(cluster: Cluster) -> None:
    kubectl = cluster.kubectl

    assert "pod/web created" in await kubectl.run("apply", "-f", "-", stdin=MANIFEST)
    changed = MANIFEST.replace("app: web", "tier: front").replace("app:1", "app:2")
    assert "pod/web configured" in await kubectl.run("apply", "-f", "-", stdin=changed)

    pod = cluster.server.store.get("pods", "web")
    assert pod["metadata"]["labels"] == {"tier": "front"}
    assert pod["spec"]["containers"][0]["image"] == "example.com/app:2"


async def test_kubectl_is_told_of_a_misspelt_field(cluster: Cluster) -> None:
    wrong = MANIFEST.replace("limits:", "limts:")

    error = await cluster.kubectl.run("apply", "-f", "-", stdin=wrong, expect=1)

    assert 'unknown field "spec.containers[0].resources.limts"' in error


async def test_kubectl_is_told_that_server_side_apply_is_not_there(cluster: Cluster) -> None:
    error = await cluster.kubectl.run("apply", "--server-side", "-f", "-", stdin=MANIFEST, expect=1)

    assert "Server-side apply not available" in error


async def test_kubectl_prints_pods_and_nodes(cluster: Cluster) -> None:
    seed_node(cluster.server)
    cluster.server.store.create({**make_pod(), "status": {"phase": "Pending"}})
    run_pod(cluster.server)

    pods = await cluster.kubectl.run("get", "pods", "-o", "wide")
    nodes = await cluster.kubectl.run("get", "nodes")
    written = yaml.safe_load(await cluster.kubectl.run("get", "pod", "web", "-o", "yaml"))

    assert pods.split("\n")[0].split()[:5] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert pods.split("\n")[1].split()[:4] == ["web", "1/1", "Running", "0"]
    assert "n1" in pods
    assert nodes.split("\n")[1].split()[:3] == ["n1", "Ready", "gpu"]
    assert written == cluster.server.store.get("pods", "web")


async def test_kubectl_describes_a_pod_with_its_events(cluster: Cluster) -> None:
    pod = cluster.server.store.create(make_pod())
    involved = {"kind": "Pod", "namespace": "default", "name": "web", "uid": pod["metadata"]["uid"]}
    now = cluster.server.store.timestamp()
    event = {"kind": "Event", "metadata": {"name": "web.1"}, "involvedObject": involved}
    said = {"type": "Warning", "reason": "FailedScheduling", "message": "no GPU is free"}
    cluster.server.store.create({**event, **said, "firstTimestamp": now, "lastTimestamp": now})

    described = await cluster.kubectl.run("describe", "pod", "web")
    events = await cluster.kubectl.run("get", "events")

    assert "FailedScheduling" in described
    assert "no GPU is free" in described
    assert "pod/web" in events


async def test_kubectl_describes_a_node_with_its_pods(cluster: Cluster) -> None:
    seed_node(cluster.server)
    cluster.server.store.create({**make_pod(node="n1"), "status": {"phase": "Running"}})

    described = await cluster.kubectl.run("describe", "node", "n1")

    assert "Non-terminated Pods:          (1 in total)" in described
    assert "example.com/gpu" in described


async def test_kubectl_annotates_labels_and_patches(cluster: Cluster) -> None:
    cluster.server.store.create(make_pod())

    await cluster.kubectl.run("annotate", "pod", "web", "a=b")
    await cluster.kubectl.run("label", "pod", "web", "c=d")
    await cluster.kubectl.run("patch", "pod", "web", "-p", '{"metadata":{"labels":{"e":"f"}}}')
    await cluster.kubectl.run("label", "pod", "web", "c-")

    metadata = cluster.server.store.get("pods", "web")["metadata"]
    assert metadata["annotations"] == {"a": "b"}
    assert metadata["labels"] == {"e": "f"}


async def test_kubectl_deletes_and_waits_until_the_kubelet_is_done(cluster: Cluster) -> None:
    server = cluster.server
    server.store.create({**make_pod(node="n1"), "status": {"phase": "Running"}})

    async def kubelet() -> None:
        with anyio.fail_after(20):
            await until(lambda: "deletionTimestamp" in server.store.get("pods", "web")["metadata"])
            async with Rest.connect(server) as rest:
                await rest.delete("/api/v1/namespaces/default/pods/web?gracePeriodSeconds=0")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kubelet)
        answer = await cluster.kubectl.run("delete", "pod", "web")

    assert 'pod "web" deleted' in answer


async def test_kubectl_watches(cluster: Cluster) -> None:
    store = cluster.server.store
    store.create({**make_pod(labels={"app": "web"}), "status": {"phase": "Pending"}})
    command = [KUBECTL, "get", "pods", "-w", "--no-headers", "-l", "app=web"]

    environment = cluster.kubectl.environment()
    async with await anyio.open_process(command, env=environment) as process:
        assert process.stdout is not None
        output = BufferedByteReceiveStream(process.stdout)
        try:
            with anyio.fail_after(20):
                first = await output.receive_until(b"\n", 1000)
                store.update({**store.get("pods", "web"), "status": {"phase": "Running"}})
                second = await output.receive_until(b"\n", 1000)
        finally:
            process.terminate()

    assert b"Pending" in first
    assert b"Running" in second


async def test_kubectl_waits_for_a_condition(cluster: Cluster) -> None:
    async with Rest.connect(cluster.server) as rest:
        await rest.post("/api/v1/namespaces/default/pods", make_pod())

    async def become_ready() -> None:
        with anyio.fail_after(20):
            await until(lambda: cluster.server.requests["watch", "pods"] > 0)
        run_pod(cluster.server)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(become_ready)
        answer = await cluster.kubectl.run("wait", "--for=condition=Ready", "pod/web")

    assert "condition met" in answer


async def test_kubectl_prints_logs(cluster: Cluster) -> None:
    cluster.server.store.create(make_pod())

    async def read(
        namespace: str, pod: str, container: str, query: LogQuery
    ) -> AsyncGenerator[bytes, None]:
        async def lines() -> AsyncGenerator[bytes, None]:
            for number in range(query.tail_lines or 3):
                yield f"{container} {number}\n".encode()

        return lines()

    cluster.server.log_reader = read

    assert await cluster.kubectl.run("logs", "web") == "main 0\nmain 1\nmain 2\n"
    assert await cluster.kubectl.run("logs", "web", "--tail", "1") == "main 0\n"


async def test_kubectls_own_commands_create_objects(cluster: Cluster) -> None:
    kubectl = cluster.kubectl

    await kubectl.run("create", "namespace", "team")
    await kubectl.run("create", "quota", "q", "-n", "team", "--hard=pods=10")
    await kubectl.run("create", "configmap", "c", "--from-literal=a=b")
    await kubectl.run("create", "priorityclass", "low", "--value=-10")

    store = cluster.server.store
    assert store.get("namespaces", "team")["status"]["phase"] == "Active"
    assert store.get("quota", "q", "team")["spec"]["hard"] == {"pods": "10"}
    assert store.get("configmaps", "c")["data"] == {"a": "b"}
    assert store.get("priorityclasses", "low")["value"] == -10
    assert await kubectl.run("auth", "can-i", "create", "pods") == "yes\n"


async def test_kubectl_drains_a_node(cluster: Cluster) -> None:
    seed_node(cluster.server)
    cluster.server.store.create({**make_pod(node="n1"), "status": {"phase": "Failed"}})

    await cluster.kubectl.run("drain", "n1", "--force")

    assert cluster.server.store.find("pods", "web") is None
    assert cluster.server.store.get("nodes", "n1")["spec"]["unschedulable"] is True


async def test_kubectl_is_told_what_is_not_there(cluster: Cluster) -> None:
    assert "Metrics API not available" in await cluster.kubectl.run("top", "pods", expect=1)
    assert "doesn't have a resource type" in await cluster.kubectl.run(
        "get", "deployments", expect=1
    )


async def test_kubernetes_asyncio_lists_watches_and_patches(
    cluster: Cluster, tmp_path: Path
) -> None:
    kubeconfig = tmp_path / "other"
    kubeconfig.write_text(cluster.server.kubeconfig())
    configuration = client.Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=configuration)

    async with client.ApiClient(configuration) as api:
        core: Any = client.CoreV1Api(api)
        await core.create_namespaced_pod("default", make_pod())
        listed = await core.list_namespaced_pod("default")
        version = listed.metadata.resource_version
        patch = [{"op": "add", "path": "/metadata/annotations", "value": {"a": "b"}}]
        await core.patch_namespaced_pod("web", "default", patch)
        await core.patch_namespaced_pod("web", "default", {"metadata": {"labels": {"c": "d"}}})
        binding = {"metadata": {"name": "web"}, "target": {"kind": "Node", "name": "n1"}}
        await core.create_namespaced_pod_binding("web", "default", binding, _preload_content=False)
        seen = []
        with anyio.fail_after(20):
            async with watch.Watch() as watcher:
                stream = watcher.stream(
                    core.list_namespaced_pod, "default", resource_version=version
                )
                async for event in stream:
                    seen.append((event["type"], event["object"].spec.node_name))
                    if len(seen) == 3:
                        break
        await core.delete_namespaced_pod("web", "default", grace_period_seconds=0)

    assert seen == [("MODIFIED", None), ("MODIFIED", None), ("MODIFIED", "n1")]
    assert cluster.server.store.find("pods", "web") is None


async def test_kubernetes_asyncio_sees_refusals_as_statuses(cluster: Cluster) -> None:
    configuration = client.Configuration(host=cluster.server.url)
    async with client.ApiClient(configuration) as api:
        with pytest.raises(client.ApiException) as caught:
            await client.CoreV1Api(api).read_namespaced_pod("none", "default")

    assert caught.value.status == 404
    assert json.loads(caught.value.body or b"")["reason"] == "NotFound"
