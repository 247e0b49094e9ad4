"""The sandbox with the real kubectl, as a user of the demo would."""

from __future__ import annotations

import json
import subprocess

from tests.support.sandbox import KUBECTL, Reached, eventually, gpu, make_pod


def test_pod_goes_from_apply_to_delete(shared: Reached) -> None:
    manifest = json.dumps(make_pod("life", limits=gpu(1, memory=1001)))
    assert "created" in shared.kubectl("apply", "-f", "-", stdin=manifest)
    shared.await_phase("life", "Running")

    wide = shared.kubectl("get", "pods", "-o", "wide")
    assert "NAME" in wide
    assert "1/1" in next(line for line in wide.splitlines() if line.startswith("life "))
    described = shared.kubectl("describe", "pod", "life")
    for reason in ("Scheduled", "Started"):
        assert reason in described
    assert "hami.io/bind-phase: success" in described
    assert "unchanged" in shared.kubectl("apply", "-f", "-", stdin=manifest)
    shared.kubectl("annotate", "pod", "life", "example.org/note=hello")
    assert shared.pod("life")["metadata"]["annotations"]["example.org/note"] == "hello"
    shared.kubectl("delete", "pod", "life", "--grace-period=1")
    assert shared.pod("life") is None


def test_nodes_show_their_inventory(shared: Reached) -> None:
    nodes = shared.kubectl("get", "nodes", "-o", "yaml")

    assert "hami.io/node-nvidia-register" in nodes
    assert "nvidia.com/gpu: " in nodes


def test_watch_prints_each_change(shared: Reached) -> None:
    with subprocess.Popen(
        [str(KUBECTL), "get", "pods", "-w", "-o", "name", "--field-selector", "metadata.name=seen"],
        env={"KUBECONFIG": str(shared.kubeconfig), "HOME": str(shared.place), "PATH": ""},
        stdout=subprocess.PIPE,
        text=True,
    ) as watch:
        try:
            assert watch.stdout is not None
            shared.apply(make_pod("seen", command=["true"]))
            assert watch.stdout.readline().strip() == "pod/seen"
        finally:
            watch.kill()


def test_pod_that_cannot_fit_says_why_and_what_came_nearest(shared: Reached) -> None:
    shared.apply(make_pod("too-big", limits=gpu(1, memory=900_000)))

    event = eventually(
        lambda: next(
            (e for e in shared.events("too-big") if e["reason"] == "FilteringFailed"), None
        ),
        "the event of a pod that fits nowhere",
    )

    assert "2 x CardInsufficientMemory" in event["message"]
    assert "nearest: node-1: GPU-" in event["message"]
    assert shared.pod("too-big")["status"]["phase"] == "Pending"
    assert "CardInsufficientMemory" in shared.kubectl("describe", "pod", "too-big")
    shared.kubectl("delete", "pod", "too-big")


def test_sandbox_commands_show_apply_and_print(shared: Reached) -> None:
    from typer.testing import CliRunner

    from hami.cli import app

    place = ["--dir", str(shared.place)]
    file = shared.place / "pod.yaml"
    file.write_text(json.dumps(make_pod("by-cli", command=["echo", "said"])))
    runner = CliRunner()

    applied = runner.invoke(app, ["sandbox", "apply", "-f", str(file), *place])
    shared.await_phase("by-cli", "Succeeded")
    said = runner.invoke(app, ["sandbox", "logs", "by-cli", *place])
    status = runner.invoke(app, ["sandbox", "status", "--output", "json", *place])

    assert applied.output.strip() == "pod/by-cli created"
    assert said.output.strip() == "said"
    state = json.loads(status.output)
    assert {len(node["devices"]) for node in state["nodes"]} == {4}
    assert "default/by-cli" in {pod["pod"] for pod in state["pods"]}
    assert "node-1" in runner.invoke(app, ["sandbox", "status", *place]).output
