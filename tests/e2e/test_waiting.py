"""Nobody waits for nothing, and everybody is told why: waiting pods through the whole sandbox."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from hami.core import codec
from tests.support.controller import quota_object
from tests.support.sandbox import Reached, gpu, inside, make_pod, outside, until

pytestmark = pytest.mark.slow

CALLED_SECONDS = 30.0
"""Far below the scheduler's own flush (300 s); how fast a call is, is not for a test to say."""


def hami(*arguments: str) -> str:
    """What the command prints, in 80 columns."""
    result = subprocess.run(
        [sys.executable, "-P", "-m", "hami", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def phase(api: Any, name: str) -> str:
    found: str = api.store.get("pods", name)["status"].get("phase", "")
    return found


async def running_again(api: Any, name: str) -> float:
    """How long until the pod is bound; it then runs as well."""
    began = time.monotonic()
    await until(lambda: api.store.get("pods", name)["spec"].get("nodeName"), f"{name} to be bound")
    seconds = time.monotonic() - began
    await until(lambda: phase(api, name) == "Running", f"{name} to run")
    return seconds


async def refused(api: Any, name: str, word: str) -> None:
    """Wait until the pod was refused for this reason and its back-off is over.

    Before that a scheduler does not try again, whoever calls.
    """

    def told() -> bool:
        conditions = api.store.get("pods", name)["status"].get("conditions") or ()
        return any(word in each.get("message", "") for each in conditions)

    await until(told, f"{name} to be refused for {word}")
    over = time.monotonic() + 5.0
    await until(lambda: time.monotonic() > over, "the back-off to end")


async def apply(reached: Reached, *pods: dict[str, Any]) -> None:
    await outside(reached.apply, *pods)


async def test_pod_starts_soon_after_its_quota_was_raised_which_no_scheduler_sees() -> None:
    async with inside(nodes=1, gpus=1) as (sandbox, reached):
        api = sandbox.api
        await apply(reached, make_pod("first", limits=gpu(memory=12_000)))
        await until(lambda: phase(api, "first") == "Running", "first to run")
        await apply(reached, make_pod("waits", limits=gpu(memory=6000)))
        await refused(api, "waits", "CardInsufficientMemory")
        api.store.create(quota_object("gpus", memory=5000))
        api.store.delete("pods", "first")
        await refused(api, "waits", "ResourceQuotaNotFit")

        quota = api.store.get("resourcequotas", "gpus")
        quota["spec"]["hard"]["limits.nvidia.com/gpumem"] = "8000"
        api.store.update(quota)
        seconds = await running_again(api, "waits")

        assert seconds < CALLED_SECONDS
        assert codec.NUDGE_KEY in api.store.get("pods", "waits")["metadata"]["annotations"]


async def test_pod_that_waits_is_explained_and_starts_when_the_named_one_ends() -> None:
    async with inside(nodes=2, gpus=1) as (sandbox, reached):
        api, there = sandbox.api, ("--server", sandbox.controller_health_url)
        for name in ("one", "two"):
            await apply(reached, make_pod(name, limits=gpu(memory=12_000)))
            await until(lambda name=name: phase(api, name) == "Running", f"{name} to run")  # type: ignore[misc]
        await apply(reached, make_pod("waits", limits=gpu(memory=6000)))
        await refused(api, "waits", "CardInsufficientMemory")

        listed = await outside(hami, "explain", *there)
        told = await outside(hami, "explain", "pod", "waits", *there)
        assert "default/waits" in listed
        assert max(map(len, listed.splitlines())) <= 80
        assert "lacks 2640 MiB; would fit if pod default/one ended" in told

        api.store.delete("pods", "one")
        assert await running_again(api, "waits") < CALLED_SECONDS

        bound = await outside(hami, "explain", "pod", "waits", "-o", "json", *there)
        assert json.loads(bound)["state"] == "bound"


def test_what_if_finds_the_sandbox_and_tells_where_a_manifest_would_go(
    shared: Reached, tmp_path: Path
) -> None:
    manifest = tmp_path / "pod.yaml"
    pod = make_pod("wonder", limits={"nvidia.com/gpumem": 30_000})
    manifest.write_text(yaml.safe_dump(pod), encoding="utf-8")
    asked = ("what-if", "--dir", str(shared.place), "-f", str(manifest), "--replicas")
    before = shared.get("/api/v1/pods")["items"]

    told = hami(*asked, "4")
    answer = json.loads(hami(*asked, "999", "-o", "json"))

    assert "all 4 would fit, and " in told
    assert 0 < len(answer["placed"]) <= 16
    assert "lacks" in answer["refusal"]["message"]
    assert {replica["node"] for replica in answer["placed"]} <= {"node-1", "node-2"}
    assert shared.get("/api/v1/pods")["items"] == before
