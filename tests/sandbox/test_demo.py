"""The demo's story: what counts as told and as kept, and that it can be read on any screen."""

from __future__ import annotations

import io
from typing import Any

import pytest
import yaml
from rich.console import Console

from hami.sandbox.demo import PODS
from hami.sandbox.story import OUT_OF_MEMORY, Story, picture


def device(*, ok: bool = True, one_more_byte: int = OUT_OF_MEMORY) -> dict[str, Any]:
    size = {"total": 3000 * 2**20}
    fill = {"ok": ok, "one_more_byte": one_more_byte}
    return {"uuid": "GPU-0123456789", "cuda": size, "nvml": size, "fill": fill}


def story(*devices: dict[str, Any], ok: bool = True, **limits: int) -> Story:
    asked = {f"nvidia.com/{name}": value for name, value in (limits or {"gpu": 1}).items()}
    report = {"ok": ok, "devices": list(devices)} if devices else None
    return Story(name="pod", limits={"nvidia.com/gpumem": 3000} | asked, began=0.0, report=report)


def printed(*stories: Story, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(picture(stories))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_request_is_told_in_words() -> None:
    assert story(gpu=1).asks == "1 GPU, 3000 MiB"
    assert story(gpu=2).asks == "2 GPUs, 3000 MiB each"
    assert story(gpu=1, gpucores=30).asks == "1 GPU, 3000 MiB, 30 %"


def test_first_sight_of_a_step_counts() -> None:
    seen = story()
    seen.see("bound", 1.0)
    seen.see("bound", 2.0)

    assert seen.steps == {"bound": 1.0}


@pytest.mark.parametrize(
    "failed",
    [
        pytest.param(story(device(), ok=False), id="the probe met something else"),
        pytest.param(story(device(ok=False)), id="the share could not be filled"),
        pytest.param(story(device(), device(one_more_byte=0)), id="one byte more was given"),
        pytest.param(story(device(one_more_byte=700)), id="refused for another reason"),
        pytest.param(story(), id="nothing was reported"),
    ],
)
def test_limit_counts_as_kept_only_when_every_device_says_so(failed: Story) -> None:
    assert not failed.kept
    assert story(device(), device()).kept


def test_picture_of_the_demos_pods_fits_80_columns() -> None:
    manifests = list(yaml.safe_load_all(PODS.read_text()))
    stories = []
    for manifest in manifests:
        limits = manifest["spec"]["containers"][0]["resources"]["limits"]
        shown = Story(name=manifest["metadata"]["name"], limits=limits, began=0.0, node="node-1")
        for step in ("admitted", "bound", "allocated", "running", "checked"):
            shown.see(step, 9.9996)
        shown.report = {"ok": True, "devices": [device()]}
        stories.append(shown)
    stories[-1].why_not = "no available node, " + 20 * "8/8 CardInsufficientMemory on node-1 "

    lines = printed(*stories, width=80)

    assert max(len(line.rstrip()) for line in lines) <= 80
    assert not any("…" in line for line in lines)
    assert sum("OUT_OF_MEMORY" in line for line in lines) == len(manifests)
    assert "stays Pending: no available node" in "\n".join(lines)


def test_break_of_a_limit_is_shown_as_what_it_is() -> None:
    broken = story(device(one_more_byte=0))

    assert any("CUDA_SUCCESS" in line for line in printed(broken, width=80))


def test_messages_from_the_cluster_are_not_read_as_markup() -> None:
    refused = story()
    refused.why_not = "node [red]n1[/red] is full"

    assert any("node [red]n1[/red] is full" in line for line in printed(refused, width=120))


def test_lines_for_files_have_no_table() -> None:
    told = story()
    told.see("admitted", 0.004)
    told.why_not = "too big"

    assert list(told.lines()) == [
        "pod pod asks for 1 GPU, 3000 MiB",
        "  admitted after 4 ms",
        "  refused: too big",
    ]
