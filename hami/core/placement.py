"""Answers for pods: which nodes fit, how good each is, why the others do not, and which devices.

A ``Placer`` looks at the live device table and keeps its last answer for each request signature:
asked again, it looks only at nodes whose generation moved. So the thousandth replica of a workload
costs what changed since the one before. Nothing here awaits, so the table cannot change underneath.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Final

import numpy as np

from hami.core import fit, score, whatif
from hami.core.allocation import Allocation, ContainerDevice, Containers, MigShare
from hami.core.device import MODE_MIG, NodePolicy, PodRequest, VendorName
from hami.core.quantity import MiB
from hami.core.quota import QuotaUse, Room, asks_shares, needs, use_of
from hami.core.table import Bools, DeviceTable, Floats, Ints
from hami.core.takings import Taking, takings
from hami.core.verdict import DeviceVerdict, NodeReason, Reason, Verdict, summary

SIGNATURES_KEPT: Final = 256
"""Answers kept; the least recently asked goes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Devices for every container of a pod on one node, decided at a generation of that node."""

    node: str
    generation: int
    containers: Containers


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """What an extender's filter and prioritize need about a list of nodes."""

    feasible: tuple[str, ...]
    """In the order asked."""
    preference: Floats
    """Of each feasible node; higher is better."""
    failed: dict[str, str]
    """The reason of each other node."""
    best: str | None
    """The preferred node; among equals the first by name. None if nothing fits."""

    def without(self, nodes: Collection[str], reason: str) -> Ranking:
        """The same without these nodes, which fail for this reason; unless no node were left."""
        if not nodes:
            return self
        kept = [i for i, name in enumerate(self.feasible) if name not in nodes]
        if not kept or len(kept) == len(self.feasible):
            return self
        feasible = tuple(self.feasible[i] for i in kept)
        preference = self.preference[kept]
        gone = (name for name in self.feasible if name in nodes)
        return Ranking(
            feasible=feasible,
            preference=preference,
            failed=self.failed | dict.fromkeys(gone, reason),
            best=_first_of_the_best(feasible, preference),
        )

    def priorities(self) -> dict[str, int]:
        """Each feasible node's score as an extender gives it, 0 to 10; only ``best`` has 10."""
        if self.best is None:
            return {}
        numbers = score.priorities(self.preference, best=self.feasible.index(self.best))
        return dict(zip(self.feasible, numbers.tolist(), strict=True))


class _Answer:
    """The last known result for one signature, row by row."""

    def __init__(self) -> None:
        self.generations: Ints = np.zeros(0, np.int64)
        self.feasible: Bools = np.zeros(0, np.bool_)
        self.scores: Floats = np.zeros(0, np.float64)
        self.misses: Floats = np.zeros(0, np.float64)
        self.takings: dict[VendorName, Taking] = {}
        """What the pod takes where it fits, as quotas count; of the generations in ``taken_at``."""
        self.taken_at: Ints = np.zeros(0, np.int64)
        self.reasons: list[str] = []

    def grow(self, rows: int) -> None:
        missing = rows - len(self.reasons)
        if missing > 0:
            self.generations = np.concatenate([self.generations, np.full(missing, -1, np.int64)])
            self.feasible = np.concatenate([self.feasible, np.zeros(missing, np.bool_)])
            self.scores = np.concatenate([self.scores, np.zeros(missing)])
            self.misses = np.concatenate([self.misses, np.zeros(missing)])
            self.taken_at = np.concatenate([self.taken_at, np.full(missing, -1, np.int64)])
            self.takings = {
                vendor: Taking(
                    memory=np.concatenate([own.memory, np.zeros(missing, np.int64)]),
                    cores=np.concatenate([own.cores, np.zeros(missing, np.int64)]),
                )
                for vendor, own in self.takings.items()
            }
            self.reasons += [""] * missing


