"""Finds the container whose answer got lost: the kubelet restarted while Allocate was under way.

It asks again for the same container then, perhaps with other device ids, while the annotation has
been consumed already. Such a container has a claim, its pod has never been reported by the kubelet,
and nobody holds what it was given. Pure; the identity check comes before the container starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from hami.core import codec
from hami.core.objects import Pod
from hami.core.vendor import Vendor
from hami.errors import CodecError
from hami.nodeagent import pending
from hami.nodeagent.claims import Claim
from hami.nodeagent.pending import Candidate
from hami.nodeagent.podresources import Holdings

_SET_AT_ADMISSION: Final = frozenset({"Initialized", "ContainersReady", "Ready"})


def find_unanswered(
    pods: Iterable[Pod],
    claims: Mapping[Path, Claim],
    *,
    vendor: Vendor,
    node: str,
    count: int,
    holdings: Holdings,
) -> Candidate | None:
    """The container whose region was prepared and never taken; the oldest of several."""
    waiting = {pod.metadata.uid: pod for pod in pods if _never_admitted(pod, node)}
    taken = set(holdings.devices.values())
    for path, claim in sorted(claims.items(), key=lambda item: item[1].created_ns):
        pod = waiting.get(claim.uid)
        if pod is None or len(claim.ids) != count or frozenset(claim.ids) in taken:
            continue
        try:
            entries = pending.recorded(pod, vendor)
        except CodecError:
            continue  # reported where the annotation is read first
        for entry in entries:
            if entry.container == claim.container and len(entry.devices) == count:
                return Candidate(pod=pod, entry=entry, region=path)
    return None


def _never_admitted(pod: Pod, node: str) -> bool:
    return (
        not pod.finished
        and pod.metadata.deletion_timestamp is None
        and pod.annotations.get(codec.NODE_KEY) == node
        and all(c.type not in _SET_AT_ADMISSION for c in pod.status.conditions or ())
    )
