"""Which devices can hold a request, and the first rule that says no.

``RULES`` is the whole of it: one row a rule, in the order in which they are told to users. A rule
looks at every device of every node of a snapshot at once. ``place`` then walks a pod's containers
in the order in which they run and takes devices for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from hami.core import score
from hami.core.device import (
    MODE_MIG,
    ContainerRequest,
    DevicePolicy,
    DeviceRequest,
    PodRequest,
    Role,
    Selection,
)
from hami.core.table import Bools, Columns, Ints, Snapshot
from hami.core.verdict import Reason, Unit

FITS: Final = 0
"""Code of a device that passes every rule; the others are 1 + the rule's position."""
ABSENT: Final = 255
"""Code of a place without a device of the vendor asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One vendor's request of one container, put to a snapshot's devices as they are used now."""

    snapshot: Snapshot
    columns: Columns
    """The snapshot's columns, with what the pod's other containers take on top."""
    pod: PodRequest
    request: DeviceRequest
    selection: Selection
    memory: Ints
    """MiB that this request takes of each device."""

    @property
    def exclusive(self) -> bool:
        """Whether the request wants a whole device's compute."""
        return self.request.cores == 100


Failing = Callable[[Question], Bools | bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One reason to refuse a device; ``lack`` tells what was needed and what is free."""

    reason: Reason
    fails: Failing
    lack: Callable[[Question], tuple[Ints | int, Ints | int]] | None = None
    unit: Unit = Unit.NONE


def _wrong_type(q: Question) -> Bools | bool:
    s, words = q.selection, q.snapshot.table.words
    wrong: Bools | bool = False
    if s.use_types:
        wrong = wrong | ~words.matching(s.use_types)[q.columns.model]
    if s.avoid_types:
        wrong = wrong | words.matching(s.avoid_types)[q.columns.model]
    if s.modes:
        wrong = wrong | ~words.matching((s.modes,), inside=True)[q.columns.mode]
    return wrong


def _wrong_uuid(q: Question) -> Bools | bool:
    s = q.selection
    wrong: Bools | bool = False
    if s.use_uuids:
        wrong = wrong | ~_at(q.snapshot, s.use_uuids)
    if s.avoid_uuids:
        wrong = wrong | _at(q.snapshot, s.avoid_uuids)
    return wrong


def _at(snapshot: Snapshot, uuids: frozenset[str]) -> Bools:
    """True at the places of these devices."""
    marks = np.zeros(snapshot.columns.present.shape, np.bool_)
    here = {int(row): i for i, row in enumerate(snapshot.rows)}
    for row, column in snapshot.table.places(uuids):
        if row in here:
            marks[here[row], column] = True
    return marks


def _in_mode(q: Question, mode: str) -> Bools:
    same: Bools = q.columns.mode == q.snapshot.table.words.number(mode)
    return same


RULES: Final[tuple[Rule, ...]] = (
    Rule(reason=Reason.UNHEALTHY, fails=lambda q: ~q.columns.healthy),
    Rule(reason=Reason.CORDONED, fails=lambda q: q.columns.cordoned),
    Rule(reason=Reason.TYPE, fails=_wrong_type),
    Rule(reason=Reason.UUID, fails=_wrong_uuid),
    Rule(
        reason=Reason.SLOTS,
        fails=lambda q: q.columns.slots <= q.columns.used_slots,
        lack=lambda q: (1, np.maximum(q.columns.slots - q.columns.used_slots, 0)),
        unit=Unit.SLOTS,
    ),
    Rule(
        reason=Reason.NOT_ALONE,
        fails=lambda q: (q.pod.device_policy is DevicePolicy.MUTEX) & (q.columns.used_slots > 0),
    ),
    Rule(
        reason=Reason.MEMORY,
        fails=lambda q: q.columns.memory - q.columns.used_memory < q.memory,
        lack=lambda q: (q.memory, np.maximum(q.columns.memory - q.columns.used_memory, 0)),
        unit=Unit.MIB,
    ),
    Rule(
        reason=Reason.CORES,
        fails=lambda q: q.columns.cores - q.columns.used_cores < q.request.cores,
        lack=lambda q: (
            int(q.request.cores),
            np.maximum(q.columns.cores - q.columns.used_cores, 0),
        ),
        unit=Unit.PERCENT,
    ),
    Rule(
        reason=Reason.NOT_ALONE,
        fails=lambda q: q.exclusive & (q.columns.cores == 100) & (q.columns.used_slots > 0),
    ),
    Rule(
        reason=Reason.CORES_EXHAUSTED,
        fails=lambda q: (
            (q.request.cores == 0)
            & (q.columns.cores > 0)
            & (q.columns.used_cores >= q.columns.cores)
        ),
    ),
    Rule(reason=Reason.MIG, fails=lambda q: _in_mode(q, MODE_MIG)),
)


def ask(
    snapshot: Snapshot, columns: Columns, pod: PodRequest, request: DeviceRequest
) -> tuple[Question, Ints]:
    """Every device's code for a request: FITS, ABSENT, or 1 + the first rule that fails."""
    question = Question(
        snapshot=snapshot,
        columns=columns,
        pod=pod,
        request=request,
        selection=pod.selection(request.vendor),
        memory=demanded_memory(columns, request),
    )
    candidates = columns.present & (columns.vendor == snapshot.table.words.number(request.vendor))
    codes = np.zeros(columns.present.shape, np.int64)
    for code, rule in reversed(tuple(enumerate(RULES, start=1))):
        fails = rule.fails(question)
        if fails is not False:
            codes[fails] = code
    codes[~candidates] = ABSENT
    return question, codes


def demanded_memory(columns: Columns, request: DeviceRequest) -> Ints:
    """MiB the request takes of each device: as given, or a share of the total, rounded down."""
    if request.memory:
        return np.full(columns.memory.shape, request.memory, np.int64)
    return columns.memory * request.memory_percent // 100


@dataclass(slots=True, kw_only=True)
class Placement:
    """What ``place`` found for each node of a snapshot.

    Attributes:
        feasible: Whether the whole pod fits the node.
        failed_container: Position of the first container that did not; -1 where all fit.
        failed_needed: Devices that container asks for.
        codes: That container's codes (see ``ask``); 0 where all fit.
        taken: For each container and request, the marks of the devices taken and their MiB; only
            where asked for.
    """

    feasible: Bools
    failed_container: Ints
    failed_needed: Ints
    codes: Ints
    taken: list[tuple[int, DeviceRequest, Bools, Ints]]


def place(snapshot: Snapshot, pod: PodRequest, *, need_devices: bool) -> Placement:
    """Whether, and with which devices, a pod fits each node.

    Init containers run one after the other beside the sidecars started before them, app containers
    all at once beside all sidecars; each container is asked against what runs beside it.

    Args:
        snapshot: The nodes.
        pod: What is asked.
        need_devices: Whether ``taken`` is wanted; leaving it out saves the last sort.
    """
    rows, _ = snapshot.columns.present.shape
    result = Placement(
        feasible=np.ones(rows, np.bool_),
        failed_container=np.full(rows, -1, np.int64),
        failed_needed=np.zeros(rows, np.int64),
        codes=np.zeros(snapshot.columns.present.shape, np.int64),
        taken=[],
    )
    steps = [
        (position, container, request)
        for position, container in enumerate(pod.containers)
        for request in container.requests
    ]
    running = snapshot.columns
    for at, (position, container, request) in enumerate(steps):
        question, codes = ask(snapshot, running, pod, request)
        fits = codes == FITS
        eligible = _same_numa(running, fits, request.count) if pod.numa_bind else fits
        enough = eligible.sum(axis=1) >= request.count
        failed = result.feasible & ~enough
        result.failed_container[failed] = position
        result.failed_needed[failed] = request.count
        result.codes[failed] = codes[failed]
        result.feasible &= enough
        if need_devices or _matters_later(steps, at):
            marks = _first(eligible, score.device_order(question, eligible), request.count)
            marks &= result.feasible[:, np.newaxis]
            if need_devices:
                result.taken.append((position, request, marks, question.memory))
            if container.role is not Role.INIT:
                running = _with(running, marks, question.memory, request)
    return result


Step = tuple[int, ContainerRequest, DeviceRequest]


def _matters_later(steps: list[Step], at: int) -> bool:
    """Whether what this step takes narrows a later step's choice."""
    _, container, request = steps[at]
    return container.role is not Role.INIT and any(
        later.vendor == request.vendor for _, _, later in steps[at + 1 :]
    )


def _first(eligible: Bools, order: Ints, count: int) -> Bools:
    """Marks of the first ``count`` eligible devices of each node in the given order."""
    in_order = np.take_along_axis(eligible, order, axis=1)
    chosen = in_order & (np.cumsum(in_order, axis=1) <= count)
    marks = np.zeros_like(eligible)
    np.put_along_axis(marks, order, chosen, axis=1)
    return marks


def _same_numa(columns: Columns, fits: Bools, count: int) -> Bools:
    """The eligible devices of the lowest NUMA node that has enough of them."""
    result = np.zeros_like(fits)
    undecided = np.ones(fits.shape[0], np.bool_)
    for numa in np.unique(columns.numa[fits]):
        here = fits & (columns.numa == numa)
        chosen = undecided & (here.sum(axis=1) >= count)
        result[chosen] = here[chosen]
        undecided &= ~chosen
    return result


def _with(columns: Columns, marks: Bools, memory: Ints, request: DeviceRequest) -> Columns:
    return replace(
        columns,
        used_slots=columns.used_slots + marks,
        used_memory=columns.used_memory + marks * memory,
        used_cores=columns.used_cores + marks * int(request.cores),
    )
