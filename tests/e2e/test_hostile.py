"""What a container may try against its limits, and against others; none of it works.

Every container here is root in its own mounts, as most are.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hami.nodeagent.region_layout import MAX_SLOTS, Slot, Usage
from tests.support.gpu import OUT_OF_MEMORY
from tests.support.growing import growing
from tests.support.sandbox import Reached, eventually, gpu, make_pod

pytestmark = pytest.mark.slow

MIB = 2**20
TOGETHER = {
    "hami.io/node-scheduler-policy": "binpack",
    "hami.io/gpu-scheduler-policy": "binpack",
}
HERE = (
    "HAMI_SIM_NODE=$HAMI_SIM_NODE LD_LIBRARY_PATH=$LD_LIBRARY_PATH PATH=$PATH "
    "NVIDIA_VISIBLE_DEVICES=$NVIDIA_VISIBLE_DEVICES"
)
"""What makes a process see the simulated GPUs at all: the runtime's work on a real node."""
OWN_CONTROL = (
    "mkdir /tmp/own && cp /usr/local/vgpu/control /usr/local/vgpu/usage /tmp/own/ && "
    # the first device's limit, after 512 bytes of header and 96 of UUID: no limit at all
    r"printf '\377\377\377\377\377\377\377\377' | dd of=/tmp/own/control bs=1 seek=608 conv=notrunc"
)


def shell(name: str, script: str, *, memory: int = 1000, **env: str) -> dict[str, Any]:
    pod = make_pod(
        name,
        limits=gpu(1, memory=memory),
        command=["bash", "-c", script],
        annotations=TOGETHER,
    )
    variables = [{"name": key, "value": value} for key, value in env.items()]
    pod["spec"]["containers"][0]["env"] = variables
    return pod


def last_report(shared: Reached, name: str) -> list[dict[str, Any]]:
    """The devices of the probe that ran last in the pod."""
    pod = shared.await_phase(name, "Succeeded", "Failed")
    log = shared.log(name)
    assert pod["status"]["phase"] == "Succeeded", log
    found: list[dict[str, Any]] = json.loads(log.splitlines()[-1])["devices"]
    return found


@contextmanager
def neighbour(shared: Reached, name: str) -> Iterator[None]:
    """A pod on the same card, which must not notice anything."""
    shared.apply(shell(name, "gpu-probe --allocate 500 --hold 0"))
    shared.await_phase(name, "Running")
    try:
        yield
        after = f"{name}-after"
        shared.apply(shell(after, "gpu-probe --check --fill"))
        (device,) = last_report(shared, after)
        assert device["fill"]["bytes"] == 1000 * MIB
        assert shared.pod(name)["status"]["phase"] == "Running"
    finally:
        shared.kubectl("delete", "pod", name, "--grace-period=1")


def test_pod_that_makes_every_device_visible_gets_memory_on_its_own_alone(shared: Reached) -> None:
    shared.apply(shell("see-all", "gpu-probe --fill", NVIDIA_VISIBLE_DEVICES="all"))

    devices = last_report(shared, "see-all")

    assert len(devices) == 4
    assert sorted(device["fill"]["bytes"] for device in devices) == [0, 0, 0, 1000 * MIB]
    assert sorted(device["cuda"]["total"] for device in devices) == [0, 0, 0, 1000 * MIB]
    assert sorted(device["nvml"]["total"] for device in devices) == [0, 0, 0, 1000 * MIB]


@pytest.mark.parametrize(
    "evasion",
    [
        pytest.param("unset LD_PRELOAD; gpu-probe --fill", id="unset LD_PRELOAD"),
        pytest.param("LD_PRELOAD= gpu-probe --fill", id="an empty LD_PRELOAD"),
        pytest.param(f"env -i {HERE} gpu-probe --fill", id="env -i"),
        pytest.param(
            f"{OWN_CONTROL}; HAMI_REGION_DIR=/tmp/own gpu-probe --fill", id="a region of its own"
        ),
        pytest.param(
            "CUDA_DISABLE_CONTROL=true CUDA_DEVICE_MEMORY_LIMIT_0=0 gpu-probe --fill",
            id="variables that once lifted limits",
        ),
        pytest.param("CUDA_VISIBLE_DEVICES=0 gpu-probe --fill", id="another order of devices"),
    ],
)
def test_process_cannot_leave_its_limits(
    shared: Reached, request: pytest.FixtureRequest, evasion: str
) -> None:
    name = "evade-" + "".join(c for c in request.node.callspec.id.lower() if c.isalnum())
    shared.apply(shell(name, evasion))

    (device,) = last_report(shared, name)

    assert device["fill"]["bytes"] == 1000 * MIB
    assert device["fill"]["one_more_byte"] == 2


