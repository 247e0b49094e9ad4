"""What a simulated node is and how its kubelet behaves. Plain data; defaults are the kubelet's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

VERSION: Final = "v1.34.0-sandbox"
"""The kubelet whose behaviour is followed."""
MAX_SOCKET_PATH: Final = 107
"""Bytes that the path of a unix socket may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeletSettings:
    """One simulated node."""

    node_name: str
    root: Path
    """The node's directory: pods, logs and, unless they are named below, the sockets."""
    plugin_dir: Path | None = None
    """Holds ``kubelet.sock`` and the device plugins' sockets; ``root/device-plugins``."""
    pod_resources_dir: Path | None = None
    """Holds the pod-resources socket ``kubelet.sock``; ``root/pod-resources``."""
    cpus: int = 64
    memory_bytes: int = 256 * 2**30
    pods: int = 110
    labels: Mapping[str, str] = field(default_factory=dict)
    """Beside those that every node has."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """What agents that do not run here would say of the node."""
    devices: Mapping[str, int] = field(default_factory=dict)
    """Resources that count without a device plugin: pods are given them by number alone."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What this node gives every container, as its driver and runtime would; the last word on a
    name, since a pod cannot argue with the hardware."""
    status_seconds: float = 10.0
    """How often the node's lease is renewed and its status compared with what was reported."""
    lease_seconds: int = 40
    endpoint_grace_seconds: float = 300.0
    """How long the devices of a plugin that went away are still counted in the capacity."""
    plugin_dial_seconds: float = 10.0
    plugin_call_seconds: float = 120.0
    """Deadline of Allocate and GetPreferredAllocation; the kubelet has none."""
    pre_start_seconds: float = 30.0
    restart_backoff_seconds: float = 10.0
    """After the second failure of a container; doubles with each."""
    restart_backoff_cap_seconds: float = 300.0
    config_retry_seconds: float = 10.0
    """Between tries to create a container that could not be created."""
    minimum_grace_seconds: float = 2.0
    """What every container has between SIGTERM and SIGKILL, whatever was asked for."""

    @property
    def plugins(self) -> Path:
        """Where device plugins register."""
        return self.plugin_dir or self.root / "device-plugins"

    @property
    def pod_resources(self) -> Path:
        """Where the pod-resources API is served."""
        return self.pod_resources_dir or self.root / "pod-resources"
