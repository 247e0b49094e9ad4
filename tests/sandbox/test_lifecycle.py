"""The state directory: who may have it, what is left in it, and how a start that fails is told."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from hami.errors import SandboxError
from hami.sandbox import lifecycle, spec
from tests.support.sandbox import eventually, short_directory


@pytest.fixture
def place() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


def hold(place: Path, claimed: Event) -> None:
    """What a running sandbox does to its directory; until it is killed."""
    with lifecycle.claim(place):
        claimed.set()
        signal.pause()


@pytest.fixture
def holder(place: Path) -> Iterator[multiprocessing.Process]:
    """Another process that has the directory."""
    context = multiprocessing.get_context("spawn")
    claimed = context.Event()
    process = context.Process(target=hold, args=(place, claimed))
    process.start()
    try:
        assert claimed.wait(30)
        yield process  # type: ignore[misc]  # a process of another context
    finally:
        process.kill()
        process.join()


def test_claimed_directory_names_its_process_and_is_refused_to_others(
    place: Path, holder: multiprocessing.Process
) -> None:
    assert lifecycle.pid(place) == holder.pid

    with (
        pytest.raises(SandboxError, match=rf"runs in {place} already \(process {holder.pid}\)"),
        lifecycle.claim(place),
    ):
        pytest.fail("claimed twice")


def test_killed_sandbox_leaves_a_directory_that_the_next_one_takes(
    place: Path, holder: multiprocessing.Process
) -> None:
    for name in ("nodes/node-1/dp", "certs"):
        (place / name).mkdir(parents=True)
    for name in ("ready.json", "kubeconfig", "nodes/node-1/dp/kubelet.sock", "logs/node-1.log"):
        (place / name).touch()
    holder.kill()
    holder.join()

    assert lifecycle.pid(place) is None
    with pytest.raises(SandboxError, match="no sandbox runs"):
        lifecycle.facts(place)
    with lifecycle.claim(place):
        assert lifecycle.pid(place) == os.getpid()
        assert sorted(path.name for path in place.rglob("*")) == ["logs", "sandbox.pid"]


def test_only_logs_are_left_in_the_end(place: Path) -> None:
    with lifecycle.claim(place):
        (place / "nodes" / "node-1").mkdir(parents=True)
        (place / "logs" / "controller.log").write_text("why it ended")
        lifecycle.announce(place, {})

    assert sorted(path.name for path in place.rglob("*")) == [
        "controller.log", "logs", "sandbox.pid",
    ]  # fmt: skip


def test_links_in_the_directory_are_removed_and_not_followed(place: Path) -> None:
    with short_directory() as elsewhere:
        (elsewhere / "precious").touch()
        (place / "logs").mkdir()
        (place / "nodes").mkdir()
        (place / "nodes" / "mount").symlink_to(elsewhere)

        with lifecycle.claim(place):
            pass

        assert (elsewhere / "precious").exists()


def test_directory_with_other_content_is_refused_untouched(place: Path) -> None:
    (place / "certs").mkdir()
    (place / "thesis.tex").touch()

    with pytest.raises(SandboxError, match=r"expected an empty one .* met 'thesis\.tex'"):
        lifecycle.prepare(place)

    assert sorted(path.name for path in place.iterdir()) == ["certs", "thesis.tex"]


def test_directory_is_refused_where_it_is_a_link_or_a_file(place: Path) -> None:
    (place / "own").mkdir()
    (place / "link").symlink_to(place / "own")
    (place / "file").touch()

    for name in ("link", "file", "file/below"):
        with pytest.raises(SandboxError, match=f"state directory {place / name}: "):
            lifecycle.prepare(place / name)
    assert lifecycle.pid(place / "file" / "below") is None


def test_directory_is_for_its_owner_alone(place: Path) -> None:
    lifecycle.prepare(place / "new")

    assert (place / "new").stat().st_mode & 0o777 == 0o700


def test_directory_too_deep_for_sockets_is_refused_before_anything_is_made(place: Path) -> None:
    deep = place / ("d" * 100)

    with pytest.raises(SandboxError, match=r"expected a path shorter by \d+ bytes"):
        lifecycle.start(deep, spec.uniform(nodes=1, gpus=1, model="t4"), mode="cooperative")

    assert not deep.exists()


def test_start_that_fails_says_why_and_leaves_no_process(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAMI_CONTROLLER__MODE", "nonsense")

    with pytest.raises(SandboxError, match=r"did not come up: controller ended 3 times: .*mode"):
        lifecycle.start(place, spec.uniform(nodes=1, gpus=0, model="t4"), mode="cooperative")

    assert lifecycle.pid(place) is None
    assert not (place / "nodes").exists()


def test_announcement_of_an_earlier_process_is_not_taken_for_this_one(
    place: Path, holder: multiprocessing.Process
) -> None:
    lifecycle.announce(place, {"kubeconfig": "/stale"})

    with pytest.raises(SandboxError, match=rf"process {holder.pid}\) is starting or stopping"):
        lifecycle.facts(place)


def test_stop_waits_until_the_process_is_gone(place: Path, holder: multiprocessing.Process) -> None:
    lifecycle.stop(place)

    eventually(lambda: not holder.is_alive(), "the process to be collected", seconds=5)
    with pytest.raises(SandboxError, match="no sandbox runs"):
        lifecycle.stop(place)


def test_default_directory_is_the_users_own(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    assert lifecycle.directory(None) == place / f"hami-sandbox-{os.getuid()}"

    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nowhere")
    assert lifecycle.directory(None) == Path(f"/tmp/hami-sandbox-{os.getuid()}")
    assert lifecycle.directory(Path("relative")).is_absolute()


def test_last_words_are_the_programs_own_error_before_any_other_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('{"event": "a"}\nhami: the reason\n{"event": "b"}\n')
    assert lifecycle.last_words(log) == "the reason"

    log.write_text("Traceback\nTypeError: x\n")
    assert lifecycle.last_words(log) == "TypeError: x"

    log.write_text("")
    assert str(log) in lifecycle.last_words(log)


def test_interrupted_start_takes_its_process_along(place: Path) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-P", "-m", "hami", "sandbox", "up", "--dir", str(place), "--nodes", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    with starter:
        eventually(lambda: lifecycle.pid(place), "the sandbox to begin")
        starter.send_signal(signal.SIGTERM)
        assert starter.wait(30) == 130

    assert lifecycle.pid(place) is None
