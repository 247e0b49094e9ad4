"""Writes to a pod what became of its allocation: consumed, given back, failed, ended.

Every write to annotations is one JSON patch that tests what it was decided on, so that neither a
stale watch nor a second writer can make one device count twice. Their positions never move.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from hami.core import codec
from hami.core.allocation import BindPhase
from hami.core.codec_enforcement import ENFORCEMENT_STATUS_KEY, encode_enforcement_status
from hami.core.objects import Pod
from hami.core.vendor import Vendor, VendorTable
from hami.errors import CodecError, ConflictError
from hami.kube.backoff import retrying
from hami.kube.client import KubeClient
from hami.kube.patching import annotation_path, expect, json_patch, patch_status
from hami.kube.resources import PODS, ObjectRef
from hami.kube.throttle import Lane
from hami.nodeagent import pending
from hami.nodeagent.pending import Entry

_POD = msgspec.json.Decoder(Pod)


class PodWriter:
    """Changes the allocation annotations of this node's pods."""

    def __init__(self, client: KubeClient, *, vendor: Vendor, vendors: VendorTable) -> None:
        self._client = client
        self._vendor = vendor
        self._vendors = vendors

    async def read(self, pod: Pod) -> Pod | None:
        """The same pod as the API server has it now; None if its name has passed to another.

        Raises:
            KubeError: It is gone, or the server does not answer.
        """
        ref = ObjectRef.to(PODS, pod)
        body = await retrying(
            lambda: self._client.get(ref.path(), lane=Lane.URGENT), f"reading {ref}"
        )
        try:
            fresh = _POD.decode(body)
        except msgspec.MsgspecError as error:
            raise CodecError(f"{ref}: expected a pod, met {error}") from error
        return fresh if fresh.metadata.uid == pod.metadata.uid else None

    async def consume(
        self,
        pod: Pod,
        entry: Entry,
        *,
        before: frozenset[int],
        backends: Mapping[str, str],
    ) -> None:
        """Blank the entry; with nothing left to any vendor, the pod's allocation is a success.

        Args:
            pod: As the decision saw it.
            entry: The container's part.
            before: Positions consumed earlier that ``pod`` may not show yet.
            backends: What enforces the limits of each container, so far.

        Raises:
            ConflictError: The pod is not as the decision saw it.
        """
        old = self._text(pod, before)
        new = pending.blank(old, entry.position)
        changes = {
            self._vendor.to_allocate_key: new,
            ENFORCEMENT_STATUS_KEY: encode_enforcement_status(backends),
        }
        if pending.complete({**pod.annotations, **changes}, self._vendors):
            changes[codec.BIND_PHASE_KEY] = BindPhase.SUCCESS.value
        tests = {
            **self._unconsumed(pod),
            self._vendor.to_allocate_key: old,
            codec.BIND_PHASE_KEY: BindPhase.ALLOCATING.value,
        }
        try:
            await self._write(pod, tests, changes)
        except ConflictError:
            # A write whose answer was lost looks like a conflict when it is tried again.
            fresh = await self.read(pod)
            if fresh is None or fresh.annotations.get(self._vendor.to_allocate_key) != new:
                raise

    async def give_back(self, pod: Pod, entry: Entry) -> None:
        """Put a consumed entry back in line: the kubelet has yet to ask for its container.

        Raises:
            ConflictError: The pod is not as the decision saw it.
        """
        old = pod.annotations.get(self._vendor.to_allocate_key, "")
        record = pod.annotations.get(self._vendor.allocated_key, "")
        await self._write(
            pod,
            {self._vendor.to_allocate_key: old},
            {
                self._vendor.to_allocate_key: pending.restore(old, record, entry.position),
                codec.BIND_PHASE_KEY: BindPhase.ALLOCATING.value,
            },
        )

    async def fail(self, pod: Pod) -> None:
        """Record that the pod's allocation failed; what it held stays on record until it ends.

        Raises:
            KubeError: That could not be written.
        """
        await self._write(pod, {}, {codec.BIND_PHASE_KEY: BindPhase.FAILED.value})

    async def end(self, pod: Pod, *, reason: str, message: str) -> None:
        """Fail the pod for good: its kubelet ends what runs of it, its owner makes another.

        Raises:
            KubeError: That could not be written.
        """
        ref = ObjectRef.to(PODS, pod)
        status = {"phase": "Failed", "reason": reason, "message": message}
        await retrying(
            lambda: patch_status(self._client, ref, status, lane=Lane.URGENT), f"ending {ref}"
        )

    def _text(self, pod: Pod, before: frozenset[int]) -> str:
        """The annotation as this process last left it."""
        text = pod.annotations.get(self._vendor.to_allocate_key, "")
        for position in before:
            text = pending.blank(text, position)
        return text

    def _unconsumed(self, pod: Pod) -> dict[str, str]:
        """What other vendors' agents have yet to do: whether we are last hangs on it."""
        keys = (vendor.to_allocate_key for vendor in self._vendors.values())
        return {key: pod.annotations[key] for key in keys if key in pod.annotations}

    async def _write(self, pod: Pod, tests: Mapping[str, str], changes: Mapping[str, str]) -> None:
        operations = [expect("/metadata/uid", pod.metadata.uid)]
        operations += [expect(annotation_path(key), value) for key, value in tests.items()]
        operations += [
            {"op": "add", "path": annotation_path(key), "value": value}
            for key, value in changes.items()
        ]
        ref = ObjectRef.to(PODS, pod)
        await retrying(
            lambda: json_patch(self._client, ref, operations, lane=Lane.URGENT),
            f"writing {ref}",
        )
