"""Hostile and broken input through the front door: a clear answer, and nothing else disturbed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.sandbox import Reached, eventually, gpu, make_pod

GPU, MEMORY = "nvidia.com/gpu", "nvidia.com/gpumem"


def refusal(shared: Reached, pod: dict[str, Any]) -> str:
    """What kubectl says of a pod that must be refused."""
    result = shared.run_kubectl("create", "-f", "-", stdin=json.dumps(pod))
    assert result.returncode != 0, f"expected a refusal, met: {result.stdout}"
    return result.stderr


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        pytest.param({GPU: "-1"}, GPU, id="negative count"),
        pytest.param({GPU: "1.5"}, GPU, id="fractional count"),
        pytest.param({GPU: "two"}, "quantit", id="count in words"),
        pytest.param({GPU: "1", MEMORY: "-3000"}, MEMORY, id="negative memory"),
        pytest.param({GPU: "1", MEMORY: "9999999999999"}, MEMORY, id="huge memory"),
        pytest.param({GPU: "100000"}, GPU, id="huge count"),
        pytest.param(
            {GPU: "1", MEMORY: "3000", "nvidia.com/gpumem-percentage": "50"},
            "percentage",
            id="memory twice",
        ),
        pytest.param(
            {GPU: "1", "nvidia.com/gpumem-percentage": "101"}, "100", id="more than all memory"
        ),
    ],
)
def test_pod_that_asks_nonsense_is_refused_in_words(
    shared: Reached, limits: dict[str, str], words: str
) -> None:
    assert words in refusal(shared, make_pod("nonsense", limits=limits))


def test_privileged_pod_with_a_device_is_refused(shared: Reached) -> None:
    pod = make_pod("privileged", limits=gpu(1, memory=1000))
    pod["spec"]["containers"][0]["securityContext"] = {"privileged": True}

    assert "privileged" in refusal(shared, pod)


def test_pod_on_a_node_of_its_own_choice_is_refused(shared: Reached) -> None:
    pod = make_pod("placed", limits=gpu(1, memory=1000))
    pod["spec"]["nodeName"] = "node-1"

    assert "node" in refusal(shared, pod)


def test_ten_megabytes_of_annotations_are_refused(shared: Reached) -> None:
    pod = make_pod("fat", limits=gpu(1), annotations={"hami.io/note": "x" * 10_000_000})

    assert refusal(shared, pod)


def test_pod_for_an_unknown_type_waits_with_the_reason(shared: Reached) -> None:
    annotations = {"nvidia.com/use-gputype": "Voodoo2"}
    shared.apply(make_pod("old-school", limits=gpu(1), annotations=annotations))

    event = eventually(
        lambda: next(
            (e for e in shared.events("old-school") if e["reason"] == "FilteringFailed"), None
        ),
        "an event",
    )

    assert "CardTypeMismatch" in event["message"]
    shared.kubectl("delete", "pod", "old-school")


def test_pod_with_broken_weights_is_refused_by_name(shared: Reached) -> None:
    annotations = {"hami.io/device-scoring-weights": "slot=1,memory=3"}

    told = refusal(shared, make_pod("weightless", limits=gpu(1), annotations=annotations))

    assert "hami.io/device-scoring-weights" in told


@pytest.mark.parametrize(
    "register", ["[null]", "not json", "[{}]", '[{"id":"a"},{"id":"a"}]', "x" * 100_000]
)
def test_node_with_a_broken_inventory_disturbs_no_other(shared: Reached, register: str) -> None:
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "broken", "annotations": {"hami.io/node-nvidia-register": register}},
    }
    shared.kubectl("apply", "-f", "-", stdin=json.dumps(node))
    try:
        shared.apply(make_pod("undisturbed", limits=gpu(1, memory=100)))
        pod = shared.await_phase("undisturbed", "Running")
        assert pod["spec"]["nodeName"] in {"node-1", "node-2"}
    finally:
        shared.kubectl("delete", "pod", "undisturbed", "--grace-period=1", check=False)
        shared.kubectl("delete", "node", "broken")


def test_bound_pod_with_broken_annotations_disturbs_no_other(shared: Reached) -> None:
    """Somebody writes garbage over a running pod's record; new pods go on being placed."""
    shared.apply(make_pod("scribbled", limits=gpu(1, memory=100)))
    shared.await_phase("scribbled", "Running")
    key = "hami.io/vgpu-devices-allocated"
    shared.kubectl("annotate", "--overwrite", "pod", "scribbled", f"{key}=a,b,c:;")

    shared.apply(make_pod("after", limits=gpu(1, memory=100)))

    shared.await_phase("after", "Running")
    shared.kubectl("delete", "pod", "after", "scribbled", "--grace-period=1")
