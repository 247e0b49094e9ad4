"""Nodes without some of their pods, case after case: many what-ifs as one question to ``fit``.

The pods' charges stand in arrays, so that thousands of cases cost a handful of vector operations.
The table is looked at and never changed; nothing here may be kept while others change it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from hami.core import fit, mig
from hami.core.allocation import Charge
from hami.core.device import DeviceUuid, PodRequest
from hami.core.table import Bools, Columns, DeviceTable, Ints

Charges = Mapping[DeviceUuid, Charge]

CASES_AT_ONCE: Final = 8192
"""More are asked in turns, which bounds memory."""


class Relief:
    """Some nodes' pods, and whether a request fits once some of them are gone.

    Attributes:
        memory: MiB that goes free with each pod, by its number.
    """

    def __init__(self, table: DeviceTable, request: PodRequest, nodes: Sequence[str]) -> None:
        """Begin without pods.

        Args:
            table: The devices.
            request: What is to fit.
            nodes: Known to the table; a node's number is its position.
        """
        self._table = table
        self._request = request
        self._rows: Ints = np.array([table.rows[name] for name in nodes], np.int64)
        self._partitioned: Bools = (table.columns.geometry[self._rows] != 0).any(axis=1)
        self._slices: dict[int, list[tuple[int, int]]] = {}
        self._width = table.columns.present.shape[1]
        self._ends: Ints = np.zeros(1, np.int64)
        self._entries: Ints = np.zeros((0, 4), np.int64)
        self.memory: Ints = np.zeros(0, np.int64)

    def load(self, nodes: Ints, pods: Sequence[Charges]) -> None:
        """Learn of more pods, each on the node of that number; their own numbers go on.

        Devices that the node lacks are skipped, as in the table.
        """
        rows = self._rows[nodes].tolist()
        columns = [self._table.columns_of_row(row) for row in rows]
        flat = [
            number
            for places, charges in zip(columns, pods, strict=True)
            for uuid, charge in charges.items()
            for number in (places.get(uuid, -1), charge.slots, charge.memory, charge.cores)
        ]
        entries = np.array(flat, np.int64).reshape(-1, 4)
        entries[entries[:, 0] < 0] = 0
        ends = np.cumsum([0] + [len(charges) for charges in pods])
        for i in np.flatnonzero(self._partitioned[nodes]).tolist():
            self._load_slices(len(self.memory) + i, rows[i], pods[i])
        sums = np.concatenate([[0], np.cumsum(entries[:, 2])])
        self.memory = np.concatenate([self.memory, np.diff(sums[ends])])
        self._ends = np.concatenate([self._ends, self._ends[-1] + ends[1:]])
        self._entries = np.concatenate([self._entries, entries])

    def fits(self, nodes: Ints, cases: Ints, pods: Ints) -> Bools:
        """For each case whether the request fits.

        Args:
            nodes: The node of each case.
            cases: Of each pod that is gone, the case; ascending.
            pods: Of each pod that is gone, its number, in the same order.
        """
        if len(nodes) <= CASES_AT_ONCE:
            return self._fits(nodes, cases, pods)
        answers = []
        for first in range(0, len(nodes), CASES_AT_ONCE):
            low, high = np.searchsorted(cases, [first, first + CASES_AT_ONCE])
            part = nodes[first : first + CASES_AT_ONCE]
            answers.append(self._fits(part, cases[low:high] - first, pods[low:high]))
        return np.concatenate(answers)

    def _fits(self, nodes: Ints, cases: Ints, pods: Ints) -> Bools:
        snapshot = self._table.copy(self._rows[nodes])
        begins = self._ends[pods]
        lengths = self._ends[pods + 1] - begins
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        entries = self._entries[np.repeat(begins, lengths) + within]
        places = np.repeat(cases, lengths) * self._width + entries[:, 0]
        c = snapshot.columns
        for used, amounts in zip(
            (c.used_slots, c.used_memory, c.used_cores), entries.T[1:], strict=True
        ):
            gone = np.bincount(places, weights=amounts, minlength=used.size)
            used -= gone.reshape(used.shape).astype(np.int64)
        if self._slices:
            self._give_back_slices(c, nodes, cases, pods)
        return fit.place(snapshot, self._request, need_devices=False).feasible

    def _load_slices(self, pod: int, row: int, charges: Charges) -> None:
        columns = self._table.columns_of_row(row)
        for uuid, charge in charges.items():
            column = columns.get(uuid)
            slices = 0 if column is None else self._table.slices_of(row, column, charge)
            if column is not None and slices:
                self._slices.setdefault(pod, []).append((column, slices))

    def _give_back_slices(self, columns: Columns, nodes: Ints, cases: Ints, pods: Ints) -> None:
        """A slice is free once the last of its holders is gone, so they are counted one by one."""
        gone: dict[tuple[int, int], int] = defaultdict(int)
        for case, pod in zip(cases.tolist(), pods.tolist(), strict=True):
            for column, slices in self._slices.get(pod, ()):
                gone[case, column] += slices
        for (case, column), slices in gone.items():
            row = int(self._rows[nodes[case]])
            left = self._table.holders_of(row, column) - slices
            columns.mig_mask[case, column] = mig.mask_of(left)
