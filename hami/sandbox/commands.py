"""What the command line does with a running sandbox: status, apply, logs, models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from rich.console import Console
from rich.table import Table

from hami.config import KubeSettings
from hami.core import codec
from hami.core.objects import Node, Pod
from hami.core.record import allocation_of
from hami.core.vendor import table as vendor_table
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import CodecError, ConflictError, SandboxError
from hami.kube import client as kube_client
from hami.kube.client import KubeClient
from hami.sandbox import lifecycle
from hami.sandbox.apiserver import kinds
from hami.sandbox.gpu import catalogue

T = TypeVar("T")

VENDORS = vendor_table([NVIDIA])
MERGE_PATCH = "application/merge-patch+json"


class _Items(msgspec.Struct):
    items: list[msgspec.Raw] = []


def settings(place: Path) -> KubeSettings:
    """How to reach the running sandbox's API server.

    Raises:
        SandboxError: None runs here.
    """
    return KubeSettings(kubeconfig=lifecycle.facts(place)["kubeconfig"])


async def status(place: Path) -> dict[str, Any]:
    """Nodes with their devices and what is held of them, and pods, as plain data."""
    facts = lifecycle.facts(place)
    async with kube_client.connect(settings(place)) as client:
        nodes = await _list(client, "/api/v1/nodes", Node)
        pods = await _list(client, "/api/v1/pods", Pod)
    held: dict[str, list[int]] = {}
    for pod in pods:
        for devices in _allocated(pod):
            for device in devices:
                slots_memory_cores = held.setdefault(device.uuid, [0, 0, 0])
                slots_memory_cores[0] += 1
                slots_memory_cores[1] += device.memory
                slots_memory_cores[2] += device.cores
    return {
        "facts": facts,
        "nodes": [
            {
                "name": node.name,
                "devices": [
                    {
                        "uuid": d.uuid,
                        "model": d.model,
                        "healthy": d.healthy,
                        "memory": d.memory,
                        "slots": d.slots,
                        "used_slots": held.get(d.uuid, [0, 0, 0])[0],
                        "used_memory": held.get(d.uuid, [0, 0, 0])[1],
                        "used_cores": held.get(d.uuid, [0, 0, 0])[2],
                    }
                    for d in _devices(node)
                ],
            }
            for node in nodes
        ],
        "pods": [
            {
                "pod": pod.key,
                "phase": pod.status.phase,
                "node": pod.spec.node_name or "",
                "devices": [d.uuid for devices in _allocated(pod) for d in devices],
            }
            for pod in pods
        ],
    }


def show(state: dict[str, Any]) -> None:
    """Print the state as tables."""
    console = Console()
    devices = Table("node", "device", "model", "containers", "memory MiB", "cores %", "healthy")
    for node in state["nodes"]:
        for d in node["devices"]:
            devices.add_row(
                node["name"],
                d["uuid"],
                d["model"],
                f"{d['used_slots']}/{d['slots']}",
                f"{d['used_memory']}/{d['memory']}",
                str(d["used_cores"]),
                "yes" if d["healthy"] else "no",
            )
    pods = Table("pod", "phase", "node", "devices")
    for p in state["pods"]:
        pods.add_row(p["pod"], p["phase"], p["node"], "\n".join(p["devices"]))
    console.print(devices)
    console.print(pods)
    console.print(f"KUBECONFIG={state['facts']['kubeconfig']}")


async def apply(place: Path, file: Path) -> list[str]:
    """Create the objects of a manifest, or change those that exist; one line for each.

    Raises:
        SandboxError: The file is no manifest of known kinds.
        KubeError: The API server refused one; the ones before it are applied.
    """
    documents = _documents(file)
    async with kube_client.connect(settings(place)) as client:
        return [await _apply_one(client, document) for document in documents]


def _documents(file: Path) -> list[Any]:
    try:
        return [d for d in yaml.safe_load_all(file.read_text(encoding="utf-8")) if d]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SandboxError(f"manifest {file}: {error}") from error


async def _apply_one(client: KubeClient, document: Any) -> str:  # noqa: ANN401 - YAML
    if not isinstance(document, dict):
        raise SandboxError(f"manifest: expected an object, met {type(document).__name__}")
    metadata = document.get("metadata") or {}
    collection, shown = _collection(document, metadata.get("namespace") or "default")
    name = metadata.get("name", "")
    try:
        await client.post(collection, msgspec.json.encode(document))
    except ConflictError:
        await client.patch(
            f"{collection}/{name}", msgspec.json.encode(document), content_type=MERGE_PATCH
        )
        return f"{shown}/{name} configured"
    return f"{shown}/{name or metadata.get('generateName', '')} created"


def _collection(document: dict[str, Any], namespace: str) -> tuple[str, str]:
    api_version, kind_name = document.get("apiVersion"), document.get("kind")
    for kind in kinds.KINDS:
        if (kind.api_version, kind.kind) == (api_version, kind_name):
            root = f"/api/{api_version}" if "/" not in str(api_version) else f"/apis/{api_version}"
            scope = f"/namespaces/{namespace}" if kind.namespaced else ""
            return f"{root}{scope}/{kind.plural}", kind.singular
    raise SandboxError(f"manifest: the sandbox has no kind {kind_name!r} in {api_version!r}")


async def logs(place: Path, name: str) -> str:
    """The output of a pod (``POD``, ``NAMESPACE/POD``), of ``controller`` or of a node's agent."""
    own = _own_log(place, name)
    if own is not None:
        return own
    namespace, _, pod = name.rpartition("/")
    async with kube_client.connect(settings(place)) as client:
        path = f"/api/v1/namespaces/{namespace or 'default'}/pods/{pod}/log"
        return (await client.get(path)).decode(errors="replace")


def _own_log(place: Path, name: str) -> str | None:
    log_file = Path(lifecycle.facts(place)["logs"]) / f"{name}.log"
    if "/" in name or not log_file.is_file():
        return None
    return log_file.read_text(encoding="utf-8", errors="replace")


def show_models() -> None:
    """Print the GPU models that simulated nodes can have."""
    table = Table("model", "product", "memory MiB", "SMs", "compute capability")
    for model in catalogue.MODELS.values():
        table.add_row(
            model.key,
            model.product,
            str(model.memory_bytes // 2**20),
            str(model.sm_count),
            ".".join(str(part) for part in model.compute_capability),
        )
    Console().print(table)


async def _list(client: KubeClient, path: str, kind: type[T]) -> list[T]:
    found = msgspec.json.decode(await client.get(path), type=_Items)
    return [msgspec.json.decode(item, type=kind) for item in found.items]


def _allocated(pod: Pod) -> tuple[tuple[Any, ...], ...]:
    if pod.finished:
        return ()
    try:
        allocation = allocation_of(pod, VENDORS)
    except CodecError:
        return ()
    return allocation.containers if allocation else ()


def _devices(node: Node) -> tuple[Any, ...]:
    text = node.annotations.get(NVIDIA.register_key)
    try:
        return codec.decode_register(text, NVIDIA.name) if text else ()
    except CodecError:
        return ()
