"""Containers are processes with the environment and mounts they were given, and nothing else."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from hami.errors import SandboxError
from hami.sandbox.runtime import (
    HELPER,
    Container,
    ContainerSpec,
    Exit,
    Isolation,
    Mount,
    Runtime,
    StartError,
    logs,
)
from tests.support.kube import until
from tests.support.processes import ended

PATH = "/usr/bin:/bin"


class Bench:
    """Starts containers below one directory and ends what a test leaves."""

    def __init__(self, directory: Path, runtime: Runtime) -> None:
        self.directory = directory
        self.runtime = runtime
        self.started: list[Container] = []
        self.log = directory / "log"

    async def start(
        self, run: str | list[str], *mounts: Mount, env: dict[str, str] | None = None, **fields: Any
    ) -> Container:
        scratch = self.directory / f"scratch-{len(self.started)}"
        scratch.mkdir(exist_ok=True)
        command = ("/bin/sh", "-c", run) if isinstance(run, str) else tuple(run)
        spec = ContainerSpec(
            name="test",
            command=command,
            env={"PATH": PATH} | (env or {}),
            mounts=mounts,
            log_path=self.log,
            scratch=scratch,
            **fields,
        )
        container = await self.runtime.start(spec)
        self.started.append(container)
        return container

    async def output(self, run: str, *mounts: Mount, **fields: Any) -> str:
        """What the container writes until it ends."""
        container = await self.start(run, *mounts, **fields)
        await container.wait()
        return self.log.read_text()

    async def logged(self, text: str) -> str:
        async def holds() -> bool:
            return self.log.exists() and text in self.log.read_text()

        await until(holds)
        return self.log.read_text()

    async def end(self) -> None:
        for container in self.started:
            container.kill()
            await container.wait()


@pytest.fixture(params=list(Isolation), ids=str)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """A runtime of each level; namespaces are skipped, in words, where they are forbidden."""
    runtime = Runtime()
    if request.param is Isolation.NAMESPACES and runtime.refusal:
        pytest.skip(f"this machine forbids mount namespaces: {runtime.refusal}")
    made = Bench(tmp_path, Runtime(isolation=request.param))
    yield made
    await made.end()


@pytest.fixture
async def namespaces(tmp_path: Path) -> AsyncIterator[Bench]:
    runtime = Runtime()
    if runtime.isolation is not Isolation.NAMESPACES:
        pytest.skip(f"this machine forbids mount namespaces: {runtime.refusal}")
    made = Bench(tmp_path, runtime)
    yield made
    await made.end()


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path, Runtime(isolation=Isolation.PLAIN))
    yield made
    await made.end()


# both levels


async def test_a_container_has_its_own_environment_only(bench: Bench) -> None:
    os.environ["OF_THE_SANDBOX"] = "secret"
    try:
        output = await bench.output("exec /usr/bin/env", env={"A": "b=c d"})
    finally:
        del os.environ["OF_THE_SANDBOX"]
    seen = set(output.splitlines())
    assert {"A=b=c d", f"PATH={PATH}"} <= seen
    assert "OF_THE_SANDBOX" not in output


async def test_exit_codes_and_signals_are_told(bench: Bench) -> None:
    assert await (await bench.start("exit 7")).wait() == Exit(code=7)
    assert await (await bench.start("kill -KILL $$")).wait() == Exit(
        code=128 + signal.SIGKILL, signal=signal.SIGKILL
    )


async def test_a_container_can_be_asked_to_end(bench: Bench) -> None:
    container = await bench.start("trap 'exit 3' TERM; echo up; while :; do sleep 0.02; done")
    await bench.logged("up")
    container.terminate()
    assert (await container.wait()).code == 3


async def test_killing_a_container_reaches_every_process(bench: Bench) -> None:
    container = await bench.start(
        "trap '' TERM; setsid sleep 1000 & echo $!; setsid sh -c 'sleep 1000 & echo $!'; "
        "echo up; while :; do sleep 0.02; done"
    )
    pids = (await bench.logged("up")).split()[:2]
    container.kill()
    await container.wait()
    for pid in map(int, pids):
        assert await ended(pid)


async def test_nothing_outlives_the_first_process(bench: Bench) -> None:
    container = await bench.start("setsid sleep 1000 & echo $!")
    await container.wait()
    assert await ended(int(bench.log.read_text()))


async def test_a_wait_that_was_cancelled_may_be_taken_up_again(bench: Bench) -> None:
    container = await bench.start("while :; do sleep 0.02; done")
    with anyio.move_on_after(0.05):
        await container.wait()
    container.kill()
    assert (await container.wait()).signal == signal.SIGKILL


async def test_a_killed_monitor_takes_the_container_with_it(bench: Bench) -> None:
    container = await bench.start("exec sleep 1000")
    stat = await anyio.Path(f"/proc/{container.pid}/stat").read_text()
    os.kill(int(stat.rpartition(")")[2].split()[1]), signal.SIGKILL)
    assert not (await container.wait()).succeeded
    await until(partial(ended, container.pid))


async def test_what_cannot_be_run_says_why(bench: Bench) -> None:
    with pytest.raises(StartError, match="/no/such/program"):
        await bench.start(["/no/such/program"])
    with pytest.raises(StartError, match="no command"):
        await bench.start([])
    with pytest.raises(StartError, match="working directory"):
        await bench.start("true", working_dir="/no/such/directory")


async def test_a_missing_mount_source_says_so(bench: Bench) -> None:
    mount = Mount(host_path="/no/such/source", container_path="/opt/x")
    with pytest.raises(StartError, match="/no/such/source"):
        await bench.start("true", mount)


async def test_output_ends_in_the_log_even_of_processes_that_are_killed(bench: Bench) -> None:
    assert await bench.output("echo out; echo err >&2; kill -KILL $$") == "out\nerr\n"


async def test_a_log_is_turned_over_before_it_grows_too_large(bench: Bench) -> None:
    bench.runtime = Runtime(isolation=bench.runtime.isolation, log_bytes=100_000)
    await bench.output("i=0; while [ $i -lt 3000 ]; do echo $i-" + "x" * 90 + "; i=$((i+1)); done")
    older = bench.log.with_name("log.1")
    assert bench.log.stat().st_size <= 100_000
    assert older.stat().st_size <= 100_000
    assert logs.tail(bench.log, lines=1).startswith(b"2999-")
    assert len(logs.tail(bench.log, lines=1000).splitlines()) == 1000


async def test_containers_do_not_share_the_sandboxs_files(bench: Bench) -> None:
    with (bench.directory / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        output = await bench.output("ls -l /proc/self/fd")
    assert "open" not in output
    assert "socket:" not in output


# namespaces


async def test_mounts_exist_at_their_places_and_nowhere_else(namespaces: Bench) -> None:
    source = namespaces.directory / "source"
    source.mkdir()
    (source / "file").write_text("hello\n")
    mounts = [
        Mount(host_path=str(source), container_path="/usr/local/hami-test/deep/directory"),
        Mount(host_path=str(source / "file"), container_path="/etc/hami-test.conf"),
        Mount(host_path=str(source), container_path="/hami-test-root/directory"),
    ]
    run = (
        "cat /usr/local/hami-test/deep/directory/file /etc/hami-test.conf "
        "/hami-test-root/directory/file; test -e /etc/passwd && ls -d /usr/local/bin"
    )
    assert await namespaces.output(run, *mounts) == "hello\n" * 3 + "/usr/local/bin\n"
    for mount in mounts:
        assert not await anyio.Path(mount.container_path).exists()


async def test_read_only_is_read_only(namespaces: Bench) -> None:
    source = namespaces.directory / "source"
    source.mkdir()
    (source / "file").write_text("hello\n")
    closed = Mount(host_path=str(source), container_path="/opt/hami-test/ro", read_only=True)
    opened = Mount(host_path=str(source), container_path="/opt/hami-test/rw")
    run = (
        "cd /opt/hami-test; echo x > ro/file; echo x > ro/new; rm -f ro/file; chmod 777 ro; "
        "mount -o remount,rw,bind ro; umount ro; echo written > rw/new; cat ro/new"
    )
    assert "written" in await namespaces.output(run, closed, opened)
    assert (source / "file").read_text() == "hello\n"


async def test_libraries_are_preloaded_from_the_mounted_list(namespaces: Bench) -> None:
    preload = namespaces.directory / "ld.so.preload"
    preload.write_text("/no/such/library.so\n")
    mount = Mount(host_path=str(preload), container_path="/etc/ld.so.preload", read_only=True)
    output = await namespaces.output("exec /bin/true", mount)
    assert "object '/no/such/library.so' from /etc/ld.so.preload" in output


async def test_a_mount_inside_a_mount_writes_to_its_source(namespaces: Bench) -> None:
    cache = namespaces.directory / "cache"
    cache.mkdir()
    library = namespaces.directory / "library"
    library.write_text("library\n")
    outer = Mount(host_path=str(cache), container_path="/usr/local/hami-test")
    inner = Mount(
        host_path=str(library), container_path="/usr/local/hami-test/lib.so", read_only=True
    )
    run = "cat /usr/local/hami-test/lib.so; echo made > /usr/local/hami-test/new"
    assert await namespaces.output(run, inner, outer) == "library\n"
    assert (cache / "new").read_text() == "made\n"


async def test_mount_targets_may_be_written_untidily(namespaces: Bench) -> None:
    source = namespaces.directory / "source"
    source.mkdir()
    (source / "file").write_text("hello\n")
    mounts = [
        Mount(host_path=str(source), container_path="/usr/local/hami-test/"),
        Mount(host_path=str(source), container_path="//usr//local/./hami-test/inner/../deep"),
    ]
    run = "cat /usr/local/hami-test/file /usr/local/hami-test/deep/file"
    assert await namespaces.output(run, *mounts) == "hello\n" * 2


def test_namespaces_need_no_privileges() -> None:
    place = Path(tempfile.mkdtemp(prefix="hami-"))
    nobody: dict[str, Any] = (
        {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    )
    place.chmod(0o777)
    try:
        program = place / "sandbox-run"
        shutil.copy(HELPER, program)
        probe = subprocess.run([program, "--probe"], capture_output=True, check=False, **nobody)
        if probe.returncode != 0:
            pytest.skip(f"unprivileged users may not make namespaces here: {probe.stderr!r}")
        (place / "file").write_text("hello\n")
        (place / "root").mkdir(mode=0o777)
        (place / "root").chmod(0o777)
        options = ["--namespaces", "--log", f"{place}/log", "--root", f"{place}/root"]
        mounts = ["--mount-ro", f"{place}/file", "/hami-test/deep/file"]
        run = "cat /hami-test/deep/file; umount /hami-test/deep/file && echo unmounted"
        command = ["--env", f"PATH={PATH}", "--", "/bin/sh", "-c", run]
        subprocess.run([program, *options, *mounts, *command], check=False, **nobody)
        output = (place / "log").read_text()
    finally:
        shutil.rmtree(place)
    assert output.startswith("hello\n")
    assert "\nunmounted" not in output


async def test_a_mount_of_another_kind_than_what_is_there_is_refused(namespaces: Bench) -> None:
    mount = Mount(host_path="/etc/passwd", container_path="/usr/bin")
    with pytest.raises(StartError, match="mount target /usr/bin"):
        await namespaces.start("true", mount)


async def test_a_relative_mount_target_is_refused(namespaces: Bench) -> None:
    mount = Mount(host_path="/etc/passwd", container_path="etc/passwd")
    with pytest.raises(StartError, match="not a usable absolute path"):
        await namespaces.start("true", mount)


# plain


async def test_variables_lead_to_what_would_be_mounted(plain: Bench) -> None:
    source = plain.directory / "source"
    source.mkdir()
    (source / "control").write_text("limits\n")
    mounts = [
        Mount(host_path=str(source / "control"), container_path="/usr/local/hami-test/control"),
        Mount(host_path=str(source), container_path="/usr/local/hami-test/usage"),
    ]
    env = {
        "BELOW": "/usr/local/hami-test/usage/control",
        "ITSELF": "/usr/local/hami-test/control",
        "ABOVE": "/usr/local/hami-test",
        "OTHER": "/usr/local",
    }
    run = "cat $BELOW $ITSELF $ABOVE/control; echo new > $ABOVE/usage/new; echo $OTHER"
    assert await plain.output(run, *mounts, env=env) == "limits\n" * 3 + "/usr/local\n"
    assert (source / "new").read_text() == "new\n"


async def test_the_list_of_libraries_becomes_a_variable(plain: Bench) -> None:
    library = plain.directory / "library.so"
    library.write_text("")
    preload = plain.directory / "ld.so.preload"
    preload.write_text("# what to load\n/usr/local/hami-test/library.so\n")
    mounts = [
        Mount(host_path=str(preload), container_path="/etc/ld.so.preload", read_only=True),
        Mount(host_path=str(library), container_path="/usr/local/hami-test/library.so"),
    ]
    output = await plain.output("echo $LD_PRELOAD", *mounts, env={"LD_PRELOAD": "/other.so"})
    scratch = plain.directory / "scratch-0"
    assert f"{scratch}/usr/local/hami-test/library.so:/other.so" in output.splitlines()


# the runtime itself


def test_a_missing_helper_is_named(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match=r"native\.py"):
        Runtime(helper=tmp_path / "missing")


def test_a_machine_without_namespaces_is_told_apart(tmp_path: Path) -> None:
    helper = tmp_path / "helper"
    helper.write_text("#!/bin/sh\necho 'not permitted' >&2\nexit 1\n")
    helper.chmod(0o755)
    runtime = Runtime(helper=helper)
    assert runtime.isolation is Isolation.PLAIN
    assert "not permitted" in runtime.refusal
    with pytest.raises(SandboxError, match="not permitted"):
        Runtime(helper=helper, isolation=Isolation.NAMESPACES)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_containers_end_with_the_sandbox_whatever_ends_it(tmp_path: Path, end: int) -> None:
    program = f"""
