"""Sandboxes for end-to-end tests: kubectl, and conditions with deadlines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from hami.sandbox import cluster, lifecycle, spec
from hami.sandbox.cluster import Sandbox
from hami.sandbox.spec import Layout

T = TypeVar("T")

KUBECTL = Path(sys.executable).with_name("kubectl")
PATIENCE_SECONDS = 45.0


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory whose path leaves room for sockets; pytest's own are too long."""
    place = Path(tempfile.mkdtemp(prefix="hami-"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Reached:
    """A sandbox, seen through its API server alone."""

    url: str
    kubeconfig: Path
    place: Path

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """What kubectl prints; with ``check`` its failure is the test's."""
        result = self.run_kubectl(*arguments, stdin=stdin)
        if check:
            assert result.returncode == 0, f"kubectl {arguments}: {result.stderr}"
        return result.stdout if check else result.stdout + result.stderr

    def run_kubectl(
        self, *arguments: str, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl to its end, in a minute at most."""
        home = self.place / "home"
        return subprocess.run(
            [str(KUBECTL), *arguments],
            env={"KUBECONFIG": str(self.kubeconfig), "HOME": str(home), "PATH": os.environ["PATH"]},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def get(self, path: str) -> Any:
        """The object or list at a path; None where there is none."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def patch(self, path: str, body: dict[str, Any]) -> None:
        """Merge into the object at a path."""
        request = urllib.request.Request(
            f"{self.url}{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/merge-patch+json"},
            method="PATCH",
        )
        with urllib.request.urlopen(request, timeout=10):
            pass

    def text(self, path: str) -> str:
        """The body at a path."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
            body: bytes = answer.read()
            return body.decode()

    def pod(self, name: str, namespace: str = "default") -> Any:
        """The pod, or None."""
        return self.get(f"/api/v1/namespaces/{namespace}/pods/{name}")

    def log(self, name: str) -> str:
        """The output of a pod's only container."""
        return self.text(f"/api/v1/namespaces/default/pods/{name}/log")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events about an object of this name."""
        items: list[dict[str, Any]] = self.get("/api/v1/namespaces/default/events")["items"]
        return [event for event in items if event["involvedObject"].get("name") == name]

    def apply(self, *pods: dict[str, Any]) -> None:
        """Create pods as a user would."""
        self.kubectl("create", "-f", "-", stdin="\n---\n".join(map(json.dumps, pods)))

    def await_phase(self, name: str, *phases: str) -> dict[str, Any]:
        """The pod, once it is in one of these phases."""

        def there() -> dict[str, Any] | None:
            pod: dict[str, Any] | None = self.pod(name)
            return pod if pod and pod["status"]["phase"] in phases else None

        return eventually(there, f"pod {name} to be {' or '.join(phases)}")


def eventually(
    condition: Callable[[], T | None], what: str, *, seconds: float = PATIENCE_SECONDS
) -> T:
    """The first truthy value of the condition, looked at often, until the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.02)


@contextmanager
def background(layout: Layout, *, mode: str = "cooperative") -> Iterator[Reached]:
    """A sandbox as ``hami sandbox up`` starts it, in processes of its own."""
    with short_directory() as place:
        process = lifecycle.start(place, layout, mode=mode)
        try:
            kubeconfig = place / "kubeconfig"
            yield Reached(url=_url(kubeconfig), kubeconfig=kubeconfig, place=place)
        finally:
            lifecycle.stop(place)
            process.wait(timeout=PATIENCE_SECONDS)


@asynccontextmanager
async def inside(
    *,
    nodes: int = 1,
    gpus: int = 2,
    model: str = "T4",
    mode: str = "cooperative",
    settings: dict[str, Any] | None = None,
) -> AsyncIterator[tuple[Sandbox, Reached]]:
    """A sandbox in this process, whose parts the test may kill."""
    with short_directory() as place:
        layout = spec.uniform(nodes=nodes, gpus=gpus, model=model)
        async with cluster.running(place, layout, mode=mode, settings=settings) as sandbox:
            yield (
                sandbox,
                Reached(url=sandbox.api.url, kubeconfig=sandbox.kubeconfig, place=place),
            )


async def outside(call: Callable[..., T], *arguments: Any) -> T:
    """Run a blocking look at the sandbox beside the sandbox itself."""
    return await anyio.to_thread.run_sync(lambda: call(*arguments))


async def until(
    condition: Callable[[], T | None], what: str, *, seconds: float = PATIENCE_SECONDS
) -> T:
    """Like ``eventually``, for sandboxes in this process."""
    with anyio.move_on_after(seconds):
        while True:
            value = condition()
            if value:
                return value
            await anyio.sleep(0.02)
    raise AssertionError(f"waited {seconds:.0f} s in vain for {what}")


def make_pod(
    name: str,
    *,
    limits: dict[str, Any] | None = None,
    command: list[str] | None = None,
    annotations: dict[str, str] | None = None,
    restart: str = "Never",
) -> dict[str, Any]:
    """A pod with one container; without a command it sleeps until it is stopped."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "annotations": annotations or {}},
        "spec": {
            "restartPolicy": restart,
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "main",
                    "image": "hami/gpu-probe",
                    "command": command or ["sleep", "infinity"],
                    "resources": {"limits": {k: str(v) for k, v in (limits or {}).items()}},
                }
            ],
        },
    }


def gpu(count: int = 1, *, memory: int | None = None, **more: Any) -> dict[str, Any]:
    """Limits of a container: ``gpu(2, memory=3000, gpucores=30)``."""
    limits: dict[str, Any] = {"nvidia.com/gpu": count}
    if memory is not None:
        limits["nvidia.com/gpumem"] = memory
    limits.update({f"nvidia.com/{name.replace('_', '-')}": value for name, value in more.items()})
    return limits


def _url(kubeconfig: Path) -> str:
    import yaml

    config = yaml.safe_load(kubeconfig.read_text())
    server: str = config["clusters"][0]["cluster"]["server"]
    return server
