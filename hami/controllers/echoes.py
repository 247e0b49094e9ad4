"""How far the watch is behind what this process writes: the time until a Binding is seen.

The cache is told of a bind at once, so nothing waits for this; but whatever others write arrives by
the same watch, as late.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from prometheus_client import Histogram

from hami.core.objects import Pod
from hami.kube.informer import Informer
from hami.kube.resources import ObjectRef
from hami.kube.store import Store

CAPACITY: Final = 10_000
"""Binds that are remembered; of more, the oldest is forgotten."""


class Echoes:
    """Binds that the watch has not shown yet."""

    def __init__(
        self,
        pods: Informer[Pod] | Store[Pod],
        seconds: Histogram,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pods = pods
        self._seconds = seconds
        self._clock = clock
        self._written: dict[str, float] = {}
        pods.add_handler(self._on_set, self._on_delete)

    def wrote(self, ref: ObjectRef) -> None:
        """The API server has taken the Binding of this pod."""
        pod = self._pods.get(ref.namespace, ref.name)
        if pod is not None and pod.metadata.uid == ref.uid and pod.spec.node_name:
            self._seconds.observe(0.0)  # the watch was faster than the answer
            return
        self._written[ref.uid] = self._clock()
        if len(self._written) > CAPACITY:
            del self._written[next(iter(self._written))]

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest; 0 if there is none."""
        oldest = next(iter(self._written.values()), None)
        return 0.0 if oldest is None else self._clock() - oldest

    def __len__(self) -> int:
        return len(self._written)

    def _on_set(self, pod: Pod, _: Pod | None) -> None:
        if pod.spec.node_name and (at := self._written.pop(pod.metadata.uid, None)) is not None:
            self._seconds.observe(self._clock() - at)

    def _on_delete(self, pod: Pod) -> None:
        self._written.pop(pod.metadata.uid, None)
