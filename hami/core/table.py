"""The device table: every node's devices as columns, one row a node, one column a device.

Rows are as wide as the largest node (the device axis is padded; ``present`` marks real devices), so
that a question about all nodes is a handful of vector operations. A row's devices stand in order of
(index, uuid), which is also the last tie-break of every choice.

``DeviceTable`` is the one that changes, and only ``hami.core.cache`` changes it. ``Snapshot`` is a
read-only view or copy of some rows: what the rules in ``fit`` and ``score`` work on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import repeat
from typing import Final

import numpy as np
import numpy.typing as npt

from hami.core import mig
from hami.core.allocation import Charge
from hami.core.device import MODE_MIG, Device, DeviceUuid, MigProfile
from hami.core.topology import score_matrix
from hami.core.words import Words

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_FIRST_ROWS: Final = 64
_FIRST_WIDTH: Final = 8
_FEW_WORDS: Final = 1024
_MANY_GEOMETRIES: Final = 1024

PairScores = Mapping[str, Mapping[str, int]]
"""For one device and another (by uuid) how well they are linked; higher is better."""
NO_PAIRS: Final[PairScores] = {}
Links = npt.NDArray[np.float64]
"""The same of one node as a square of columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The table's arrays, all of shape (nodes, devices)."""

    present: Bools
    healthy: Bools
    cordoned: Bools
    vendor: Ints
    """Number of the vendor's name in ``DeviceTable.words``; likewise ``model`` and ``mode``."""
    model: Ints
    mode: Ints
    numa: Ints
    slots: Ints
    memory: Ints
    """MiB."""
    cores: Ints
    """Percent."""
    geometry: Ints
    """Number of the device's MIG profiles in ``DeviceTable.geometries``; 0 for none."""
    used_slots: Ints
    used_memory: Ints
    used_cores: Ints
    mig_mask: Ints
    """MIG slices in use, one bit each."""

    @staticmethod
    def empty(rows: int, width: int) -> Columns:
        """Rows without devices."""
        return Columns(
            **{
                f.name: np.zeros((rows, width), np.bool_ if f.type == "Bools" else np.int64)
                for f in fields(Columns)
            }
        )

    def take(self, rows: Ints | slice) -> Columns:
        """Some rows: a view for a slice, a copy for row numbers."""
        return Columns(**{f.name: getattr(self, f.name)[rows] for f in fields(Columns)})

    def grown(self, rows: int, width: int) -> Columns:
        """The same content in larger arrays."""
        larger = Columns.empty(rows, width)
        old_rows, old_width = self.present.shape
        for f in fields(Columns):
            getattr(larger, f.name)[:old_rows, :old_width] = getattr(self, f.name)
        return larger


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Some rows of the table as they were at their generations. Treat as read-only."""

    table: DeviceTable
    """For names and words only; its numbers may have moved on."""
    rows: Ints
    """Row number in the table of each row here."""
    generations: Ints
    columns: Columns

    def uuid(self, row: int, column: int) -> DeviceUuid:
        """The device at a place of this snapshot."""
        return self.table.uuids[int(self.rows[row])][column]


class DeviceTable:
    """All nodes' devices and what is used of them.

    Attributes:
        columns: The arrays; rows of removed nodes are empty and get used again.
        generations: One number a row, never the same twice: a row's content changes with it.
        names: Node name of each row, None for a free row.
        uuids: Device UUIDs of each row, in column order.
        rows: Row number of each node.
        layout: Moves when a node gets or loses its row.
        born: The layout at which each row got the node it has.
        words: Vendor names, models and modes by number; a new set when most are out of use.
        geometries: MIG profiles by number; number 0 is of devices without any.
    """

    def __init__(self) -> None:
        self.columns = Columns.empty(_FIRST_ROWS, _FIRST_WIDTH)
        self.generations: Ints = np.zeros(_FIRST_ROWS, np.int64)
        self.names: list[str | None] = []
        self.uuids: list[tuple[DeviceUuid, ...]] = []
        self.rows: dict[str, int] = {}
        self.layout = 0
        self.born: list[int] = []
        self.words = Words()
        self.geometries: list[tuple[MigProfile, ...]] = [()]
        self._geometry_numbers: dict[tuple[MigProfile, ...], int] = {(): 0}
        self._links: list[Links | None] = []
        self._mig_holders: dict[tuple[int, int], int] = {}
        self._many_words = _FEW_WORDS
        self._devices: list[tuple[Device, ...]] = []
        self._columns_of: list[dict[DeviceUuid, int]] = []
        self._rows_with: dict[DeviceUuid, frozenset[int]] = {}
        self._free: list[int] = []
        self._generation = 0
        self._by_name: tuple[int, Ints] = (-1, np.zeros(0, np.int64))
        self._asked: tuple[tuple[str, ...], int, Ints] = ((), 0, np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.names)

    def duplicate(self) -> DeviceTable:
        """A table of its own with the same content, to try things out; another thread may."""
        twin = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Columns):
                setattr(twin, name, value.grown(*value.present.shape))
            elif isinstance(value, (np.ndarray, list, dict, Words)):
                setattr(twin, name, copy.copy(value))
        return twin

    def set_node(
        self,
        name: str,
        devices: Iterable[Device],
        *,
        cordoned: frozenset[str] = frozenset(),
        pairs: PairScores = NO_PAIRS,
    ) -> bool:
        """Put the node's devices in its row, with nothing used of them.

        Returns False, and leaves everything as it is, where the node has exactly these already.

        Args:
            name: The node's.
            devices: What it has.
            cordoned: Devices that get no new pods.
            pairs: How well each device is linked to each other one; a pair that is missing is 0.
        """
        ordered = tuple(sorted(devices, key=lambda d: (d.index, d.uuid)))
        links = score_matrix(pairs, [d.uuid for d in ordered]) if pairs else None
        row = self.rows.get(name)
        if row is None:
            row = self._new_row(name)
        elif self._has(row, ordered, cordoned) and _equal(self._links[row], links):
            return False
        self._clear(row)
        self._fit_width(len(ordered))
        self._devices[row] = ordered
        self._links[row] = links
        self.uuids[row] = tuple(d.uuid for d in ordered)
        self._columns_of[row] = {uuid: i for i, uuid in enumerate(self.uuids[row])}
        for uuid in self.uuids[row]:
            self._rows_with[uuid] = self._rows_with.get(uuid, frozenset()) | {row}
        c = self.columns
        for i, d in enumerate(ordered):
            c.present[row, i] = True
            c.healthy[row, i] = d.healthy
            c.cordoned[row, i] = d.uuid in cordoned
            c.numa[row, i] = d.numa
            c.slots[row, i] = d.slots
            c.memory[row, i] = d.memory
            c.cores[row, i] = d.cores
            c.geometry[row, i] = self._geometry_number(d.mig_profiles)
        self._number_words(row)
        if len(self.words) > self._many_words:
            self._renumber_words()
        self._touch(row)
        return True

    def remove_node(self, name: str) -> None:
        """Forget the node; its row becomes free."""
        row = self.rows.pop(name, None)
        if row is None:
            return
        self._clear(row)
        self.names[row] = None
        self._free.append(row)
        self.layout += 1
        self._touch(row)

    def devices(self, name: str) -> tuple[Device, ...]:
        """The node's devices in column order; empty for an unknown node."""
        row = self.rows.get(name)
        return () if row is None else self._devices[row]

    def generation(self, name: str) -> int:
        """The node's generation; 0 for an unknown node."""
        row = self.rows.get(name)
        return 0 if row is None else int(self.generations[row])

    def used(self, name: str) -> dict[DeviceUuid, Charge]:
        """What is used of each of the node's devices."""
        row = self.rows.get(name)
        if row is None:
            return {}
        c = self.columns
        return {
            uuid: Charge(
                slots=int(c.used_slots[row, i]),
                memory=int(c.used_memory[row, i]),
                cores=int(c.used_cores[row, i]),
                mig=self._mig_holders.get((row, i), 0),
            )
            for uuid, i in self._columns_of[row].items()
        }

    def charge(self, name: str, charges: Mapping[DeviceUuid, Charge], *, sign: int) -> None:
        """Add (sign 1) or take back (sign -1) what is used; devices the node lacks are skipped."""
        row = self.rows.get(name)
        if row is None:
            return
        c, places = self.columns, self._columns_of[row]
        for uuid, charge in charges.items():
            i = places.get(uuid)
            if i is not None:
                c.used_slots[row, i] += sign * charge.slots
                c.used_memory[row, i] += sign * charge.memory
                c.used_cores[row, i] += sign * charge.cores
                self._hold_slices(row, i, sign * self.slices_of(row, i, charge))
        self._touch(row)

    def links(self, name: str) -> Links | None:
        """Score of each pair of the node's devices, in column order; None where none is known."""
        row = self.rows.get(name)
        return None if row is None else self._links[row]

    def columns_of_row(self, row: int) -> Mapping[DeviceUuid, int]:
        """The column of each device of a row."""
        return self._columns_of[row]

    def holders_of(self, row: int, column: int) -> int:
        """Holders of each MIG slice of a device, packed as ``hami.core.mig`` says."""
        return self._mig_holders.get((row, column), 0)

    def links_of_row(self, row: int) -> Links | None:
        """The same, by row number."""
        return self._links[row]

    def rows_of(self, names: tuple[str, ...]) -> Ints:
        """Row number of each node, -1 for an unknown one. Treat as read-only.

        Schedulers ask about the same nodes again and again, so the last answer is kept.
        """
        asked, layout, rows = self._asked
        if asked is not names or layout != self.layout:
            rows = np.fromiter(map(self.rows.get, names, repeat(-1)), np.int64, len(names))
            self._asked = names, self.layout, rows
        return rows

    def places_by_name(self) -> Ints:
        """For each row where its node comes among all nodes by name. Treat as read-only."""
        layout, places = self._by_name
        if layout != self.layout:
            places = np.zeros(len(self), np.int64)
            places[[row for _, row in sorted(self.rows.items())]] = np.arange(len(self.rows))
            self._by_name = self.layout, places
        return places

    def places(self, uuids: Iterable[str]) -> list[tuple[int, int]]:
        """Every (row, column) that holds one of the devices."""
        return [
            (row, self._columns_of[row][DeviceUuid(uuid)])
            for uuid in uuids
            for row in self._rows_with.get(DeviceUuid(uuid), ())
        ]

    def view(self) -> Snapshot:
        """All rows without copying: for code that does not let anything else run meanwhile."""
        size = len(self)
        return Snapshot(
            table=self,
            rows=np.arange(size),
            generations=self.generations[:size],
            columns=self.columns.take(slice(0, size)),
        )

    def copy(self, rows: Ints | Sequence[int]) -> Snapshot:
        """Some rows, copied: stays as it is whatever comes."""
        chosen = np.asarray(rows, np.int64)
        return Snapshot(
            table=self,
            rows=chosen,
            generations=self.generations[chosen],
            columns=self.columns.take(chosen),
        )

    def _has(self, row: int, devices: tuple[Device, ...], cordoned: frozenset[str]) -> bool:
        marks = self.columns.cordoned[row, : len(devices)].tolist()
        return self._devices[row] == devices and marks == [d.uuid in cordoned for d in devices]

    def _number_words(self, row: int) -> None:
        c = self.columns
        for i, d in enumerate(self._devices[row]):
            c.vendor[row, i] = self.words.number(d.vendor)
            c.model[row, i] = self.words.number(d.model)
            c.mode[row, i] = self.words.number(d.mode)

    def is_mig(self, row: int, column: int) -> bool:
        """Whether the device is partitioned in hardware."""
        return self._devices[row][column].mode == MODE_MIG

    def slices_of(self, row: int, column: int, charge: Charge) -> int:
        """Holders of the device's MIG slices; who does not say which holds all of them."""
        if charge.mig or not charge.slots or not self.is_mig(row, column):
            return charge.mig
        return mig.ALL * charge.slots

    def _hold_slices(self, row: int, column: int, change: int) -> None:
        if not change:
            return
        holders = self._mig_holders.get((row, column), 0) + change
        self.columns.mig_mask[row, column] = mig.mask_of(holders)
        if holders:
            self._mig_holders[row, column] = holders
        else:
            self._mig_holders.pop((row, column), None)

    def _geometry_number(self, profiles: tuple[MigProfile, ...]) -> int:
        """The number of these profiles; of more kinds than any cluster has, none gets one."""
        number = self._geometry_numbers.get(profiles)
        if number is None:
            if len(self.geometries) > _MANY_GEOMETRIES:
                return 0
            number = self._geometry_numbers[profiles] = len(self.geometries)
            self.geometries.append(profiles)
        return number

    def _renumber_words(self) -> None:
        """Forget words that no device has any more: nodes may make up new ones for ever."""
        self.words = Words()
        for row in range(len(self)):
            self._number_words(row)
        self._many_words = max(_FEW_WORDS, 2 * len(self.words))

    def _touch(self, row: int) -> None:
        self._generation += 1
        self.generations[row] = self._generation

    def _new_row(self, name: str) -> int:
        if self._free:
            row = self._free.pop()
            self.names[row] = name
        else:
            row = len(self.names)
            self.names.append(name)
            self.born.append(0)
            self.uuids.append(())
            self._devices.append(())
            self._links.append(None)
            self._columns_of.append({})
            rows, width = self.columns.present.shape
            if row >= rows:
                self.columns = self.columns.grown(rows * 2, width)
                self.generations = np.concatenate([self.generations, np.zeros(rows, np.int64)])
        self.rows[name] = row
        self.layout += 1
        self.born[row] = self.layout
        return row

    def _fit_width(self, devices: int) -> None:
        rows, width = self.columns.present.shape
        if devices > width:
            self.columns = self.columns.grown(rows, max(devices, width * 2))

    def _clear(self, row: int) -> None:
        for uuid in self.uuids[row]:
            rows = self._rows_with[uuid] - {row}
            if rows:
                self._rows_with[uuid] = rows
            else:
                del self._rows_with[uuid]
        for column in range(len(self._devices[row])):
            self._mig_holders.pop((row, column), None)
        self._devices[row] = ()
        self._links[row] = None
        self.uuids[row] = ()
        self._columns_of[row] = {}
        for f in fields(Columns):
            getattr(self.columns, f.name)[row] = 0


def _equal(one: Links | None, other: Links | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)
