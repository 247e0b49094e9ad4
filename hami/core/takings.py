"""What a pod would take of each vendor on each of many nodes, as namespace quotas count it.

Where a pod asks for shares of devices, or devices are partitioned in hardware, that depends on
which devices a node would give: these are chosen here for all nodes at once, just as
``Placer.choose`` does for one. Else it is the same everywhere (see ``quota.needs``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hami.core import fit
from hami.core.device import PodRequest, Role, VendorName
from hami.core.quota import Kind
from hami.core.table import Ints, Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Taking:
    """Of one vendor, node by node."""

    memory: Ints
    """MiB."""
    cores: Ints
    """Percent."""

    @staticmethod
    def nothing(nodes: int) -> Taking:
        """0 on each node."""
        return Taking(memory=np.zeros(nodes, np.int64), cores=np.zeros(nodes, np.int64))

    def of(self, kind: Kind) -> Ints:
        """One of the two."""
        return self.memory if kind is Kind.MEMORY else self.cores

    def __add__(self, other: Taking) -> Taking:
        """Both at the same time."""
        return Taking(memory=self.memory + other.memory, cores=self.cores + other.cores)

    def __or__(self, other: Taking) -> Taking:
        """One after the other: the larger of each."""
        return Taking(
            memory=np.maximum(self.memory, other.memory),
            cores=np.maximum(self.cores, other.cores),
        )


def takings(snapshot: Snapshot, pod: PodRequest) -> dict[VendorName, Taking]:
    """The most that the pod takes at one time; without meaning for nodes that it does not fit."""
    nothing = Taking.nothing(len(snapshot.rows))
    highest: dict[VendorName, Taking] = {}
    running: dict[VendorName, Taking] = {}
    for step in fit.place(snapshot, pod, need_devices=True).steps:
        vendor = step.question.request.vendor
        together = running.get(vendor, nothing) + _taking(step)
        highest[vendor] = highest.get(vendor, nothing) | together
        if pod.containers[step.position].role is not Role.INIT:
            running[vendor] = together
    return highest


def _taking(step: fit.Step) -> Taking:
    """What one container gets."""
    before = step.question.columns
    after = fit.with_taken(before, step)
    return Taking(
        memory=(after.used_memory - before.used_memory).sum(axis=1),
        cores=(after.used_cores - before.used_cores).sum(axis=1),
    )
