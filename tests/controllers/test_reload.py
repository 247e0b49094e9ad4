"""Settings that change under a running controller, and files that are refused."""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from prometheus_client import CollectorRegistry, Counter

from hami import logs
from hami.config import ControllerSettings, LogSettings, NodeAgentSettings, Settings
from hami.errors import ConfigError
from hami.live import LIVE, Live, Reloader
from hami.loading import Loaded, Sources, resolve, type_of
from hami.sandbox.apiserver import ApiServer
from tests.support.commands import command
from tests.support.controller import Controller, gpus, node_object, pod_object, running
from tests.support.kube import until

Configure = Callable[..., Settings]
NODES = ["n0", "n1"]
TOLD = "settings_without_effect"


class Files:
    """A settings file as a ConfigMap mounts it: through a link that is swapped."""

    def __init__(self, directory: Path, content: dict[str, Any]) -> None:
        self._mount = directory / "mount"
        self._mount.mkdir()
        self._count = 0
        self.swap(**content)
        self.path = self._mount / "hami.yaml"
        self.path.symlink_to("..data/hami.yaml")

    def swap(self, **content: Any) -> None:
        self._count += 1
        data = self._mount / f"..{self._count}"
        data.mkdir()
        (data / "hami.yaml").write_bytes(msgspec.yaml.encode(content))
        link = self._mount / "..new"
        link.symlink_to(data.name)
        os.replace(link, self._mount / "..data")


def content_of(settings: Settings, **controller: Any) -> dict[str, Any]:
    tree: dict[str, Any] = msgspec.to_builtins(settings)
    tree["controller"] |= {"config_poll_seconds": 0.02, **controller}
    return tree


@asynccontextmanager
async def started(files: Files) -> AsyncIterator[Controller]:
    async with running(resolve(Sources(file=files.path))) as controller:
        yield controller


@pytest.fixture
def base(configure: Configure) -> Settings:
    return configure()


@pytest.fixture
def files(base: Settings, tmp_path: Path) -> Files:
    return Files(tmp_path, content_of(base))


@pytest.fixture
def pod(server: ApiServer) -> dict[str, Any]:
    return server.store.create(pod_object("a"))


async def reloads(controller: Controller, result: str) -> float:
    return await controller.value("hami_config_reloads_total", result=result)


async def until_reloaded(controller: Controller, result: str, times: int = 1) -> None:
    async def counted() -> bool:
        return await reloads(controller, result) >= times

    await until(counted)


async def test_the_next_filter_sees_a_new_mode(
    files: Files, base: Settings, pod: dict[str, Any]
) -> None:
    async with started(files) as controller:
        assert (await controller.filter(pod, NODES))["NodeNames"] == NODES

        files.swap(**content_of(base, mode="exclusive"))
        await until_reloaded(controller, "applied")

        assert len((await controller.filter(pod, NODES))["NodeNames"]) == 1


async def test_a_file_that_is_wrong_is_refused_and_what_was_stays(
    files: Files, base: Settings, pod: dict[str, Any]
) -> None:
    async with started(files) as controller:
        files.swap(**content_of(base, mode="greedy"))
        await until_reloaded(controller, "refused")
        assert (await controller.filter(pod, NODES))["NodeNames"] == NODES

        files.swap(**content_of(base, mode="exclusive"))
        await until_reloaded(controller, "applied")

        assert len((await controller.filter(pod, NODES))["NodeNames"]) == 1
        assert await reloads(controller, "refused") == 1


async def test_new_resource_names_change_what_a_request_means(
    files: Files, base: Settings, pod: dict[str, Any]
) -> None:
    async with started(files) as controller:
        assert (await controller.filter(pod, NODES))["FailedNodes"] is not None

        tree = content_of(base)
        tree["nvidia"] |= {"count_name": "x.y/gpu", "memory_name": "", "cores_name": ""}
        files.swap(**tree)
        await until_reloaded(controller, "applied")

        assert (await controller.filter(pod, NODES))["FailedNodes"] is None  # asks for nothing now


