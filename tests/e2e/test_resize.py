"""Limits of running pods are raised and lowered, from the command line to the process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest

from hami.core.codec_resize import RESIZE_APPLIED_KEY, RESIZE_KEY
from hami.core.vendors.nvidia import NVIDIA
from tests.support.gpu import MIB, OUT_OF_MEMORY
from tests.support.growing import growing
from tests.support.sandbox import Reached, eventually, gpu, make_pod

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

GIB = 1024
CARD = 80 * GIB


def hami_resize(reached: Reached, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user runs it."""
    command = [sys.executable, "-m", "hami", "resize", *arguments]
    command += ["--kubeconfig", str(reached.kubeconfig)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def applied(reached: Reached, name: str) -> dict[str, Any]:
    annotations = reached.pod(name)["metadata"]["annotations"]
    found: dict[str, Any] = json.loads(annotations.get(RESIZE_APPLIED_KEY, "{}")).get("main", {})
    return found


def test_growth_reaches_a_process_that_waits_for_it(shared: Reached) -> None:
    with growing(shared, "grows", memory=1000) as grower:
        assert grower.ask("alloc", 1000 * MIB)[0] == 0
        assert grower.ask("alloc", MIB)[0] == OUT_OF_MEMORY
        grower.order("await_alloc", 500 * MIB, 30)

        asked = time.monotonic_ns()
        shared.kubectl(
            "annotate", "pod", "grows", f'{RESIZE_KEY}={{"main":{{"gpumem":1500}}}}'
        )  # fmt: skip
        result, _, had_at = grower.answer()

        assert result == 0
        assert had_at > asked
        assert grower.ask("alloc", MIB)[0] == OUT_OF_MEMORY


def test_shrink_below_the_use_kills_nobody_and_frees_nothing_for_others_too_early(
    shared: Reached,
) -> None:
    most = CARD - 10 * GIB
    with growing(shared, "shrinks", memory=most) as grower:
        _, address = grower.ask("alloc", (most - GIB) * MIB)
        record = shared.pod("shrinks")["metadata"]["annotations"][NVIDIA.allocated_key]
        same_card = {"nvidia.com/use-gpuuuid": record.split(",")[0]}

        said = hami_resize(shared, "shrinks", "--memory", str(GIB), "--cores", "30")

        assert said.returncode == 0, said.stderr
        assert "1024 MiB and 30 %" in said.stdout
        assert "in use beyond that" in said.stdout
        assert applied(shared, "shrinks")["blocked"] == most - 2 * GIB
        assert grower.ask("alloc", MIB)[0] == OUT_OF_MEMORY
        shared.apply(make_pod("heir", limits=gpu(1, memory=40 * GIB), annotations=same_card))
        eventually(lambda: shared.events("heir"), "an event that tells the heir why not")
        assert shared.pod("heir")["spec"].get("nodeName") is None

        assert grower.ask("free", address) == (0,)
        shared.await_phase("heir", "Running")
        assert "blocked" not in applied(shared, "shrinks")
        assert grower.ask("alloc", 1000 * MIB)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["asks", "--memory", "999999"], "denied: device"),
        (["asks", "--cores", "101"], "--cores"),
        (["nobody", "--memory", "1"], "there is no such pod"),
        (["asks", "--memory", "1", "-c", "other"], "expected one of main"),
        (["asks"], "expected --memory, --cores or both"),
    ],
)
def test_what_cannot_be_is_said(shared: Reached, arguments: list[str], reason: str) -> None:
    if shared.pod("asks") is None:
        shared.apply(make_pod("asks", limits=gpu(1, memory=500)))
        shared.await_phase("asks", "Running")

    said = hami_resize(shared, *arguments)

    assert said.returncode != 0
    assert reason in " ".join(said.stderr.split())
    assert said.stdout == ""


def test_answer_for_programs_is_json(shared: Reached) -> None:
    with growing(shared, "told", memory=500):
        said = hami_resize(shared, "told", "--memory", "600", "-o", "json")

    assert json.loads(said.stdout) == {
        "namespace": "default",
        "pod": "told",
        "container": "main",
        "gpumem": 600,
        "gpucores": 0,
        "blocked": 0,
    }
