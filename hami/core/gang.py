"""Gangs: pods that are of use only together, as their labels or specs say.

Reads which gang a pod is of and how many belong to it. Two forms are known: the label of pod groups
and ``spec.schedulingGroup``. Whether a gang fits is for ``controllers.gangs``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from hami.core import codec
from hami.core.objects import Pod
from hami.core.quantity import parse_whole
from hami.errors import QuantityError

MAX_SIZE: Final = 10_000
"""More pods than any job has; a larger number counts as unsaid."""


class GangName(NamedTuple):
    """Names one gang."""

    namespace: str
    name: str

    def __str__(self) -> str:
        """For messages."""
        return f"{self.namespace}/{self.name}"


def gang_of(pod: Pod) -> GangName | None:
    """The gang that the pod belongs to; None for a pod of its own."""
    labels, group = pod.metadata.labels or {}, pod.spec.scheduling_group
    name = labels.get(codec.POD_GROUP_LABEL) or (group.pod_group_name if group else None)
    return GangName(pod.metadata.namespace, name) if name else None


def size_of(pod: Pod) -> int:
    """How many pods its gang has at least, as the pod says; 0 where it does not.

    A number that cannot be read counts as unsaid: the pods that exist are then the gang.
    """
    annotations, labels = pod.annotations, pod.metadata.labels or {}
    text = annotations.get(codec.GANG_SIZE_KEY) or labels.get(codec.MIN_AVAILABLE_LABEL)
    if text is None:
        return 0
    try:
        return parse_whole(text, maximum=MAX_SIZE)
    except QuantityError:
        return 0
