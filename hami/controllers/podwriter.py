"""What bind writes on a pod: its record, the Binding, and the taking back of both.

Every write is on condition that the pod is as it was given, so that of two deciders one meets a
conflict, and that the reign in which it was decided goes on. Whether to write, and what a refusal
means, is the caller's to say.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec

from hami.controllers.leadership import Mandate
from hami.core import codec, record
from hami.core.allocation import Allocation
from hami.core.objects import Pod
from hami.core.vendor import VendorTable
from hami.errors import CodecError, NotFoundError
from hami.kube import patching
from hami.kube.backoff import retrying
from hami.kube.client import KubeClient
from hami.kube.resources import ObjectRef
from hami.kube.throttle import Lane

_POD = msgspec.json.Decoder(Pod)

WRITES_OF_A_BIND: Final = 2
"""The record and the Binding."""


class PodWriter:
    """Reads and writes pods for those who decide, ahead of routine requests."""

    def __init__(
        self,
        client: KubeClient,
        *,
        vendors: VendorTable,
        on_bound: Callable[[ObjectRef], None] = lambda _: None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._vendors = vendors
        self._on_bound = on_bound
        self._wall_clock = wall_clock

    def expected_wait(self, writes: int) -> float:
        """Seconds until so many more writes could have been answered, as things go."""
        return self._client.expected_wait(Lane.URGENT, requests=writes)

    async def read(self, ref: ObjectRef) -> Pod:
        """The pod as it is now.

        Raises:
            NotFoundError: It is gone, or another one has its name.
            KubeError: No answer.
            CodecError: No pod.
        """
        body = await retrying(
            lambda: self._client.get(ref.path(), lane=Lane.URGENT), f"get of {ref}"
        )
        pod = _decode(body)
        if pod.metadata.uid != ref.uid:
            raise NotFoundError(
                f"{ref}: expected uid {ref.uid}, met {pod.metadata.uid}: "
                "it was deleted and created again",
                status=404,
            )
        return pod

    async def record(
        self, ref: ObjectRef, pod: Pod, allocation: Allocation, mandate: Mandate
    ) -> Pod:
        """Write the decision on the pod, in place of any earlier one; the pod as it is then.

        Raises:
            ConflictError: The pod has changed.
            NotLeaderError: The reign is over.
            KubeError: Another refusal, or no answer.
        """
        decision = record.annotations_for(
            allocation,
            self._vendors,
            now_seconds=int(self._wall_clock()),
            scheduled_by=mandate.mark,
        )
        body = await patching.patch_metadata(
            self._client,
            ref,
            annotations={**record.cleared_annotations(self._vendors), **decision},
            labels={codec.NODE_KEY: None, **codec.node_label(allocation.node)},
            resource_version=pod.metadata.resource_version,
            lane=Lane.URGENT,
            guard=mandate.require,
        )
        return _decode(body)

    async def take_back(self, ref: ObjectRef, pod: Pod, mandate: Mandate) -> Pod:
        """Take the record off the pod, and return that as it is then.

        A Binding that is still on its way comes too late.

        Raises:
            ConflictError: The pod has changed.
            NotLeaderError: The reign is over.
            KubeError: Another refusal, or no answer.
        """
        body = await patching.patch_metadata(
            self._client,
            ref,
            annotations=record.cleared_annotations(self._vendors),
            labels={codec.NODE_KEY: None},
            resource_version=pod.metadata.resource_version,
            lane=Lane.URGENT,
            guard=mandate.require,
        )
        return _decode(body)

    async def bind(self, ref: ObjectRef, pod: Pod, mandate: Mandate, *, node: str) -> None:
        """Give the pod to the node. Made twice, the second one is a conflict.

        Raises:
            ConflictError: The pod has changed, or is bound already.
            NotLeaderError: The reign is over.
            KubeError: Another refusal, or no answer.
        """
        await retrying(
            lambda: patching.bind(
                self._client,
                ref,
                uid=ref.uid,
                node=node,
                resource_version=pod.metadata.resource_version,
                guard=mandate.require,
            ),
            f"binding of {ref}",
        )
        self._on_bound(ref)


def _decode(body: bytes) -> Pod:
    try:
        return _POD.decode(body)
    except msgspec.MsgspecError as error:
        raise CodecError(f"expected a pod, met {body[:100]!r}: {error}") from error
