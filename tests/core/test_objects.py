"""Objects are read from JSON: what is unused is skipped, what is absent is empty."""

from __future__ import annotations

import msgspec
import pytest

from hami.core.objects import Node, Pod


def test_a_pod_is_read_with_the_fields_in_use() -> None:
    pod = msgspec.json.decode(
        b"""{"kind": "Pod", "metadata": {"name": "p", "namespace": "n", "uid": "u",
        "managedFields": [{"manager": "kubectl"}], "annotations": {"a": "b"}},
        "spec": {"nodeName": "node-0", "volumes": [], "initContainers": [
        {"name": "i", "restartPolicy": "Always"}], "containers": [{"name": "c", "resources":
        {"limits": {"nvidia.com/gpu": "1", "cpu": 2, "x": 0.5}}}]},
        "status": {"phase": "Running", "initContainerStatuses": [{"name": "i", "state":
        {"terminated": {"exitCode": 3}}}]}}""",
        type=Pod,
    )

    assert pod.key == "n/p"
    assert pod.annotations == {"a": "b"}
    assert [(c.name, among_init) for c, among_init in pod.containers()] == [
        ("i", True),
        ("c", False),
    ]
    assert pod.spec.containers is not None
    assert pod.spec.containers[0].resources is not None
    assert pod.spec.containers[0].resources.limits == {"nvidia.com/gpu": "1", "cpu": 2, "x": 0.5}


@pytest.mark.parametrize("text", [b"{}", b'{"metadata": {"annotations": null}, "spec": {}}'])
def test_an_object_without_anything_is_empty(text: bytes) -> None:
    pod, node = msgspec.json.decode(text, type=Pod), msgspec.json.decode(text, type=Node)

    assert pod.annotations == node.annotations == {}
    assert list(pod.containers()) == []
    assert not pod.finished
    assert node.name == ""


@pytest.mark.parametrize(
    ("phase", "finished"),
    [
        ("Pending", False),
        ("Running", False),
        ("Unknown", False),
        ("Succeeded", True),
        ("Failed", True),
    ],
)
def test_a_pod_is_finished_when_all_its_containers_are_for_good(phase: str, finished: bool) -> None:
    pod = msgspec.convert({"status": {"phase": phase}}, Pod)

    assert pod.finished is finished