import anyio, sys
from pathlib import Path
from hami.sandbox.runtime import ContainerSpec, Runtime
async def main():
    scratch = Path({str(tmp_path)!r})
    spec = ContainerSpec(name="x", command=("/bin/sh", "-c", "setsid sleep 1000 & echo $!; wait"),
                         env={{"PATH": "/usr/bin:/bin"}}, log_path=scratch / "log", scratch=scratch)
    container = await Runtime().start(spec)
    while not (scratch / "log").exists() or not (scratch / "log").read_text().strip():
        await anyio.sleep(0.01)
    print(container.pid, flush=True)
    await anyio.sleep(1000)
anyio.run(main)
"""
    sandbox = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert sandbox.stdout is not None
    with sandbox, sandbox.stdout as told:
        while not (line := told.readline()).strip().isdigit():
            assert line, "the sandbox ended before it had started its container"
        pids = [int(line), int((tmp_path / "log").read_text())]
        sandbox.send_signal(end)
        sandbox.wait(10)
    anyio.run(all_ended, pids)


async def all_ended(pids: list[int]) -> None:
    for pid in pids:
        await until(partial(ended, pid))


def test_the_helper_is_the_one_that_is_built() -> None:
    assert HELPER.is_file(), f"{HELPER} is missing: run `python native.py` first"


async def test_a_followed_log_is_complete_though_turned_over_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    over = False
    path.write_text("1\n2\n")
    chunks = logs.follow(path, lines=1, ended=lambda: over)
    assert await anext(chunks) == b"2\n"
    with path.open("a") as file:
        file.write("3\n")
    assert await anext(chunks) == b"3\n"
    path.rename(tmp_path / "log.1")
    path.write_text("4\n")
    assert await anext(chunks) == b"4\n"
    with path.open("a") as file:
        file.write("5\n")
    path.unlink()
    over = True
    assert [chunk async for chunk in chunks] == [b"5\n"]


async def test_a_log_that_comes_later_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    written = anyio.Event()
    chunks = logs.follow(path, lines=None, ended=written.is_set)

    async def write() -> None:
        await anyio.Path(path).write_text("late\n")
        written.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        assert [chunk async for chunk in chunks] == [b"late\n"]
