"""One reading of a container's region, as values.

What is in a usage file is hostile input: every figure has been checked and clamped by ``region``
before it stands here.
"""

from __future__ import annotations

from dataclasses import dataclass

from hami.nodeagent.claims import Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSample:
    """What a container may use of one device, and says it uses."""

    uuid: str
    used_bytes: int
    limit_bytes: int | None
    """None: no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSample:
    """One container's devices, in the order of its allocation."""

    claim: Claim
    devices: tuple[DeviceSample, ...]
