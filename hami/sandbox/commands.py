"""What the command line does with a running sandbox: status, apply, logs.

Talks to its API server as any client would; prints nothing (see ``screen``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import msgspec
import yaml

from hami.config import KubeSettings
from hami.core import codec
from hami.core.allocation import Allocation, Charge
from hami.core.device import Device
from hami.core.objects import Node, Pod
from hami.core.record import allocation_of, init_done
from hami.core.vendor import table as vendor_table
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import CodecError, ConflictError, SandboxError
from hami.kube import client as kube_client
from hami.kube.client import KubeClient
from hami.sandbox import lifecycle
from hami.sandbox.apiserver import kinds

VENDORS: Final = vendor_table([NVIDIA])
MERGE_PATCH: Final = "application/merge-patch+json"
MAX_LOG_BYTES: Final = 4 * 2**20
"""How much of a log file's end is shown."""

T = TypeVar("T")


class _Items(msgspec.Struct):
    items: list[msgspec.Raw] = []


class _Condition(msgspec.Struct):
    type: str = ""
    message: str = ""


class _Status(msgspec.Struct):
    message: str = ""
    conditions: list[_Condition] = []


class _Told(msgspec.Struct):
    """What a pod's status says in words."""

    status: _Status = msgspec.field(default_factory=_Status)


def settings(place: Path) -> KubeSettings:
    """How to reach the running sandbox's API server.

    Raises:
        SandboxError: None runs here.
    """
    return KubeSettings(kubeconfig=lifecycle.facts(place)["kubeconfig"])


async def status(place: Path) -> dict[str, Any]:
    """Nodes with their devices and what is held of them, and pods, as plain data.

    Memory is in MiB, cores in percent of a device.
    """
    facts = lifecycle.facts(place)
    async with kube_client.connect(settings(place)) as client:
        nodes = [_decoded(raw, Node) for raw in await _list(client, "/api/v1/nodes")]
        found = await _list(client, "/api/v1/pods")
    pods = [(_decoded(raw, Pod), _message(raw)) for raw in found]
    held: dict[str, Charge] = {}
    for pod, _ in pods:
        allocation = _allocation(pod)
        charges = allocation.charges(init_done=init_done(pod)) if allocation else {}
        for uuid, charge in charges.items():
            held[uuid] = held.get(uuid, Charge()) + charge
    return {
        "facts": facts,
        "nodes": [
            {
                "name": node.name,
                "devices": [_device(d, held.get(d.uuid, Charge())) for d in _devices(node)],
            }
            for node in nodes
        ],
        "pods": [
            {
                "pod": pod.key,
                "phase": pod.status.phase,
                "node": pod.spec.node_name or "",
                "message": message,
                "devices": list(_shares(pod)),
            }
            for pod, message in pods
        ],
    }


def _device(device: Device, charge: Charge) -> dict[str, Any]:
    return {
        "uuid": device.uuid,
        "model": device.model,
        "healthy": device.healthy,
        "memory": device.memory,
        "slots": device.slots,
        "used_slots": charge.slots,
        "used_memory": charge.memory,
        "used_cores": charge.cores,
    }


def _shares(pod: Pod) -> Iterator[dict[str, Any]]:
    allocation = _allocation(pod)
    for number, devices in enumerate(allocation.containers if allocation else ()):
        for device in devices:
            yield {
                "container": number,
                "uuid": device.uuid,
                "memory": device.memory,
                "cores": device.cores,
            }


def _message(raw: msgspec.Raw) -> str:
    """Why the pod failed, or why it is still waiting for a place; empty where all is well."""
    status = _decoded(raw, _Told).status
    waiting = (c.message for c in status.conditions if c.type == "PodScheduled")
    return status.message or next(waiting, "")


async def apply(place: Path, file: Path, *, say: Callable[[str], object]) -> None:
    """Create the objects of a manifest, or change those that exist; says one line for each.

    Raises:
        SandboxError: The file is no manifest of known kinds; nothing was applied.
        KubeError: The API server refused one; the ones before it are applied.
    """
    objects = [(document, *_collection(document)) for document in _documents(file)]
    async with kube_client.connect(settings(place)) as client:
        for document, collection, shown in objects:
            say(await _apply_one(client, document, collection, shown))


