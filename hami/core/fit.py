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

from hami.core import score, topology
from hami.core.device import (
    ContainerRequest,
    DevicePolicy,
    DeviceRequest,
    PodRequest,
    Role,
    Selection,
    SortKey,
)
from hami.core.instances import Demand, demand
from hami.core.table import Bools, Columns, Floats, Ints, Snapshot
from hami.core.verdict import PERMANENT, Reason, Unit

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

    mig: Demand
    """The same request, put to the devices that are partitioned in hardware."""

    @property
    def policy(self) -> DevicePolicy:
        """The order of devices, with that of NUMA nodes where the pod binds to one."""
        policy = self.pod.device_policy
        return policy.bound_to_numa() if self.selection.numa_bind else policy

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
    shared_only: bool = False
    """Whether devices partitioned in hardware are exempt, for their slices say all."""
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
    for row, column in snapshot.table.places(uuids):
        marks[snapshot.rows == row, column] = True
    return marks


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
        fails=lambda q: q.pod.device_policy.mutex & (q.columns.used_slots > 0),
    ),
    Rule(
        reason=Reason.MEMORY,
        shared_only=True,
        fails=lambda q: q.columns.memory - q.columns.used_memory < q.memory,
        lack=lambda q: (q.memory, np.maximum(q.columns.memory - q.columns.used_memory, 0)),
        unit=Unit.MIB,
    ),
    Rule(
        reason=Reason.CORES,
        shared_only=True,
        fails=lambda q: q.columns.cores - q.columns.used_cores < q.request.cores,
        lack=lambda q: (
            int(q.request.cores),
            np.maximum(q.columns.cores - q.columns.used_cores, 0),
        ),
        unit=Unit.PERCENT,
    ),
    Rule(
        reason=Reason.NOT_ALONE,
        shared_only=True,
        fails=lambda q: q.exclusive & (q.columns.cores == 100) & (q.columns.used_slots > 0),
    ),
    Rule(
        reason=Reason.CORES_EXHAUSTED,
        shared_only=True,
        fails=lambda q: (
            (q.request.cores == 0)
            & (q.columns.cores > 0)
            & (q.columns.used_cores >= q.columns.cores)
        ),
    ),
    Rule(reason=Reason.MIG, fails=lambda q: q.mig.devices & (q.mig.capacity() == 0)),
)


def ask(
    snapshot: Snapshot, columns: Columns, pod: PodRequest, request: DeviceRequest
) -> tuple[Question, Codes]:
    """Every device's code for a request: FITS, ABSENT, or 1 + the first rule that fails."""
    memory = demanded_memory(columns, request)
    question = Question(
        snapshot=snapshot,
        columns=columns,
        pod=pod,
        request=request,
        selection=pod.selection(request.vendor),
        memory=memory,
        mig=demand(snapshot.table, columns, memory=memory, cores=int(request.cores)),
    )
    candidates = columns.present & (columns.vendor == snapshot.table.words.number(request.vendor))
    some_shared = ~question.mig.devices if question.mig.any else None
    codes = np.full(columns.present.shape, FITS, np.uint8)
    for code, rule in reversed(tuple(enumerate(RULES, start=1))):
        if rule.reason in request.skipped_rules:
            continue
        failing = rule.fails(question)
        if rule.shared_only and some_shared is not None:
            failing = failing & some_shared
        np.copyto(codes, np.uint8(code), where=failing)
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
    taken: Ints
    """How often each device is taken; nowhere on a node that the pod does not fit."""
    order: Ints | None
    """Each node's columns in order of preference; None where nobody wanted to know."""


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
    misses: Floats
    """How far each node is from holding the pod (see ``_miss``); 0 where it does."""


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
    misses = np.zeros(feasible.shape, np.float64)
    asked = [
        (position, container, request)
        for position, container in enumerate(pod.containers)
        for request in container.requests
    ]
    steps: list[Step] = []
    running = snapshot.columns
    for position, container, request in asked:
        question, codes = ask(snapshot, running, pod, request)
        units = _units(question, codes)
        if question.selection.numa_bind:
            units = _same_numa(question, units)
        enough = units.sum(axis=1) >= request.count
        failed = feasible & ~enough
        if failed.any():
            failed_step[failed] = len(steps)
            all_codes[failed] = codes[failed]
            misses[failed] = _miss(question, codes)[failed]
        feasible &= enough
        stays = container.role is not Role.INIT
        taken, order = np.zeros_like(units), None
        if need_devices or (stays and _asked_again(request, asked[len(steps) + 1 :])):
            taken, order = _take(question, units)
            taken = taken * feasible[:, np.newaxis]
        steps.append(Step(position=position, question=question, taken=taken, order=order))
        if not feasible.any():
            break
        if stays and len(steps) < len(asked):
            running = _with(running, taken, question)
    return Placement(
        feasible=feasible,
        steps=tuple(steps),
        failed_step=failed_step,
        codes=all_codes,
        misses=misses,
    )


