"""What explain and what-if answer, as it stands in their JSON. Plain data, for server and client.

Field names are the JSON's; memory is in MiB, cores in percent, times are RFC 3339.
"""

from __future__ import annotations

import msgspec


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base: fields that a newer server adds are skipped by an older client."""


class Reason(_Answer, frozen=True, kw_only=True):
    """One word with the number of nodes that gave it."""

    word: str
    nodes: int


class Lack(_Answer, frozen=True, kw_only=True):
    """One device that does not serve."""

    uuid: str
    reason: str
    needed: int = 0
    free: int = 0
    unit: str = ""


class Near(_Answer, frozen=True, kw_only=True):
    """One of the nodes that come nearest."""

    node: str
    container: str
    line: str
    """For people: ``node-3: GPU-7 lacks 1200 MiB``."""
    needed: int
    """Devices the container asks for."""
    fitting: int
    total: int
    lacks: tuple[Lack, ...] = ()
    would_fit: str = ""
    """What would have to happen there, in words; empty where nothing that ends would do."""
    pods: tuple[str, ...] = ()
    """The pods that would have to end, ``namespace/name``."""


class Explanation(_Answer, frozen=True, kw_only=True):
    """Why one pod waits."""

    pod: str
    uid: str
    state: str
    """``unasked``, ``unreadable``, ``unfit``, ``fits`` or ``bind-failed``."""
    message: str
    """For people, in one line; where the pod does not fit, the words of its Event."""
    priority: int = 0
    decided_at: str = ""
    asked_nodes: int = 0
    reasons: tuple[Reason, ...] = ()
    nearest: tuple[Near, ...] = ()
    notes: tuple[str, ...] = ()


class Explanations(_Answer, frozen=True, kw_only=True):
    """All pods that wait, in the order in which they are called when room comes back."""

    pods: tuple[Explanation, ...]
    left_off: int = 0
    """How many more there are."""


class Given(_Answer, frozen=True, kw_only=True):
    """One device, or a share of it."""

    container: str
    uuid: str
    vendor: str
    memory: int
    cores: int


class Problem(_Answer, frozen=True, kw_only=True):
    """Why there is no answer; with the pod's place where it has one."""

    error: str
    state: str = ""
    """Of a pod: ``unknown``, ``bound``, ``finished`` or ``not-ours``."""
    node: str = ""
    devices: tuple[Given, ...] = ()


class Replica(_Answer, frozen=True, kw_only=True):
    """Where one copy would go."""

    node: str
    devices: tuple[Given, ...]


class Move(_Answer, frozen=True, kw_only=True):
    """The least that would have to end or go elsewhere for one more copy: on which node, who."""

    node: str
    pods: tuple[str, ...]


class Refusal(_Answer, frozen=True, kw_only=True):
    """Why the next copy fits nowhere."""

    message: str
    reasons: tuple[Reason, ...] = ()
    nearest: tuple[Near, ...] = ()
    move: Move | None = None
    """Whatever their priorities; None where nothing that moves would help."""


class WhatIf(_Answer, frozen=True, kw_only=True):
    """Where copies of a pod would go now."""

    pod: str
    asked: int
    placed: tuple[Replica, ...]
    more: int = 0
    """Copies that would fit beyond those asked for."""
    more_is_bound: bool = False
    """Whether counting stopped there."""
    refusal: Refusal | None = None
    """Where not all that were asked for fit."""
    notes: tuple[str, ...] = ()


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked of what-if."""

    pod: msgspec.Raw
    """The manifest of a pod, as a user writes it."""
    replicas: int = 1
