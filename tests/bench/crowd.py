"""The cluster that benchmarks look at: nodes of eight devices, mostly full of pods of mixed sizes.

Objects are as large as everyday ones (images, conditions, managed fields), for reading them is a
part of what is measured. Nothing is random: equal numbers give equal clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from hami.core import codec
from hami.core.vendors.nvidia import NVIDIA
from tests.support import controller as controllers

DEVICES: Final = 8
MEMORY: Final = 81_559
SMALL: Final = 2000
NAMESPACE: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    """One kind of running pod: which of its node's devices it has, and how much of each."""

    devices: tuple[int, ...]
    memory: int
    cores: int = 0


MIX: Final = (
    _Size(devices=(0, 1), memory=MEMORY, cores=100),
    _Size(devices=(2,), memory=MEMORY, cores=100),
    _Size(devices=(3,), memory=60_000),
    _Size(devices=(4,), memory=40_000, cores=30),
    _Size(devices=(4,), memory=20_000, cores=30),
    _Size(devices=(5,), memory=10_000, cores=30),
)
"""Six pods of a node; together 57 % of its memory. Devices 6 and 7 are free."""
COUNTS: Final = (1, 1, 1, 1, 1, 1, 1, 2, 2, 4)
"""Devices of new pods, in turns."""


def node_name(number: int) -> str:
    return f"gpu-node-{number:05}.example.internal"


def node(number: int) -> dict[str, Any]:
    """A Node that registered its devices."""
    name = node_name(number)
    devices = controllers.gpus(name, DEVICES, memory=MEMORY)
    obj = controllers.node_object(name, devices)
    obj["metadata"] |= {
        "uid": f"node-{number}",
        "labels": {
            "kubernetes.io/hostname": name,
            "topology.kubernetes.io/zone": f"zone-{number % 3}",
            "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
        },
        "managedFields": _managed_fields("kubelet", 12),
    }
    obj["status"] |= {
        "conditions": [
            {
                "type": kind,
                "status": "True" if kind == "Ready" else "False",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
                "reason": f"Kubelet{kind}",
                "message": f"kubelet reports {kind}",
            }
            for kind in ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready")
        ],
        "images": [
            {
                "names": [f"registry.example.com/team/image-{i}@sha256:{i:064x}"],
                "sizeBytes": 1_000_000 + i,
            }
            for i in range(25)
        ],
    }
    return obj


def running_pod(number: int, nodes: int, pods: int) -> dict[str, Any]:
    """One of ``pods`` running pods, evenly over the nodes; small ones where they are many."""
    node_number, place = number % nodes, number // nodes
    if pods <= len(MIX) * nodes:
        size = MIX[place]
    else:
        size = _Size(devices=(place % DEVICES,), memory=SMALL)
    name = node_name(node_number)
    obj = _pod(f"pod-{number}", gpus=len(size.devices), memory=size.memory, cores=size.cores)
    devices = "".join(
        f"GPU-{name}-{device},NVIDIA,{size.memory},{size.cores}:" for device in size.devices
    )
    obj["metadata"]["annotations"] |= {
        codec.NODE_KEY: name,
        codec.BIND_TIME_KEY: "1760000000",
        codec.BIND_PHASE_KEY: "success",
        NVIDIA.allocated_key: f"{devices};",
        NVIDIA.to_allocate_key: ";",
    }
    obj["metadata"]["labels"][codec.NODE_KEY] = name
    obj["spec"]["nodeName"] = name
    obj["status"] = _running_status()
    return obj


def pending_pod(number: int, *, signatures: int = 1, policy: str = "") -> dict[str, Any]:
    """A pod that waits to be scheduled, of one of so many different requests."""
    kind = number % signatures
    gpus = COUNTS[kind % len(COUNTS)] if signatures > 1 else 1
    obj = _pod(f"new-{number}", gpus=gpus, memory=1000 + 37 * kind)
    if policy:
        obj["metadata"]["annotations"][codec.NODE_POLICY_KEY] = policy
    obj["status"] = {"phase": "Pending"}
    return obj


def _pod(name: str, *, gpus: int, memory: int, cores: int = 0) -> dict[str, Any]:
    obj = controllers.pod_object(name, gpus=gpus, memory=memory, cores=cores or None)
    obj["metadata"] |= {
        "uid": f"uid-{name}",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {"app": "train", "pod-template-hash": "6d4cf56db6"},
        "annotations": {"prometheus.io/scrape": "true", "example.com/checksum": "0" * 64},
        "managedFields": _managed_fields("kube-controller-manager", 8),
    }
    obj["spec"] |= {
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "volumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": {}}]}}],
        "serviceAccountName": "default",
        "restartPolicy": "Always",
    }
    return obj


def _running_status() -> dict[str, Any]:
    kinds = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    return {
        "phase": "Running",
        "conditions": [
            {"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
            for kind in kinds
        ],
        "containerStatuses": [
            {
                "name": "c0",
                "ready": True,
                "restartCount": 0,
                "image": "registry.k8s.io/pause:3.10",
                "imageID": f"registry.k8s.io/pause@sha256:{0:064x}",
                "containerID": f"containerd://{0:064x}",
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            }
        ],
    }


def _managed_fields(manager: str, fields: int) -> list[dict[str, Any]]:
    """What every object carries and nobody reads."""
    inner: dict[str, Any] = {
        f'k:{{"type":"Condition{i}"}}': {".": {}, "f:status": {}} for i in range(fields)
    }
    return [
        {
            "manager": manager,
            "operation": "Update",
            "apiVersion": "v1",
            "time": "2026-01-01T00:00:00Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:status": {"f:conditions": inner}},
        }
    ]
