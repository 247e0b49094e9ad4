"""The sandbox from the command line, as a stranger meets it: up, look, apply, kill, down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest
import yaml

from hami.sandbox import lifecycle
from tests.support.processes import ended
from tests.support.sandbox import Reached, eventually, short_directory

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "deploy" / "examples" / "nvidia").glob("*.yaml"))

MIXED = """
nodes:
  - name: old
    gpus: [{model: T4, count: 2}]
    labels: {pool: cheap}
  - name: fast
    gpus: [{model: H100, count: 4}, {model: t4}]
    split_count: 20
  - name: cpu-only
    cpu: 8
    memory: 16Gi
"""

pytestmark = pytest.mark.slow


def hami(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``hami sandbox`` in an environment that names a proxy and another cluster."""
    command, *rest = arguments
    return subprocess.run(
        [sys.executable, "-P", "-m", "hami", "sandbox", command, "--dir", str(place), *rest],
        env={**os.environ, "http_proxy": "http://proxy.invalid:1", "KUBECONFIG": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def descendants(pid: int) -> set[int]:
    """The process and all below it."""
    found, new = {pid}, {pid}
    while new:
        children = Path(f"/proc/{new.pop()}/task")
        for file in children.glob("*/children"):
            more = set(map(int, file.read_text().split())) - found
            found |= more
            new |= more
    return found


@pytest.fixture(scope="module")
def mixed() -> Iterator[Reached]:
    """A sandbox of three unequal nodes, started by the command line."""
    with short_directory() as place:
        file = place.with_suffix(".yaml")
        file.write_text(MIXED)
        up = hami(place, "up", "--file", str(file))
        try:
            assert up.returncode == 0, up.stderr
            kubeconfig = place / "kubeconfig"
            assert up.stdout == f"export KUBECONFIG={kubeconfig}\n"
            server = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
            yield Reached(url=server, kubeconfig=kubeconfig, place=place)
        finally:
            file.unlink()
            hami(place, "down")


def test_mixed_cluster_has_the_nodes_of_its_file(mixed: Reached) -> None:
    state = json.loads(hami(mixed.place, "status", "-o", "json").stdout)

    models = {n["name"]: [d["model"] for d in n["devices"]] for n in state["nodes"]}
    assert models["cpu-only"] == []
    assert len(models["old"]) == 2
    assert sum("H100" in model for model in models["fast"]) == 4
    nodes = {n["metadata"]["name"]: n for n in mixed.get("/api/v1/nodes")["items"]}
    assert nodes["old"]["metadata"]["labels"]["pool"] == "cheap"
    assert nodes["fast"]["status"]["allocatable"]["nvidia.com/gpu"] == "100"
    assert nodes["cpu-only"]["status"]["capacity"]["cpu"] == "8"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_runs(mixed: Reached, example: Path) -> None:
    applied = hami(mixed.place, "apply", "-f", str(example))
    name = yaml.safe_load(example.read_text())["metadata"]["name"]

    try:
        assert applied.stdout == f"pod/{name} created\n"
        mixed.await_phase(name, "Running")
    finally:
        mixed.kubectl("delete", "pod", name, "--grace-period=1")


def test_logs_of_a_pod_of_the_controller_and_of_a_node(mixed: Reached) -> None:
    hami(mixed.place, "apply", "-f", str(ROOT / "deploy/examples/nvidia/memory.yaml"))
    try:
        mixed.await_phase("memory", "Running")
        output = eventually(
            lambda: text if "NVML" in (text := hami(mixed.place, "logs", "memory").stdout) else "",
            "what the pod says of its memory",
        )
        assert "3000 MiB" in output
        shown = hami(mixed.place, "status").stdout
        assert "default/memory" in shown
        assert "3000 MiB" in shown
    finally:
        mixed.kubectl("delete", "pod", "memory", "--grace-period=1")
    for name in ("controller", "fast", "sandbox"):
        assert hami(mixed.place, "logs", name).stdout


def test_kubectl_creates_lists(mixed: Reached) -> None:
    items = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "listed"}},
        {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "listed"}},
    ]
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})

    created = mixed.kubectl("create", "-f", "-", stdin=listed)
    deleted = mixed.kubectl("delete", "-f", "-", stdin=listed)

    assert created.count(" created") == deleted.count(" deleted") == 2
    odd = listed.replace('"kind": "Lease"', '"kind": "Lea"')
    assert "Lea" in mixed.kubectl("create", "-f", "-", stdin=odd, check=False)


def test_second_sandbox_in_the_same_directory_is_refused(mixed: Reached) -> None:
    again = hami(mixed.place, "up")

    assert again.returncode == 1
    assert "runs in" in again.stderr
    assert again.stderr.count("\n") == 1


def test_killed_sandbox_takes_everything_along_and_comes_up_again() -> None:
    with short_directory() as place:
        assert hami(place, "up", "--nodes", "1", "--gpus", "1").returncode == 0
        hami(place, "apply", "-f", str(ROOT / "deploy/examples/nvidia/memory.yaml"))
        sandbox = lifecycle.pid(place)
        assert sandbox is not None
        processes = descendants(sandbox)
        assert len(processes) >= 3

        os.kill(sandbox, signal.SIGKILL)
        for process in processes:
            eventually(partial(anyio.run, ended, process), f"the end of {process}")
        again = hami(place, "up", "--nodes", "1", "--gpus", "1")
        state = json.loads(hami(place, "status", "-o", "json").stdout)
        down = hami(place, "down")

        assert (again.returncode, down.returncode) == (0, 0)
        assert state["pods"] == []
        assert sorted(path.name for path in place.iterdir()) == ["logs", "sandbox.pid"]


def test_demo_tells_its_story_in_lines_where_there_is_no_terminal() -> None:
    with short_directory() as place:
        demo = hami(place, "demo", "--once")

    assert demo.returncode == 0, demo.stderr
    assert "\x1b" not in demo.stdout
    assert demo.stdout.count("checked after") == 3
    assert demo.stdout.count("OUT_OF_MEMORY") == 4
    assert "too-big stays Pending: no available node, 2 do not fit" in demo.stdout
    assert demo.stdout.endswith("every limit holds\n")