def _documents(file: Path) -> list[dict[str, Any]]:
    """The objects of the file, lists taken apart."""
    try:
        found = [d for d in yaml.safe_load_all(file.read_text(encoding="utf-8")) if d is not None]
        msgspec.json.encode(found)
    except OSError as error:
        raise SandboxError(f"manifest {file}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError, TypeError, RecursionError) as error:
        raise SandboxError(f"manifest {file}: {' '.join(str(error).split())}") from error
    objects: list[dict[str, Any]] = []
    for document in found:
        if isinstance(document, dict) and document.get("kind") == "List":
            objects += document.get("items") or ()
        else:
            objects.append(document)
    if not objects:
        raise SandboxError(f"manifest {file}: expected at least one object, met none")
    return objects


def _collection(document: Any) -> tuple[str, str]:  # noqa: ANN401 - YAML
    """Where objects of this kind are created, and what one is called in output."""
    if not isinstance(document, dict):
        raise SandboxError(f"manifest: expected an object, met {type(document).__name__}")
    api_version, kind_name = document.get("apiVersion"), document.get("kind")
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not (metadata.get("name") or metadata.get("generateName")):
        raise SandboxError(f"manifest: {kind_name}: expected metadata with a name, met none")
    namespace = quote(str(metadata.get("namespace") or "default"), safe="")
    for kind in kinds.KINDS:
        if (kind.api_version, kind.kind) == (api_version, kind_name):
            root = f"/api/{api_version}" if "/" not in str(api_version) else f"/apis/{api_version}"
            scope = f"/namespaces/{namespace}" if kind.namespaced else ""
            return f"{root}{scope}/{kind.plural}", kind.singular
    raise SandboxError(f"manifest: the sandbox has no kind {kind_name!r} in {api_version!r}")


async def _apply_one(
    client: KubeClient, document: dict[str, Any], collection: str, shown: str
) -> str:
    name, body = document["metadata"].get("name"), msgspec.json.encode(document)
    try:
        created = _decoded(msgspec.Raw(await client.post(collection, body)), Pod)
    except ConflictError:
        if not name:
            raise
        path = f"{collection}/{quote(str(name), safe='')}"
        await client.patch(path, body, content_type=MERGE_PATCH)
        return f"{shown}/{name} configured"
    return f"{shown}/{created.metadata.name} created"


async def logs(place: Path, name: str, *, container: str | None = None) -> str:
    """The output of a pod (``POD``, ``NAMESPACE/POD``), of ``controller`` or of a node's agent.

    Raises:
        SandboxError: No sandbox runs here.
        KubeError: There is no such pod or container, or the pod has several and none was named.
    """
    own = _own_log(place, name)
    if own is not None and container is None:
        return own
    namespace, _, pod = name.rpartition("/")
    where = f"{quote(namespace or 'default', safe='')}/pods/{quote(pod, safe='')}/log"
    query = f"?{urlencode({'container': container})}" if container else ""
    async with kube_client.connect(settings(place)) as client:
        path = f"/api/v1/namespaces/{where}{query}"
        return (await client.get(path)).decode(errors="replace")


def _own_log(place: Path, name: str) -> str | None:
    log_file = Path(lifecycle.facts(place)["logs"]) / f"{name}.log"
    if "/" in name or not log_file.is_file():
        return None
    with log_file.open("rb") as file:
        file.seek(max(0, log_file.stat().st_size - MAX_LOG_BYTES))
        return file.read(MAX_LOG_BYTES).decode(errors="replace")


async def _list(client: KubeClient, path: str) -> list[msgspec.Raw]:
    return msgspec.json.decode(await client.get(path), type=_Items).items


def _decoded(raw: msgspec.Raw, kind: type[T]) -> T:
    return msgspec.json.decode(raw, type=kind)


def _allocation(pod: Pod) -> Allocation | None:
    """What the pod holds; None where it is not bound, has ended, or cannot be understood."""
    if pod.finished or not pod.spec.node_name:
        return None
    try:
        return allocation_of(pod, VENDORS)
    except CodecError:
        return None


def _devices(node: Node) -> tuple[Device, ...]:
    text = node.annotations.get(NVIDIA.register_key)
    try:
        return codec.decode_register(text, NVIDIA.name) if text else ()
    except CodecError:
        return ()
