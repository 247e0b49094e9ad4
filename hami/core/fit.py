"""Which devices can hold a request, and the first rule that says no.

``RULES`` is the whole of it: one row a rule, in the order in which they are told to users. A rule
looks at every device of every node of a snapshot at once. ``place`` then walks a pod's containers
in the order in which they run and takes devices for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

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

Codes = npt.NDArray[np.uint8]


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
) -> tuple[Question, Codes]:
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
    codes = np.full(columns.present.shape, FITS, np.uint8)
    for code, rule in reversed(tuple(enumerate(RULES, start=1))):
        np.copyto(codes, np.uint8(code), where=rule.fails(question))
    np.copyto(codes, np.uint8(ABSENT), where=~candidates)
    return question, codes


def demanded_memory(columns: Columns, request: DeviceRequest) -> Ints:
    """MiB the request takes of each device: as given, or a share of the total, rounded down."""
    if request.memory:
        return np.full(columns.memory.shape, request.memory, np.int64)
    return columns.memory * request.memory_percent // 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One container's request of one vendor, as ``place`` came to it."""

    position: int
    """Of the container in its pod."""
    question: Question
    taken: Bools
    """Marks of the devices taken on each node; none on a node that the pod does not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What ``place`` found for each node of a snapshot."""

    feasible: Bools
    """Whether the whole pod fits the node."""
    steps: tuple[Step, ...]
    """In the order of containers, until no node was left."""
    failed_step: Ints
    """Number of the step that found too few devices; -1 where all did."""
    codes: Codes
    """Of that step (see ``ask``); 0 where all found enough."""


def place(snapshot: Snapshot, pod: PodRequest, *, need_devices: bool) -> Placement:
    """Whether, and with which devices, a pod fits each node.

    Init containers run one after the other beside the sidecars started before them, app containers
    all at once beside all sidecars; each container is asked against what runs beside it.

    Args:
        snapshot: The nodes.
        pod: What is asked.
        need_devices: Whether ``Step.taken`` is wanted; else it may stay empty, which saves sorting.
    """
    feasible = np.ones(snapshot.columns.present.shape[0], np.bool_)
    failed_step = np.full(feasible.shape, -1, np.int64)
    all_codes = np.full(snapshot.columns.present.shape, FITS, np.uint8)
    asked = [
        (position, container, request)
        for position, container in enumerate(pod.containers)
        for request in container.requests
    ]
    steps: list[Step] = []
    running = snapshot.columns
    for position, container, request in asked:
        question, codes = ask(snapshot, running, pod, request)
        fits = codes == FITS
        eligible = _same_numa(running, fits, request.count) if pod.numa_bind else fits
        enough = eligible.sum(axis=1) >= request.count
        failed = feasible & ~enough
        failed_step[failed] = len(steps)
        all_codes[failed] = codes[failed]
        feasible &= enough
        stays = container.role is not Role.INIT
        taken = np.zeros_like(eligible)
        if need_devices or (stays and _asked_again(request, asked[len(steps) + 1 :])):
            order = score.device_order(
                question.columns,
                eligible,
                pod=pod,
                memory=question.memory,
                cores=request.cores,
            )
            taken = _first(eligible, order, request.count) & feasible[:, np.newaxis]
        steps.append(Step(position=position, question=question, taken=taken))
        if not feasible.any():
            break
        if stays and len(steps) < len(asked):
            running = _with(running, taken, question)
    return Placement(
        feasible=feasible, steps=tuple(steps), failed_step=failed_step, codes=all_codes
    )


def _asked_again(
    request: DeviceRequest, later: Sequence[tuple[int, ContainerRequest, DeviceRequest]]
) -> bool:
    """Whether what this request takes narrows the choice of a later one."""
    return any(other.vendor == request.vendor for _, _, other in later)


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


def _with(columns: Columns, taken: Bools, question: Question) -> Columns:
    return replace(
        columns,
        used_slots=columns.used_slots + taken,
        used_memory=columns.used_memory + taken * question.memory,
        used_cores=columns.used_cores + taken * int(question.request.cores),
    )
