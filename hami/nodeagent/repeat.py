"""Finds the container whose answer got lost: the kubelet restarted while Allocate was under way.

It asks again for the same container then, perhaps with other device ids, while the annotation has
been consumed already. Such a container has a claim, its pod has never been reported by the kubelet,
and nobody holds what it was given. If its pod has a container that is still in line for as many
devices, the ids tell: no two containers hold the same ones at a time, but that app containers take
over those of plain init containers. Pure; the identity check comes before the container starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from hami.core import codec
from hami.core.objects import Pod
from hami.core.vendor import Vendor
from hami.errors import CodecError
from hami.nodeagent import pending
from hami.nodeagent.claims import Claim
from hami.nodeagent.pending import Candidate, Entry
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
        if (entry := _entry_of(claim, pod, vendor)) is not None:
            return Candidate(pod=pod, entry=entry, region=path)
    return None


def find_reissued(
    candidate: Candidate,
    claims: Mapping[Path, Claim],
    *,
    vendor: Vendor,
    is_free: Callable[[frozenset[str]], bool],
) -> Candidate | None:
    """An earlier container of the same pod, if the kubelet has forgotten that it got its devices.

    Args:
        candidate: The container in line.
        claims: What was prepared.
        vendor: Whose annotations to read.
        is_free: Whether the kubelet takes some of these ids to be nobody's.
    """
    pod, count = candidate.pod, len(candidate.entry.devices)
    for path, claim in claims.items():
        if claim.uid != pod.metadata.uid or claim.container == candidate.entry.container:
            continue
        if claim.init or len(claim.ids) != count or not is_free(frozenset(claim.ids)):
            continue
        if (entry := _entry_of(claim, pod, vendor)) is not None:
            return Candidate(pod=pod, entry=entry, region=path)
    return None


def _entry_of(claim: Claim, pod: Pod, vendor: Vendor) -> Entry | None:
    """The container's part of its pod's record, if that is for as many devices."""
    try:
        entries = pending.recorded(pod, vendor)
    except CodecError:
        return None  # reported where the annotation is read first
    for entry in entries:
        if entry.container == claim.container and len(entry.devices) == len(claim.ids):
            return entry
    return None


def _never_admitted(pod: Pod, node: str) -> bool:
    return (
        not pod.finished
        and pod.metadata.deletion_timestamp is None
        and pod.annotations.get(codec.NODE_KEY) == node
        and all(c.type not in _SET_AT_ADMISSION for c in pod.status.conditions or ())
    )
