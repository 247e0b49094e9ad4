"""What a container is given, and how much of it this machine can keep apart. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from hami.errors import SandboxError


class Isolation(StrEnum):
    """How mounts are made."""

    NAMESPACES = "namespaces"
    """In a mount namespace of the container's own: they exist at their container paths, and what
    is read-only cannot be written."""
    PLAIN = "plain"
    """Not at all, where this machine forbids namespaces: see ``hami.sandbox.runtime.plain``."""


class StartError(SandboxError):
    """The container's first process could not be run; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A file or directory of this machine that the container sees at another place."""

    host_path: str
    container_path: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """Everything a container is started with; nothing of the sandbox's own environment is added."""

    name: str
    """For logs: ``namespace/pod/container``."""
    command: tuple[str, ...]
    """Program and arguments; the program is looked up in the ``PATH`` of ``env``."""
    env: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    working_dir: str = "/"
    log_path: Path
    """Where its output is appended; the directory exists."""
    scratch: Path
    """An empty directory that belongs to this container alone."""
    privileged: bool = False
    """Keep the capabilities that containers lose."""
