"""What a sandbox consists of: nodes, their GPUs, and their sizes. Plain data from YAML.

All of it is checked before anything starts, so that a slip costs no waiting.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Annotated

import msgspec
import yaml
from msgspec import Meta

from hami.core.quantity import parse_quantity
from hami.errors import ConfigError, QuantityError, SandboxError
from hami.sandbox.gpu import catalogue

MAX_NODES = 1000
MAX_GPUS = 16
"""On one node, of all models together."""
MAX_DEVICES = 1024
"""Of one resource on a node, of those that are not simulated."""
MAX_NAME = 40
"""Node names are parts of socket paths, which may have 107 characters in all."""
RESERVED_NAMES = frozenset({"controller", "sandbox"})
"""Names of other log files, beside which a node's agent has its own."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_LABEL_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?"
)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?")


class GpuGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """GPUs of one model on a node; ``hami sandbox models`` lists the models."""

    model: str
    count: Annotated[int, Meta(ge=1, le=MAX_GPUS)] = 1


class NodeGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Equal nodes: ``name`` alone for one, ``name-1`` ... for several.

    ``cpu`` and ``memory`` are Kubernetes quantities of each node. ``split_count`` is how many
    containers may share one GPU; ``memory_scaling`` is what its memory is multiplied by.
    ``devices`` and ``annotations`` are what the kubelet and other makers' agents would say of
    devices that are not simulated; ``{node}`` in an annotation stands for the node's name.
    """

    name: str
    count: Annotated[int, Meta(ge=1, le=MAX_NODES)] = 1
    gpus: tuple[GpuGroup, ...] = ()
    cpu: str | int = "64"
    memory: str | int = "512Gi"
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    devices: dict[str, Annotated[int, Meta(ge=0, le=MAX_DEVICES)]] = {}
    split_count: Annotated[int, Meta(ge=1, le=1000)] = 10
    memory_scaling: Annotated[float, Meta(gt=0, le=100)] = 1.0


class Layout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole cluster."""

    nodes: tuple[NodeGroup, ...]

    def names(self) -> list[tuple[str, NodeGroup]]:
        """Every node by name, in order."""
        return [
            (group.name if group.count == 1 else f"{group.name}-{i}", group)
            for group in self.nodes
            for i in range(1, group.count + 1)
        ]


def uniform(*, nodes: int, gpus: int, model: str) -> Layout:
    """``nodes`` equal nodes named node-1, node-2, ...

    Raises:
        ConfigError: There is no such model, or too much of something.
    """
    groups = (GpuGroup(model=model, count=gpus),) if gpus else ()
    group = NodeGroup(name="node-1" if nodes == 1 else "node", count=nodes, gpus=groups)
    return _checked(Layout(nodes=(group,)))


def load(file: Path) -> Layout:
    """Read a cluster from a YAML file.

    Raises:
        ConfigError: The file cannot be read, or says something that a cluster has not; names the
            place in the file.
    """
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        return _checked(msgspec.convert(tree, Layout))
    except OSError as error:
        raise ConfigError(f"cluster file {file}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError, msgspec.ValidationError, ConfigError) as error:
        raise ConfigError(f"cluster file {file}: {' '.join(str(error).split())}") from error


def _checked(layout: Layout) -> Layout:
    total = sum(group.count for group in layout.nodes)
    if not 1 <= total <= MAX_NODES:
        raise ConfigError(f"expected 1 to {MAX_NODES} nodes, met {total}")
    names = [name for name, _ in layout.names()]
    for name in names:
        _check_name(name)
    for name, times in Counter(names).items():
        if times > 1:
            raise ConfigError(f"expected every node name once, met {name!r} {times} times")
    for group in layout.nodes:
        _check_group(group)
    return layout


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise ConfigError(
            f"expected node names of at most {MAX_NAME} lower-case letters, digits, "
            f"'-' and '.', met {name!r}"
        )
    if name in RESERVED_NAMES:
        raise ConfigError(f"expected a node name other than {name!r}, which is taken")


def _check_group(group: NodeGroup) -> None:
    try:
        for gpus in group.gpus:
            catalogue.get(gpus.model)
        if parse_quantity(group.cpu) < 1 or parse_quantity(group.memory) < 1:
            raise ConfigError(
                f"node group {group.name!r}: expected at least one CPU and one byte of memory, "
                f"met {group.cpu} and {group.memory}"
            )
    except (SandboxError, QuantityError) as error:
        raise ConfigError(f"node group {group.name!r}: {error}") from error
    total = sum(gpus.count for gpus in group.gpus)
    if total > MAX_GPUS:
        raise ConfigError(
            f"node group {group.name!r}: expected at most {MAX_GPUS} GPUs, met {total}"
        )
    for key in (*group.annotations, *group.devices):
        if not _LABEL_KEY.fullmatch(key):
            raise ConfigError(f"node group {group.name!r}: expected a valid name, met {key!r}")
    for key, value in group.labels.items():
        if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise ConfigError(
                f"node group {group.name!r}: expected a valid label, met {key!r}: {value!r}"
            )