async def test_nodes_are_chosen_by_the_labels_of_now(
    server: ApiServer, files: Files, base: Settings, pod: dict[str, Any]
) -> None:
    node = server.store.get("nodes", "n0", "")
    node["metadata"]["labels"] = {"pool": "gpu"}
    server.store.update(node)

    async with started(files) as controller:
        files.swap(**content_of(base, node_label_selector="pool in (gpu)"))

        async def only(*nodes: str) -> bool:
            return list((await controller.filter(pod, NODES))["NodeNames"]) == list(nodes)

        await until(partial(only, "n0"))
        files.swap(**content_of(base, node_label_selector="pool in ("))

        async def refused() -> bool:
            return await controller.value("hami_config_reloads_total", result="refused") == 1

        await until(refused)
        assert await only("n0")
        files.swap(**content_of(base, node_label_selector="!pool"))
        await until(partial(only, "n1"))


async def test_new_pods_are_given_to_the_scheduler_of_now(files: Files, base: Settings) -> None:
    async with started(files) as controller:
        assert await scheduler_given(controller) == "hami-scheduler"

        files.swap(**content_of(base, scheduler_name="other"))
        await until_reloaded(controller, "applied")

        assert await scheduler_given(controller) == "other"


async def scheduler_given(controller: Controller) -> str:
    """The scheduler that admission gives a pod to."""
    pod = pod_object("new")
    del pod["spec"]["schedulerName"]
    request = {"uid": "1", "kind": {"kind": "Pod"}, "operation": "CREATE", "object": pod}
    review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    _, answer = await controller.post("/webhook", review)
    patch = msgspec.json.decode(base64.b64decode(answer["response"]["patch"]))
    (name,) = [step["value"] for step in patch if step["path"] == "/spec/schedulerName"]
    return str(name)


async def test_what_needs_a_restart_is_named_and_the_rest_applied(
    files: Files, base: Settings, pod: dict[str, Any]
) -> None:
    async with started(files) as controller:
        files.swap(**content_of(base, mode="exclusive", health_port=1))
        await until_reloaded(controller, "partly")

        assert len((await controller.filter(pod, NODES))["NodeNames"]) == 1
        assert await reloads(controller, "applied") == 0


async def test_the_device_configuration_file_is_followed(
    base: Settings, pod: dict[str, Any], tmp_path: Path
) -> None:
    device_file = tmp_path / "device-config.yaml"
    device_file.write_text("nvidia: {resourceCountName: nvidia.com/gpu}")
    files = Files(tmp_path, tree := content_of(base, device_config_file=str(device_file)))
    del tree["nvidia"], tree["node_agent"]
    files.swap(**tree)
    async with started(files) as controller:
        assert (await controller.filter(pod, NODES))["FailedNodes"] is not None

        device_file.write_text(
            "nvidia: {resourceCountName: x.y/z, resourceMemoryName: '', resourceCoreName: ''}"
        )
        await until_reloaded(controller, "applied")
        assert (await controller.filter(pod, NODES))["FailedNodes"] is None

        device_file.write_text("nvidia: {resourceCountNme: x.y/z}")
        await until_reloaded(controller, "refused")


async def test_a_new_log_level_holds_at_once(
    base: Settings, server: ApiServer, tmp_path: Path
) -> None:
    quick = msgspec.convert(content_of(base), Settings)
    async with command("controller", quick, tmp_path) as process:
        await process.logged("controller_synced")

        tree = content_of(base)
        tree["log"]["level"] = "debug"
        (tmp_path / "controller.yaml").write_bytes(msgspec.yaml.encode(tree))
        await process.logged("settings_changed")
        server.store.create(node_object("n2", gpus("n2")))

        await process.logged("node_devices_set")  # a line for debugging


async def test_a_controller_runs_with_the_command_line_of_the_chart(
    base: Settings, tmp_path: Path
) -> None:
    device_file = tmp_path / "device-config.yaml"
    device_file.write_text("nvidia: {defaultCores: 10}\nmetax: {resourceCountName: a/b}\n")
    arguments = [
        "--http_bind=127.0.0.1:0",
        "--scheduler-name=hami-scheduler",
        "--metrics-bind-address=127.0.0.1:0",
        "--node-scheduler-policy=spread",
        "--gpu-scheduler-policy=binpack",
        "--force-overwrite-default-scheduler=true",
        f"--device-config-file={device_file}",
        "--leader-elect=false",
        "--debug",
        "-v=4",
    ]
    async with command("controller", base, tmp_path, arguments=arguments) as process:
        await process.logged("controller_synced")

    told = [line["settings"] for line in process.lines if line["event"] == TOLD]
    assert told == [["--debug"], ["-v"], [f"metax in {device_file}"]]