@pytest.mark.parametrize(
    "attempt",
    [
        "echo x > /usr/local/vgpu/control",
        "chmod 777 /usr/local/vgpu/control",
        "rm -f /usr/local/vgpu/control",
        "mv /usr/local/vgpu/control /tmp/control",
        "truncate -s 0 /usr/local/vgpu/control",
        "rm -f /usr/local/vgpu/usage",
        "ln /usr/local/vgpu/usage /tmp/usage",
        "echo > /etc/ld.so.preload",
        "rm -f /etc/ld.so.preload",
        "echo > /usr/local/vgpu/libvgpu.so",
        "umount /usr/local/vgpu/control",
        "mount -o remount,rw /usr/local/vgpu/control",
    ],
)
def test_files_of_the_limits_cannot_be_changed_from_inside(shared: Reached, attempt: str) -> None:
    name = "change-" + "".join(c for c in attempt if c.isalpha())[:40].lower()
    script = f"if {attempt}; then echo it worked; exit 1; fi; gpu-probe --check --fill"
    shared.apply(shell(name, script))

    (device,) = last_report(shared, name)

    assert device["fill"]["bytes"] == 1000 * MIB


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("garbage", "head -c 1117248 /dev/urandom > /usr/local/vgpu/usage"),
        (
            "slots",
            "dd if=/dev/urandom of=/usr/local/vgpu/usage bs=4096 seek=1 count=200 conv=notrunc",
        ),
        ("cut", "truncate -s 0 /usr/local/vgpu/usage"),
        ("grown", "truncate -s 1G /usr/local/vgpu/usage"),
        ("closed", "chmod 0 /usr/local/vgpu/usage"),
    ],
)
def test_container_that_spoils_its_usage_hurts_itself_alone(
    shared: Reached, name: str, damage: str
) -> None:
    with neighbour(shared, f"{name}-neighbour"):
        shared.apply(shell(f"{name}-vandal", f"{damage}; gpu-probe --fill"))

        (device,) = last_report(shared, f"{name}-vandal")

        assert device["fill"]["bytes"] <= 1000 * MIB
        assert device["cuda"]["total"] <= 1000 * MIB


def test_what_a_container_hides_is_seen_told_and_counted(shared: Reached) -> None:
    with growing(shared, "hides", memory=8000) as hider:
        assert hider.ask("alloc", 6000 * MIB)[0] == 0
        layout = (
            *(Usage.slots.offset, MAX_SLOTS + 1),
            *(ctypes.sizeof(Slot), Slot.rows.offset),
        )

        assert hider.ask("hide", *layout) == (0,)

        eventually(
            lambda: any(e["reason"] == "DeviceUsedAroundShim" for e in shared.events("hides")),
            "the pod to be told",
        )
        assert hider.ask("info") == (0, 2000 * MIB, 8000 * MIB)
        assert hider.ask("alloc", 2001 * MIB)[0] == OUT_OF_MEMORY


@pytest.mark.parametrize("path", ["/etc/ld.so.preload", "/usr/local/vgpu/control"])
def test_volume_over_the_limits_fails_the_pod_with_the_reason(shared: Reached, path: str) -> None:
    name = "cover-" + path.rsplit("/", 1)[-1].replace(".", "-")
    pod = shell(name, "gpu-probe --fill")
    pod["spec"]["volumes"] = [{"name": "own", "emptyDir": {}}]
    pod["spec"]["containers"][0]["volumeMounts"] = [
        {"name": "own", "mountPath": path, "subPath": "file"}
    ]
    shared.apply(pod)

    status = shared.await_phase(name, "Succeeded", "Failed")["status"]

    assert status["phase"] == "Failed"
    assert path in status["message"]
    eventually(
        lambda: [e for e in shared.events(name) if e["reason"] == "AllocateFailed"], "an event"
    )