class Placer:
    """Places pods on the nodes of one table."""

    def __init__(self, table: DeviceTable) -> None:
        self.table = self._table = table
        self._answers: OrderedDict[PodRequest, _Answer] = OrderedDict()

    def rank(
        self, request: PodRequest, nodes: Iterable[str], *, room: Room | None = None
    ) -> Ranking:
        """Which of these nodes fit, how much each is preferred, and why the others do not fit.

        Asked with the very tuple of the time before, it need not look the names up again.

        Args:
            request: What the pod asks.
            nodes: By name.
            room: What the pod's namespace may still take; None for anything.
        """
        names = tuple(nodes)
        answer = self._answer(request)
        rows = self._table.rows_of(names)
        fits = answer.feasible[rows] & (rows >= 0) if answer.reasons else np.zeros(len(rows), bool)
        failed = {
            names[i]: answer.reasons[row] if row >= 0 else NodeReason.UNREGISTERED.value
            for i, row in zip(np.flatnonzero(~fits).tolist(), rows[~fits].tolist(), strict=True)
        }
        if room is not None and fits.any():
            over = fits & self._beyond(room, request, answer, rows)
            failed |= dict.fromkeys(compress(names, over.tolist()), NodeReason.QUOTA.value)
            fits &= ~over
        feasible = tuple(compress(names, fits.tolist())) if failed else names
        scores = answer.scores[rows[fits]]
        preference = -scores if request.node_policy is NodePolicy.SPREAD else scores
        return Ranking(
            feasible=feasible,
            preference=preference,
            failed=failed,
            best=self._first_of_the_best(rows[fits], preference),
        )

    def choose(
        self,
        request: PodRequest,
        node: str,
        *,
        room: Room | None = None,
        without: Sequence[whatif.Charges] = (),
    ) -> Choice | Verdict:
        """The devices a pod would get on a node now, in order of choice, or why it gets none.

        Args:
            request: What the pod asks.
            node: By name.
            room: What the pod's namespace may still take; None for anything.
            without: What other pods hold there that count as gone.
        """
        row = self._table.rows.get(node)
        if row is None:
            return Verdict(node=node)
        snapshot = self._table.copy([row])
        if without:
            whatif.relieve(self._table, snapshot, [(0, charges) for charges in without])
        result = fit.place(snapshot, request, need_devices=True)
        if not result.feasible[0]:
            return _verdict(node, request, result)
        containers = _containers(request, result)
        if room is not None and (lacks := room.lacks(_use_of(request, containers))):
            return Verdict(node=node, reason=NodeReason.QUOTA, note=str(lacks[0]))
        return Choice(node=node, generation=int(snapshot.generations[0]), containers=containers)

    def _first_of_the_best(self, rows: Ints, preference: Floats) -> str | None:
        if not rows.size:
            return None
        top = rows[preference == preference.max()]
        return self._table.names[int(top[self._table.places_by_name()[top].argmin()])]

    def nearest(
        self, request: PodRequest, nodes: Iterable[str], *, count: int
    ) -> tuple[Verdict, ...]:
        """Why the nodes that come nearest to holding the pod do not, the nearest first."""
        answer = self._answer(request)
        names = tuple(nodes)
        rows = self._table.rows_of(names)
        failing = np.flatnonzero((rows >= 0) & ~answer.feasible[rows]) if answer.reasons else rows
        misses = answer.misses[rows[failing]]
        if failing.size > count:
            bound = np.partition(misses, count - 1)[count - 1]
            failing, misses = failing[misses <= bound], misses[misses <= bound]
        ordered = heapq.nsmallest(
            count, zip(misses.tolist(), (names[i] for i in failing.tolist()), strict=True)
        )
        verdicts = (self.choose(request, name) for _, name in ordered)
        return tuple(verdict for verdict in verdicts if isinstance(verdict, Verdict))

    def _beyond(self, room: Room, request: PodRequest, answer: _Answer, rows: Ints) -> Bools:
        """Marks of the rows on which the pod would take more than its namespace may."""
        if not asks_shares(request) and not self._table.words.knows(MODE_MIG):
            return np.full(len(rows), bool(room.lacks(needs(request))))
        self._settle_takings(answer, request)
        over = np.zeros(len(rows), np.bool_)
        for ceiling, left in room.left:
            taking = answer.takings.get(ceiling.vendor)
            if taking is not None:
                over |= taking.of(ceiling.kind)[rows] > max(left, 0)
        return over

    def _settle_takings(self, answer: _Answer, request: PodRequest) -> None:
        """Find what the pod takes on the nodes that it fits and that have changed."""
        stale = (answer.taken_at != answer.generations) & answer.feasible
        rows = np.flatnonzero(stale)
        if not rows.size:
            return
        for vendor, found in takings(self._table.copy(rows), request).items():
            kept = answer.takings.setdefault(vendor, Taking.nothing(len(answer.reasons)))
            kept.memory[rows], kept.cores[rows] = found.memory, found.cores
        answer.taken_at[rows] = answer.generations[rows]

    def _answer(self, request: PodRequest) -> _Answer:
        answer = self._answers.get(request)
        if answer is None:
            answer = self._answers[request] = _Answer()
            while len(self._answers) > SIGNATURES_KEPT:
                self._answers.popitem(last=False)
        self._answers.move_to_end(request)
        size = len(self._table)
        answer.grow(size)
        current = self._table.generations[:size]
        changed = np.flatnonzero(answer.generations != current)
        if changed.size:
            self._refresh(answer, request, changed)
        return answer

    def _refresh(self, answer: _Answer, request: PodRequest, rows: Ints) -> None:
        whole = rows.size == len(self._table)
        snapshot = self._table.view() if whole else self._table.copy(rows)
        result = fit.place(snapshot, request, need_devices=False)
        answer.feasible[rows] = result.feasible
        answer.scores[rows] = score.node_scores(snapshot.columns)
        answer.misses[rows] = result.misses
        answer.generations[rows] = snapshot.generations
        self._explain(answer, rows, result)

    def _explain(self, answer: _Answer, rows: Ints, result: fit.Placement) -> None:
        """Fill the reasons of infeasible rows; rows with equal codes share one text."""
        failing = np.flatnonzero(~result.feasible)
        counts = [step.question.request.count for step in result.steps]
        texts: dict[tuple[bytes, int], str] = {}
        for row, codes, step in zip(
            rows[failing].tolist(),
            np.sort(result.codes[failing], axis=1),
            result.failed_step[failing].tolist(),
            strict=True,
        ):
            key = codes.tobytes(), counts[step]
            if key not in texts:
                texts[key] = _text(codes.tolist(), counts[step])
            answer.reasons[row] = texts[key]