def _asked_again(
    request: DeviceRequest, later: Sequence[tuple[int, ContainerRequest, DeviceRequest]]
) -> bool:
    """Whether what this request takes narrows the choice of a later one."""
    return any(other.vendor == request.vendor for _, _, other in later)


def _units(question: Question, codes: Codes) -> Ints:
    """How often each device may be taken: once, or once for each MIG instance it can give."""
    fits = codes == FITS
    if not question.mig.any:
        once: Ints = fits.astype(np.int64)
        return once
    c = question.columns
    instances = np.minimum(question.mig.capacity(), np.maximum(c.slots - c.used_slots, 0))
    units: Ints = np.where(fits & question.mig.devices, instances, fits)
    return units


def _take(question: Question, units: Ints) -> tuple[Ints, Ints]:
    """How often each device is taken on each node, and the order in which they were tried."""
    order = score.device_order(
        question.columns,
        units > 0,
        policy=question.policy,
        weights=question.pod.weights,
        memory=question.memory,
        cores=question.request.cores,
        costs=question.mig.costs() if question.mig.any else None,
    )
    count = question.request.count
    taken = _first(units, order, count)
    if question.pod.device_policy.topology:
        _relink(question.snapshot, taken, units, order, count)
    return taken, order


def _first(units: Ints, order: Ints, count: int) -> Ints:
    """The first ``count`` units of each node in the given order."""
    in_order = np.take_along_axis(units, order, axis=1)
    before = np.cumsum(in_order, axis=1) - in_order
    chosen = np.clip(count - before, 0, in_order)
    taken = np.zeros_like(units)
    np.put_along_axis(taken, order, chosen, axis=1)
    return taken


def _relink(snapshot: Snapshot, taken: Ints, units: Ints, order: Ints, count: int) -> None:
    """On nodes whose links are known, take the best linked set instead of the first devices.

    Nodes alike in links and in what may be taken share one search.
    """
    known: dict[tuple[bytes, tuple[int, ...]], tuple[int, ...]] = {}
    for i, row in enumerate(snapshot.rows.tolist()):
        links = snapshot.table.links_of_row(row)
        candidates = tuple(column for column in order[i].tolist() if units[i, column])
        if links is None or len(candidates) <= count:
            continue
        key = links.tobytes(), candidates
        if key not in known:
            known[key] = topology.choose_set(links, candidates, count)
        taken[i] = 0
        taken[i, list(known[key])] = 1


def _same_numa(question: Question, units: Ints) -> Ints:
    """What may be taken on one NUMA node: the first that has enough, in the policy's order."""
    columns, count = question.columns, question.request.count
    result: Ints = np.zeros_like(units)
    undecided = np.ones(units.shape[0], np.bool_)
    low_first = question.policy.keys[0] is SortKey.LOW_NUMA
    numas = np.unique(columns.numa[units > 0])
    for numa in numas if low_first else numas[::-1]:
        here = np.where(columns.numa == numa, units, 0)
        chosen = undecided & (here.sum(axis=1) >= count)
        result[chosen] = here[chosen]
        undecided &= ~chosen
    return result


def with_taken(columns: Columns, step: Step) -> Columns:
    """The columns after a step, beside whatever else has been taken."""
    question = replace(step.question, mig=replace(step.question.mig, columns=columns))
    return _with(columns, step.taken, question)


def _with(columns: Columns, taken: Ints, question: Question) -> Columns:
    """The columns after the request has taken these."""
    if question.mig.any:
        instances = np.where(question.mig.devices, taken, 0)
        columns = question.mig.with_taken(instances)
        taken = taken - instances
    return replace(
        columns,
        used_slots=columns.used_slots + taken,
        used_memory=columns.used_memory + taken * question.memory,
        used_cores=columns.used_cores + taken * int(question.request.cores),
    )


_HOPELESS: Final = 10.0
_MISSING: Final = 100.0


def _miss(question: Question, codes: Codes) -> Floats:
    """How far each node is from serving the request: the sum of what its nearest devices lack.

    A lack counts as its share of what is needed, a rule that time may mend as 1, one that only
    people can (health, cordon, selection) as 10, a device that is not there as 100.
    """
    cost = np.zeros(codes.shape, np.float64)
    for code, rule in enumerate(RULES, start=1):
        here = codes == code
        if not here.any():
            continue
        if rule.lack is None:
            cost[here] = _HOPELESS if rule.reason in PERMANENT else 1.0
            continue
        needed, free = (np.broadcast_to(value, codes.shape)[here] for value in rule.lack(question))
        cost[here] = np.clip((needed - free) / np.maximum(needed, 1), 0.0, 1.0)
    cost[codes == ABSENT] = _MISSING
    count = question.request.count
    absent = max(count - codes.shape[1], 0)
    result: Floats = np.sort(cost, axis=1)[:, :count].sum(axis=1) + absent * _MISSING
    return result
