"""What explain and what-if show to people, in 80 columns and in more. Knows how things look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.markup import escape

from hami.controllers.answers import (
    Explanation,
    Explanations,
    Given,
    Move,
    Near,
    Problem,
    Reason,
    WhatIf,
)
from hami.sandbox.screen import UUID_SHOWN, counted, table

PODS_SHOWN: Final = 10
REPLICAS_SHOWN: Final = 20
"""Copies that get lines of their own; ``-o json`` has them all."""
_STATES: Final = {
    "unasked": "not asked yet",
    "unreadable": "unreadable",
    "unfit": "fits nowhere",
    "fits": "being bound",
    "bind-failed": "bind failed",
}


def show_waiting(answer: Explanations) -> None:
    """Print every pod that waits, one after the other in the order in which they are called."""
    console = _console()
    if not answer.pods:
        console.print("no pod waits for devices")
        return
    rows = table("pod", "prio", "state", "why")
    rows.columns[1].justify = "right"
    for pod in answer.pods:
        state = _STATES.get(pod.state, pod.state)
        rows.add_row(escape(pod.pod), str(pod.priority), state, escape(_short(pod)))
    console.print(rows)
    if answer.left_off:
        console.print(f"and {counted(answer.left_off, 'more pod')}")


def _short(pod: Explanation) -> str:
    """What fits a table: the nearest miss and the reasons, the words of refusals left out."""
    if pod.state != "unfit":
        return pod.message
    parts = [_shortened(near) for near in pod.nearest[:1]]
    parts.append(f"{counted(pod.asked_nodes, 'node')}: {_reasons(pod.reasons)}")
    return "; ".join([*parts, *pod.notes])


def _shortened(near: Near) -> str:
    line = near.line
    for lack in near.lacks:
        line = line.replace(lack.uuid, lack.uuid[:UUID_SHOWN])
    return line


def show_explanation(pod: Explanation) -> None:
    """Print why one pod waits."""
    console = _console()
    state = _STATES.get(pod.state, pod.state)
    console.print(f"[bold]{escape(pod.pod)}[/]: {state}", soft_wrap=True)
    if pod.state != "unfit":
        console.print(escape(pod.message), soft_wrap=True)
    _nearest(console, pod.nearest)
    if pod.reasons:
        asked = counted(pod.asked_nodes, "node")
        console.print(f"of {asked} asked about: {escape(_reasons(pod.reasons))}", soft_wrap=True)
    for note in pod.notes:
        console.print(escape(note), soft_wrap=True)
    if pod.decided_at:
        console.print(f"[dim]decided at {pod.decided_at}, priority {pod.priority}[/]")


def _nearest(console: Console, nearest: Sequence[Near]) -> None:
    for near in nearest:
        line = f"{near.line}; {near.would_fit}" if near.would_fit else near.line
        console.print(f"  {escape(line)}", soft_wrap=True)
        if len(near.pods) > 1:
            console.print(f"    [dim]{escape(', '.join(near.pods))}[/]", soft_wrap=True)


def show_not_waiting(problem: Problem) -> None:
    """Print why there is nothing to explain about a pod."""
    console = _console()
    console.print(escape(problem.error), soft_wrap=True)
    if problem.devices:
        console.print(_devices(problem.devices))


def show_what_if(answer: WhatIf) -> None:
    """Print where copies of a pod would go."""
    console = _console()
    name = escape(answer.pod)
    if answer.placed:
        _placed(console, answer)
    if answer.refusal is None:
        more = f"at least {answer.more}" if answer.more_is_bound else str(answer.more)
        what = f"all {answer.asked}" if answer.asked > 1 else "it"
        console.print(f"[bold]{name}[/]: {what} would fit, and {more} more", soft_wrap=True)
    else:
        fit = f"{len(answer.placed)} of {answer.asked} would fit"
        why = escape(_reasons(answer.refusal.reasons) or answer.refusal.message)
        console.print(f"[bold]{name}[/]: {fit}; the next one nowhere: {why}", soft_wrap=True)
        _nearest(console, answer.refusal.nearest)
        _move(console, answer.refusal.move)
    for note in answer.notes:
        console.print(f"[dim]{escape(note)}[/]", soft_wrap=True)


def _move(console: Console, move: Move | None) -> None:
    if move is None:
        console.print("no pod that ended would make room for it", soft_wrap=True)
        return
    pods = ", ".join(move.pods[:PODS_SHOWN])
    more = f" and {len(move.pods) - PODS_SHOWN} more" if len(move.pods) > PODS_SHOWN else ""
    where = f"least to move for one more, on {move.node}: {pods}{more}"
    console.print(escape(where), soft_wrap=True)


def _placed(console: Console, answer: WhatIf) -> None:
    rows = table("copy", "node", "container", "device", "MiB", "cores")
    for column in (rows.columns[0], *rows.columns[4:]):
        column.justify, column.no_wrap = "right", True
    for number, replica in enumerate(answer.placed[:REPLICAS_SHOWN], start=1):
        for at, given in enumerate(replica.devices):
            copy, node = (str(number), escape(replica.node)) if at == 0 else ("", "")
            rows.add_row(copy, node, *_cells(given))
    console.print(rows)
    rest = answer.placed[REPLICAS_SHOWN:]
    if rest:
        nodes = Counter(replica.node for replica in rest).most_common(5)
        told = ", ".join(f"{count} on {escape(node)}" for node, count in nodes)
        console.print(f"and {len(rest)} more copies: {told}", soft_wrap=True)


def _devices(devices: Sequence[Given]) -> object:
    rows = table("container", "device", "MiB", "cores")
    for column in rows.columns[2:]:
        column.justify, column.no_wrap = "right", True
    for given in devices:
        rows.add_row(*_cells(given))
    return rows


def _cells(given: Given) -> tuple[str, str, str, str]:
    cores = f"{given.cores} %" if given.cores else "-"
    return escape(given.container), escape(given.uuid), str(given.memory), cores


def _reasons(reasons: Sequence[Reason]) -> str:
    return ", ".join(f"{reason.nodes} x {reason.word}" for reason in reasons)


def _console() -> Console:
    return Console(highlight=False)
