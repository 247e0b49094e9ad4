"""Writes with preconditions: no write here is ever "the last one wins".

Each write says which version or life of the object it was decided on; where that is over, the
server answers 409 (or its like) and the caller gets ``ConflictError``: read again, decide again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import anyio

from hami.errors import ConflictError
from hami.kube.backoff import Backoff, Delays
from hami.kube.client import JSON_PATCH, MERGE_PATCH, Guard, KubeClient
from hami.kube.resources import ObjectRef
from hami.kube.throttle import Lane
from hami.logs import get_logger

log = get_logger(__name__)

S = TypeVar("S")
C = TypeVar("C")
R = TypeVar("R")

CONFLICT_BACKOFF: Final = Backoff(base_seconds=0.01, cap_seconds=0.5)
"""Others finish their write in milliseconds."""

NOTHING: Final[Mapping[str, str | None]] = {}


async def patch_metadata(
    client: KubeClient,
    ref: ObjectRef,
    *,
    annotations: Mapping[str, str | None] = NOTHING,
    labels: Mapping[str, str | None] = NOTHING,
    resource_version: str | None = None,
    uid: str | None = None,
    lane: Lane = Lane.ROUTINE,
    guard: Guard | None = None,
) -> bytes:
    """Set annotations and labels, or remove those that are None; the object's new JSON.

    Args:
        client: Where to write.
        ref: The object; its uid, if it has one, is a precondition.
        annotations: Changes.
        labels: Changes.
        resource_version: Write only if this is still the object's version.
        uid: Write only if this is still the object's uid, in place of the reference's.
        lane: Whom to wait behind.
        guard: Asked last of all whether to send it still.

    Raises:
        ConflictError: The object changed, or is another one by now.
        NotFoundError: It is gone.
    """
    metadata = _precondition(ref, resource_version, uid)
    if annotations:
        metadata["annotations"] = dict(annotations)
    if labels:
        metadata["labels"] = dict(labels)
    body = {"metadata": metadata}
    return await client.patch(ref.path(), body, content_type=MERGE_PATCH, lane=lane, guard=guard)


async def patch_status(
    client: KubeClient,
    ref: ObjectRef,
    status: Mapping[str, object],
    *,
    resource_version: str | None = None,
    uid: str | None = None,
    lane: Lane = Lane.ROUTINE,
    guard: Guard | None = None,
) -> bytes:
    """Merge into the object's status, under the preconditions of ``patch_metadata``."""
    body = {"metadata": _precondition(ref, resource_version, uid), "status": dict(status)}
    return await client.patch(
        ref.path("status"), body, content_type=MERGE_PATCH, lane=lane, guard=guard
    )


async def json_patch(
    client: KubeClient,
    ref: ObjectRef,
    operations: Sequence[Mapping[str, object]],
    *,
    subresource: str = "",
    lane: Lane = Lane.ROUTINE,
    guard: Guard | None = None,
) -> bytes:
    """Apply the operations, all or none; the object's new JSON. See ``expect`` for preconditions.

    Raises:
        ConflictError: A ``test`` operation failed, or a path that was there is gone.
    """
    return await client.patch(
        ref.path(subresource), list(operations), content_type=JSON_PATCH, lane=lane, guard=guard
    )


def expect(path: str, value: object) -> dict[str, object]:
    """The JSON patch operation that fails the patch unless ``path`` holds ``value``."""
    return {"op": "test", "path": path, "value": value}


def annotation_path(key: str) -> str:
    """The JSON pointer to an annotation."""
    return "/metadata/annotations/" + key.replace("~", "~0").replace("/", "~1")


async def bind(
    client: KubeClient,
    pod: ObjectRef,
    *,
    uid: str,
    node: str,
    resource_version: str | None = None,
    lane: Lane = Lane.URGENT,
    guard: Guard | None = None,
) -> None:
    """Give the pod to the node, once and for all.

    Args:
        client: Where to write.
        pod: What is bound.
        uid: Only this life of it.
        node: Where it will run.
        resource_version: Only if this is still its version.
        lane: Whom to wait behind.
        guard: Asked last of all whether to send it still.

    Raises:
        ConflictError: The pod is bound already (perhaps by this call's lost predecessor: read it),
            has changed, or is another one by now.
        NotFoundError: It is gone.
    """
    metadata = {"name": pod.name, "namespace": pod.namespace, "uid": uid}
    if resource_version is not None:
        metadata["resourceVersion"] = resource_version
    body: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": metadata,
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    }
    await client.post(pod.path("binding"), body, lane=lane, guard=guard)


async def evict(
    client: KubeClient,
    pod: ObjectRef,
    *,
    uid: str,
    dry_run: bool = False,
    lane: Lane = Lane.ROUTINE,
    guard: Guard | None = None,
) -> None:
    """Have the pod end, if its disruption budgets allow.

    Args:
        client: Where to write.
        pod: Who is to go.
        uid: Only this life of it.
        dry_run: Only ask whether it could be.
        lane: Whom to wait behind.
        guard: Asked last of all whether to send it still.

    Raises:
        ThrottledError: A budget forbids it.
        ConflictError: It is another one by now.
        NotFoundError: It is gone.
    """
    options: dict[str, Any] = {"preconditions": {"uid": uid}}
    if dry_run:
        options["dryRun"] = ["All"]
    body: dict[str, Any] = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod.name, "namespace": pod.namespace},
        "deleteOptions": options,
    }
    query = {"dryRun": "All"} if dry_run else None
    await client.post(pod.path("eviction"), body, query=query, lane=lane, guard=guard)


async def nominate(
    client: KubeClient,
    pod: ObjectRef,
    *,
    node: str | None,
    lane: Lane = Lane.ROUTINE,
    guard: Guard | None = None,
) -> None:
    """Say on the pod which node is meant for it, or that none is any more.

    Raises:
        ConflictError: It is another one by now.
        NotFoundError: It is gone.
    """
    await patch_status(client, pod, {"nominatedNodeName": node}, lane=lane, guard=guard)


async def update_with_retry(
    get: Callable[[], Awaitable[S]],
    change: Callable[[S], C | None],
    write: Callable[[C], Awaitable[R]],
    *,
    attempts: int = 5,
    backoff: Backoff = CONFLICT_BACKOFF,
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
) -> R | None:
    """Read, decide, write; again from the reading when somebody else wrote in between.

    Args:
        get: Reads the object.
        change: Decides: what to write, with the version it was decided on; None to leave it.
        write: Writes that.
        attempts: How often to begin.
        backoff: Waits between attempts.
        sleep: How to wait.

    Returns:
        What ``write`` returned; None where there was nothing to write.

    Raises:
        ConflictError: Somebody else wrote first every time.
    """

    async def once() -> R | None:
        wanted = change(await get())
        return None if wanted is None else await write(wanted)

    delays = Delays(backoff)
    for attempt in range(1, attempts):
        try:
            return await once()
        except ConflictError as error:
            delay = delays.after_failure()
            log.debug("write_conflicted", attempt=attempt, seconds=delay, error=str(error))
            await sleep(delay)
    return await once()


def _precondition(ref: ObjectRef, version: str | None, uid: str | None) -> dict[str, Any]:
    fields = {"resourceVersion": version, "uid": uid or ref.uid}
    return {name: value for name, value in fields.items() if value}
