"""What a container really gets: real processes, the real shim, the simulated driver."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.sandbox import Reached, eventually, gpu, make_pod

EXAMPLES = sorted(Path("deploy/examples/nvidia").glob("*.yaml"))
MIB = 2**20
PROBE = ["gpu-probe", "--check", "--fill"]


def report(shared: Reached, name: str) -> dict[str, Any]:
    """What the probe found, once it has ended well."""
    pod = shared.await_phase(name, "Succeeded", "Failed")
    text = shared.log(name)
    assert pod["status"]["phase"] == "Succeeded", text
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("name", "limits", "devices", "memory"),
    [
        pytest.param("limit-one", gpu(1, memory=3000), 1, 3000, id="one GPU with 3000 MiB"),
        pytest.param("limit-two", gpu(2, memory=8000), 2, 8000, id="two GPUs with 8000 MiB each"),
        pytest.param("limit-cores", gpu(1, memory=2000, gpucores=30), 1, 2000, id="with cores"),
        pytest.param("limit-share", gpu(1, gpumem_percentage=25), 1, 20480, id="a quarter"),
    ],
)
def test_container_sees_its_limit_and_not_a_byte_more(
    shared: Reached, name: str, limits: dict[str, Any], devices: int, memory: int
) -> None:
    shared.apply(make_pod(name, limits=limits, command=PROBE))

    found = report(shared, name)

    assert len(found["devices"]) == devices
    for device in found["devices"]:
        assert device["cuda"]["total"] == memory * MIB
        assert device["cuda"]["device_total"] == memory * MIB
        assert device["nvml"]["total"] == memory * MIB
        assert device["fill"] == {
            "ok": True,
            "bytes": memory * MIB,
            "result": 0,
            "one_more_byte": 2,
        }


def test_process_with_an_empty_environment_is_limited_as_well(shared: Reached) -> None:
    keep = "HAMI_SIM_NODE=$HAMI_SIM_NODE LD_LIBRARY_PATH=$LD_LIBRARY_PATH PATH=$PATH"
    visible = "NVIDIA_VISIBLE_DEVICES=$NVIDIA_VISIBLE_DEVICES"  # the runtime's work, not ours
    shell = f"env -i {keep} {visible} gpu-probe --check --fill"
    shared.apply(make_pod("limit-bare", limits=gpu(1, memory=1000), command=["sh", "-c", shell]))

    (device,) = report(shared, "limit-bare")["devices"]

    assert device["cuda"]["total"] == 1000 * MIB


def test_processes_of_one_container_share_its_limit(shared: Reached) -> None:
    shell = (
        "gpu-probe --allocate 700 --hold 0 > /dev/null & holder=$!; "
        "while [ $(gpu-probe | grep -c '\"free\": 314572800') = 0 ]; do sleep 0.05; done; "
        "gpu-probe --check --fill; code=$?; kill $holder; wait; exit $code"
    )
    shared.apply(make_pod("limit-shared", limits=gpu(1, memory=1000), command=["sh", "-c", shell]))

    (device,) = report(shared, "limit-shared")["devices"]

    assert device["fill"]["bytes"] == 300 * MIB


def test_two_pods_on_one_card_do_not_see_each_other(shared: Reached) -> None:
    pods = [
        make_pod(
            name,
            limits=gpu(1, memory=2000),
            command=["gpu-probe", "--check", "--fill", "--hold", "0"],
            annotations={
                "hami.io/node-scheduler-policy": "binpack",
                "hami.io/gpu-scheduler-policy": "binpack",
            },
        )
        for name in ("pair-a", "pair-b")
    ]
    shared.apply(*pods)

    found = {}
    for name in ("pair-a", "pair-b"):
        shared.await_phase(name, "Running")
        found[name] = json.loads(eventually(partial(shared.log, name), "its report"))

    for one in found.values():
        assert one["ok"]
        assert one["devices"][0]["fill"]["bytes"] == 2000 * MIB
    shared.kubectl("delete", "pod", "pair-a", "pair-b", "--wait=false")


def test_containers_of_one_pod_have_their_own_limits(shared: Reached) -> None:
    pod = make_pod("limit-several", limits=gpu(1, memory=1500), command=PROBE)
    plain = {"name": "plain", "image": "none", "command": ["true"]}
    other = {
        "name": "other",
        "image": "none",
        "command": PROBE,
        "resources": {"limits": gpu(1, memory=700)},
    }
    pod["spec"]["containers"] = [plain, pod["spec"]["containers"][0], other]
    shared.apply(pod)

    shared.await_phase("limit-several", "Succeeded")

    path = "/api/v1/namespaces/default/pods/limit-several/log?container="
    for container, memory in (("main", 1500), ("other", 700)):
        (device,) = json.loads(shared.text(path + container))["devices"]
        assert device["cuda"]["total"] == memory * MIB


def test_pod_without_devices_is_left_alone(shared: Reached) -> None:
    shared.apply(
        make_pod(
            "bystander", command=["sh", "-c", "ls /usr/local/vgpu; cat /etc/ld.so.preload; true"]
        )
    )

    shared.await_phase("bystander", "Succeeded")

    assert "libvgpu" not in shared.log("bystander")
    assert shared.pod("bystander")["spec"]["schedulerName"] == "default-scheduler"


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_every_example_runs(shared: Reached, file: Path) -> None:
    name = yaml.safe_load(file.read_text())["metadata"]["name"]
    shared.kubectl("apply", "-f", str(file))
    try:
        shared.await_phase(name, "Running")
    finally:
        shared.kubectl("delete", "pod", name, "--grace-period=1")
