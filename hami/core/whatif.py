"""What would be: a pod against nodes as they are not, on copies that nobody else sees.

Rows of a snapshot may be repeated and changed, so that many cases are one question to ``fit``. No
function here changes the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from hami.core import fit, mig
from hami.core.allocation import Charge
from hami.core.device import DeviceUuid, PodRequest, Role
from hami.core.table import Bools, Columns, DeviceTable, Ints, Snapshot

Charges = Mapping[DeviceUuid, Charge]


def fits_without(
    table: DeviceTable, request: PodRequest, node: str, removed: Sequence[Sequence[Charges]]
) -> Bools:
    """For each case whether the pod fits the node once these pods' charges are gone.

    Args:
        table: The devices.
        request: What the pod asks.
        node: By name; on an unknown one nothing fits.
        removed: The charges of the pods that are gone, case by case.
    """
    row = table.rows.get(node)
    if row is None or not removed:
        return np.zeros(len(removed), np.bool_)
    snapshot = table.copy([row] * len(removed))
    changed = [(i, charges) for i, case in enumerate(removed) for charges in case]
    relieved = relieve(table, snapshot, changed)
    return fit.place(relieved, request, need_devices=False).feasible


def relieve(
    table: DeviceTable, snapshot: Snapshot, changed: Sequence[tuple[int, Charges]]
) -> Snapshot:
    """The snapshot with charges taken off rows of it; the copy's own arrays are changed."""
    c = snapshot.columns
    holders: dict[tuple[int, int], int] = {}
    for i, charges in changed:
        row = int(snapshot.rows[i])
        places = table.columns_of_row(row)
        for uuid, charge in charges.items():
            column = places.get(uuid)
            if column is None:
                continue
            c.used_slots[i, column] -= charge.slots
            c.used_memory[i, column] -= charge.memory
            c.used_cores[i, column] -= charge.cores
            slices = table.slices_of(row, column, charge)
            if slices:
                before = holders.get((i, column), table.holders_of(row, column))
                holders[i, column] = before - slices
    for (i, column), left in holders.items():
        c.mig_mask[i, column] = mig.mask_of(left)
    return snapshot


def copies(
    table: DeviceTable,
    request: PodRequest,
    nodes: Sequence[str],
    *,
    limit: int,
    extra: Snapshot | None = None,
) -> dict[str, int]:
    """How many copies of the pod each node holds beside what is there, one after the other.

    Each round asks all nodes at once and puts one copy on each that holds one more.

    Args:
        table: The devices.
        request: What one copy asks.
        nodes: By name; unknown ones hold none.
        limit: Stop once so many fit in all.
        extra: Rows to begin with instead of the table's; of exactly the known nodes, in order.
    """
    names = [name for name in nodes if name in table.rows]
    counts = dict.fromkeys(nodes, 0)
    snapshot = extra or table.copy([table.rows[name] for name in names])
    live = np.arange(len(names))
    total = 0
    while live.size and total < limit:
        result = fit.place(snapshot, request, need_devices=True)
        kept = np.flatnonzero(result.feasible)
        if not kept.size:
            break
        for i in live[kept].tolist():
            counts[names[i]] += 1
        total += kept.size
        live = live[kept]
        snapshot = narrowed(snapshot, _after(snapshot, request, result), kept)
    return counts


def narrowed(snapshot: Snapshot, columns: Columns, kept: Ints) -> Snapshot:
    """Some rows of the snapshot, with these columns in place of its own."""
    return replace(
        snapshot,
        rows=snapshot.rows[kept],
        generations=snapshot.generations[kept],
        columns=columns.take(kept),
    )


def _after(snapshot: Snapshot, request: PodRequest, result: fit.Placement) -> Columns:
    """The columns once the pod is there, with the most that it takes at one time."""
    running = highest = snapshot.columns
    for step in result.steps:
        beside = fit.with_taken(running, step)
        if request.containers[step.position].role is Role.INIT:
            highest = _peak(highest, beside)
        else:
            running = beside
    return _peak(highest, running)


def _peak(one: Columns, other: Columns) -> Columns:
    return replace(
        one,
        used_slots=np.maximum(one.used_slots, other.used_slots),
        used_memory=np.maximum(one.used_memory, other.used_memory),
        used_cores=np.maximum(one.used_cores, other.used_cores),
        mig_mask=one.mig_mask | other.mig_mask,
    )