# -- without a controller ------------------------------------------------------------------------


def results() -> Counter:
    return Counter("reloads", "Reloads.", ["result"], registry=CollectorRegistry())


def test_only_settings_that_exist_are_live() -> None:
    assert [path for path in LIVE if type_of(path.split(".")) is None] == []


def test_a_view_reads_the_settings_of_now() -> None:
    live = Live(Settings())
    own = live.view(lambda now: now.controller)
    told: list[tuple[str, str]] = []
    live.on_change.append(
        lambda before, now: told.append((before.controller.mode, now.controller.mode))
    )

    change = live.adopt(
        Settings(
            log=LogSettings(level="debug"),
            controller=ControllerSettings(mode="exclusive", port=1),
            node_agent=NodeAgentSettings(split_count=3),
        )
    )

    assert own.mode == "exclusive"
    assert own.port == 9443
    assert set(change.applied) == {"log.level", "controller.mode"}
    assert change.waiting == ("controller.port",)
    assert told == [("cooperative", "exclusive")]
    assert live.now.node_agent.split_count == 3  # nobody here reads it


def test_settings_that_are_equal_tell_nobody() -> None:
    live = Live(Settings())
    live.on_change.append(lambda *_: pytest.fail("told"))

    assert live.adopt(Settings()).applied == ()


async def test_a_half_written_file_is_never_taken(tmp_path: Path) -> None:
    file = tmp_path / "hami.yaml"
    file.write_text("controller: {mode: exclusive}")
    loaded = resolve(Sources(file=file))
    live = Live(loaded.settings)
    reloader = Reloader(live, loaded, results=results())

    file.write_text("")  # as an editor that begins to write leaves it
    await reloader.look()
    file.write_text("controller: {mode: exclusive, max_attempts: 7}")
    await reloader.look()
    assert live.now == loaded.settings
    await reloader.look()

    assert live.now.controller.mode == "exclusive"
    assert live.now.controller.max_attempts == 7


async def test_a_file_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "hami.yaml"
    file.write_text("controller: {max_attempts: 2}")
    loaded = resolve(Sources(file=file))
    live, counted = Live(loaded.settings), results()
    reloader = Reloader(live, loaded, results=counted)

    file.unlink()
    for _ in range(4):
        await reloader.look()
    assert live.now.controller.max_attempts == 2
    file.write_text("controller: {max_attempts: 3}")
    for _ in range(2):
        await reloader.look()

    assert live.now.controller.max_attempts == 3
    assert counted.labels("refused")._value.get() == 1  # once, not at each look


async def test_what_the_process_could_not_use_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "hami.yaml"
    file.write_text("")
    loaded = resolve(Sources(file=file))
    live = Live(loaded.settings)

    def check(_: Settings) -> None:
        raise ConfigError("not this way")

    reloader = Reloader(live, loaded, results=results(), check=check)
    file.write_text("controller: {max_attempts: 3}")
    for _ in range(2):
        await reloader.look()

    assert live.now == Settings()


async def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    loaded = Loaded(
        settings=Settings(), sources=Sources(file=pipe), files={pipe: "controller: {port: 1}"}
    )
    reloader = Reloader(Live(loaded.settings), loaded, results=results())

    with anyio.fail_after(5):  # reading again would wait for a writer for ever
        for _ in range(3):
            await reloader.look()


def test_loggers_follow_a_new_level(monkeypatch: pytest.MonkeyPatch) -> None:
    log = logs.get_logger("tests")
    written: list[str] = []
    for level in ("info", "debug", "warning"):
        monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
        logs.configure(LogSettings(level=level, format="json"))
        log.debug("spoke_softly")
        log.info("spoke")
        written.append(stream.getvalue())

    assert ["spoke_softly" in text for text in written] == [False, True, False]
    assert ['"spoke"' in text for text in written] == [True, True, False]
