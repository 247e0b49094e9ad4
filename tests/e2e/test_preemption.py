"""A pod of high priority gets a full GPU while pods of low priority have all of them."""

from __future__ import annotations

import json
import time

import pytest

from hami.sandbox import spec
from tests.support.sandbox import Reached, background, eventually, gpu, make_pod

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

RUNNING_WITHIN_SECONDS = 15.0
"""On a busy machine; the victim's grace is one second of it."""


def priority_class(name: str, value: int) -> dict[str, object]:
    return {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": name},
        "value": value,
    }


def whole_gpu(name: str, priority: str) -> dict[str, object]:
    pod = make_pod(name, limits=gpu(1, memory=14_000))
    pod["spec"]["priorityClassName"] = priority
    return pod


def test_important_pod_runs_in_place_of_the_least_important() -> None:
    with background(spec.uniform(nodes=2, gpus=2, model="T4")) as reached:
        classes = [priority_class(n, v) for n, v in (("low", 1), ("middle", 5), ("high", 1000))]
        reached.kubectl("create", "-f", "-", stdin="\n---\n".join(map(json.dumps, classes)))
        _fill(reached)
        asked = time.monotonic()
        reached.apply(whole_gpu("important", "high"))
        reached.await_phase("important", "Running")
        took = time.monotonic() - asked

        assert took < RUNNING_WITHIN_SECONDS, f"took {took:.1f} s"
        eventually(lambda: reached.pod("least") is None, "the least important pod to be gone")
        left = [
            name for name in ("a", "b", "c") if reached.pod(name)["status"]["phase"] == "Running"
        ]
        assert left == ["a", "b", "c"]
        reasons = {event["reason"] for event in reached.events("important")}
        assert "Preempting" in reasons
        assert "Preempted" in {event["reason"] for event in reached.events("least")}


def _fill(reached: Reached) -> None:
    for name, priority in (("a", "middle"), ("b", "middle"), ("c", "middle"), ("least", "low")):
        reached.apply(whole_gpu(name, priority))
    for name in ("a", "b", "c", "least"):
        reached.await_phase(name, "Running")
