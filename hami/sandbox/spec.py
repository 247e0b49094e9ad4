"""What a sandbox consists of: nodes, their GPUs, and their sizes. Plain data from YAML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import msgspec
import yaml
from msgspec import Meta

from hami.errors import SandboxError

MAX_NODES = 1000
MAX_NAME = 40
"""Node names are parts of socket paths, which may have 107 characters in all."""


class GpuGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """GPUs of one model on a node; ``hami sandbox models`` lists the models."""

    model: str
    count: Annotated[int, Meta(ge=1, le=16)] = 1


class NodeGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Equal nodes: ``name`` alone for one, ``name-1`` ... for several."""

    name: str
    count: Annotated[int, Meta(ge=1, le=MAX_NODES)] = 1
    gpus: tuple[GpuGroup, ...] = ()
    cpu: str = "64"
    memory: str = "512Gi"
    labels: dict[str, str] = {}
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
    """``nodes`` equal nodes named node-1, node-2, ..."""
    groups = (GpuGroup(model=model, count=gpus),) if gpus else ()
    group = NodeGroup(name="node-1" if nodes == 1 else "node", count=nodes, gpus=groups)
    return _checked(Layout(nodes=(group,)))


def load(file: Path) -> Layout:
    """Read a cluster from a YAML file.

    Raises:
        SandboxError: The file cannot be read, or says something that a cluster has not; names the
            place in the file.
    """
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        return _checked(msgspec.convert(tree, Layout))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, msgspec.ValidationError) as error:
        raise SandboxError(f"cluster file {file}: {error}") from error


def _checked(layout: Layout) -> Layout:
    names = [name for name, _ in layout.names()]
    if not 1 <= len(names) <= MAX_NODES:
        raise SandboxError(f"cluster: expected 1 to {MAX_NODES} nodes, met {len(names)}")
    for name in names:
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name) or len(name) > MAX_NAME:
            raise SandboxError(
                f"cluster: expected node names of at most {MAX_NAME} lower-case letters, digits, "
                f"'-' and '.', met {name!r}"
            )
    if len(set(names)) != len(names):
        raise SandboxError("cluster: expected every node name once, met one twice")
    return layout