def _containers(request: PodRequest, result: fit.Placement) -> Containers:
    """The devices of each container, from the one node of a placement."""
    containers: list[list[ContainerDevice]] = [[] for _ in request.containers]
    for step in result.steps:
        assert step.order is not None
        for column in step.order[0].tolist():
            if step.taken[0, column]:
                containers[step.position] += _devices(step, column)
    return tuple(tuple(devices) for devices in containers)


def _use_of(request: PodRequest, containers: Containers) -> QuotaUse:
    nobody = Allocation(
        uid="", namespace="", name="", node="", containers=containers, roles=request.roles
    )
    return use_of(nobody)


def _devices(step: fit.Step, column: int) -> Iterator[ContainerDevice]:
    """What one container gets of one device: a share, or so many MIG instances."""
    question = step.question
    uuid, vendor = question.snapshot.uuid(0, column), question.request.vendor
    if question.mig.devices[0, column]:
        for profile, placement in question.mig.pick(0, column, int(step.taken[0, column])):
            yield ContainerDevice(
                uuid=uuid,
                vendor=vendor,
                memory=profile.memory,
                cores=profile.cores,
                mig=MigShare(profile=profile.name, placement=placement),
            )
        return
    yield ContainerDevice(
        uuid=uuid,
        vendor=vendor,
        memory=MiB(int(question.memory[0, column])),
        cores=question.request.cores,
    )


def _first_of_the_best(names: Sequence[str], preference: Floats) -> str | None:
    if not names:
        return None
    top = np.flatnonzero(preference == preference.max())
    return min(names[i] for i in top.tolist())


def _text(codes: Sequence[int], needed: int) -> str:
    present = [code for code in codes if code != fit.ABSENT]
    reasons: Counter[Reason] = Counter(
        fit.RULES[code - 1].reason for code in present if code != fit.FITS
    )
    return summary(needed, len(present), reasons)


def _verdict(node: str, request: PodRequest, result: fit.Placement) -> Verdict:
    """Why the one node of a placement cannot hold the pod."""
    step = result.steps[int(result.failed_step[0])]
    return Verdict(
        node=node,
        container=request.containers[step.position].name,
        needed=step.question.request.count,
        devices=tuple(
            _device_verdict(step.question, column, code)
            for column, code in enumerate(result.codes[0].tolist())
            if code != fit.ABSENT
        ),
    )


def _device_verdict(question: fit.Question, column: int, code: int) -> DeviceVerdict:
    uuid = question.snapshot.uuid(0, column)
    if code == fit.FITS:
        return DeviceVerdict(uuid=uuid, reason=None)
    rule = fit.RULES[code - 1]
    needed, free = rule.lack(question) if rule.lack else (0, 0)
    shape = question.columns.present.shape
    return DeviceVerdict(
        uuid=uuid,
        reason=rule.reason,
        needed=int(np.broadcast_to(needed, shape)[0, column]),
        free=int(np.broadcast_to(free, shape)[0, column]),
        unit=rule.unit,
    )
