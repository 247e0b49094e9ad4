"""``hami run``: real programs on the simulated GPU, limited without Kubernetes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from hami.nodeagent import region
from hami.sandbox.gpu import node
from hami.tools import isolation, rundir
from tests.support.gpu import MIB, Machine, wait_for
from tests.support.runs import command, is_empty, run, start

PROBE = str(node.PROBE)
WAYS = ["environment", "namespace"]


def probed(result: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["ok"] is True
    devices: list[dict[str, object]] = document["devices"]
    return devices


@pytest.mark.parametrize("way", WAYS)
def test_memory_is_limited_to_the_byte(machine: Machine, runs: Path, way: str) -> None:
    result = run(machine, "--memory", "3000", "--isolation", way, "--", PROBE, "--fill", "--check")

    (device,) = probed(result)
    assert device["uuid"] == machine.uuids[0]
    assert device["fill"] == {"ok": True, "bytes": 3000 * MIB, "result": 0, "one_more_byte": 2}
    wait_for(lambda: is_empty(runs), "the directory was removed")


@pytest.mark.parametrize(
    ("options", "gpus", "limit"),
    [
        (("--gpu", "1", "--memory", "1Gi"), (1,), 1024 * MIB),
        (("--gpu", "1", "--gpu", "0", "--memory", "100"), (1, 0), 100 * MIB),
        (("--gpu", "UUID1", "--memory", "0.5"), (1,), MIB // 2),
        (("--gpu", "uuid0", "--memory", "50%"), (0,), 85520809984 // MIB * MIB // 2),
    ],
)
def test_devices_and_sizes_are_those_asked_for(
    machine: Machine, runs: Path, options: tuple[str, ...], gpus: tuple[int, ...], limit: int
) -> None:
    names = {"UUID1": machine.uuids[1], "uuid0": machine.uuids[0][:12].lower()}

    result = run(machine, *(names.get(word, word) for word in options), PROBE)

    devices = probed(result)
    assert [device["uuid"] for device in devices] == [machine.uuids[gpu] for gpu in gpus]
    for device in devices:
        assert device["cuda"] == {"total": limit, "free": limit, "device_total": limit}


def test_without_a_memory_limit_the_device_is_whole(machine: Machine, runs: Path) -> None:
    (device,) = probed(run(machine, "--", PROBE))

    assert device["cuda"]["total"] > 2**36  # type: ignore[index]


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -TERM $$"), -signal.SIGTERM),
        (("sh", "-c", "kill -KILL $$"), -signal.SIGKILL),
        (("no-such-program",), 127),
        (("/etc",), 126),
    ],
)
def test_exit_status_is_the_programs_own(
    machine: Machine, runs: Path, words: tuple[str, ...], status: int
) -> None:
    result = run(machine, "--", *words)

    assert result.returncode == status, result.stderr
    wait_for(lambda: is_empty(runs), "the directory was removed")


def test_a_shell_sees_128_and_the_signal(machine: Machine, runs: Path) -> None:
    inner = " ".join(command("--", "sh", "-c", "'kill -9 $$'"))

    result = subprocess.run(
        ["sh", "-c", f"{inner}; echo status $?"],
        env=machine.environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert "status 137" in result.stdout


def test_input_output_arguments_and_directory_are_untouched(machine: Machine, runs: Path) -> None:
    code = "import os, sys; print(sys.argv[1:], os.getcwd(), sys.stdin.read())"

    result = run(machine, "--", sys.executable, "-c", code, "--gpu", "x y", stdin="typed")

    assert result.stdout == f"['--gpu', 'x y'] {Path.cwd()} typed\n"
    assert result.stderr == ""


def test_signals_reach_the_program(machine: Machine, runs: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(5))\n"
        "print(os.getpid(), flush=True)\n"
        "while True: signal.pause()\n"
    )
    process = start(machine, "--", sys.executable, "-c", code)
    assert process.stdout is not None

    assert int(process.stdout.readline()) == process.pid  # it has become the program
    process.send_signal(signal.SIGUSR1)

    assert process.wait(timeout=30) == 5


def test_the_program_has_no_child_that_it_did_not_start(machine: Machine, runs: Path) -> None:
    code = "import os\ntry: os.wait()\nexcept ChildProcessError: print('alone')"

    assert run(machine, "--", sys.executable, "-c", code).stdout == "alone\n"


def test_interrupt_from_the_terminal_ends_the_program(machine: Machine, runs: Path) -> None:
    ours, theirs = pty.openpty()
    code = "import signal; print('ready', flush=True); signal.pause()"
    process = subprocess.Popen(
        [sys.executable, "-c", "import os, sys, fcntl, termios; os.setsid(); "
         "fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])",
         *command("--", sys.executable, "-c", code)],
        env=machine.environment(), stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    try:
        text = b""
        while b"ready" not in text:
            text += os.read(ours, 4096)
        os.write(ours, b"\x03")

        assert process.wait(timeout=30) == -signal.SIGINT
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    wait_for(lambda: is_empty(runs), "the directory was removed")


def test_what_a_program_leaves_running_stays_limited(machine: Machine, runs: Path) -> None:
    pid_file = machine.path / "pid"
    script = f"{PROBE} --allocate 10 --hold 0 >/dev/null 2>&1 & echo $! > {pid_file}"
    try:
        assert run(machine, "--memory", "100", "--", "sh", "-c", script).returncode == 0
        (left,) = [path for path in runs.iterdir() if path.is_dir()]

        wait_for(lambda: region.read_usage(left).used_bytes(0) == 10 * MIB, "it allocated")
        assert not rundir.Run(directory=left, note=next(rundir.runs(runs)).note).is_over()
    finally:
        with suppress(OSError, ValueError):
            os.kill(int(pid_file.read_text()), signal.SIGKILL)

    wait_for(lambda: is_empty(runs), "the directory was removed")


def test_what_dead_runs_left_is_cleared_away(machine: Machine, runs: Path) -> None:
    gone = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True)
    pid = int(gone.stdout)
    runs.mkdir(mode=0o700)
    for name in (f"{pid}-5", f".new-{pid}-5", f".new-{os.getpid()}-1"):
        (runs / name).mkdir()
    (runs / f"{pid}-5" / rundir.NOTE).write_text(
        json.dumps({"pid": pid, "start_ticks": 5, "command": ["x"]})
    )

    assert run(machine, "--", "true").returncode == 0

    wait_for(lambda: not list(runs.iterdir()) or is_empty(runs), "all of them were removed")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--gpu", "7", "true"), "--gpu 7: no such device; there are: 0 (GPU-"),
        (("--gpu", "GPU-", "true"), "--gpu GPU-: 2 that begin so"),
        (("--gpu", "0", "--gpu", "0", "true"), "is named more than once"),
        (("--memory", "99999999", "true"), "expected more than 0 and at most 81559 MiB"),
        (("--memory", "0", "true"), "expected more than 0"),
        (("--memory", "-5", "true"), "expected more than 0"),
        (("--memory", "3 parsecs", "true"), "expected MiB such as 3000"),
        (("--memory", "101%", "true"), "at most 81559 MiB"),
        (("--cores", "101", "true"), "--cores"),
        (("--isolation", "magic", "true"), "--isolation"),
        ((), "COMMAND"),
    ],
)
def test_what_cannot_be_had_is_told_with_status_2(
    machine: Machine, runs: Path, words: tuple[str, ...], told: str
) -> None:
    result = run(machine, *words)

    assert result.returncode == 2
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not runs.exists() or is_empty(runs)


def test_a_machine_without_a_driver_is_told(machine: Machine, runs: Path) -> None:
    result = run(machine, "true", environment={"LD_LIBRARY_PATH": "/nowhere"})

    assert result.returncode == 2
    assert "expected a GPU driver on this machine, met none" in result.stderr


def test_a_machine_without_a_gpu_is_told(machine: Machine, runs: Path) -> None:
    result = run(machine, "true", environment={"NVIDIA_VISIBLE_DEVICES": "none"})

    assert (result.returncode, "expected a GPU in this machine" in result.stderr) == (2, True)


def test_a_directory_that_others_may_enter_is_refused(machine: Machine, runs: Path) -> None:
    runs.mkdir()
    runs.chmod(0o777)

    result = run(machine, "true")

    assert result.returncode == 2
    assert "expected one that this user alone may enter, met mode 0777" in result.stderr


def test_a_namespace_holds_whatever_the_environment_says(machine: Machine, runs: Path) -> None:
    kept = [f"{name}={value}" for name, value in machine.environment().items()]
    script = "cd /; exec env -i " + " ".join(kept) + f" {PROBE} --fill"
    before = {path: sorted(os.listdir(path)) for path in ("/etc", "/usr/local")}

    result = run(machine, "--isolation", "namespace", "--memory", "100", "--", "sh", "-c", script)

    filled = [device["fill"] for device in json.loads(result.stdout)["devices"]]
    assert filled == [
        {"ok": True, "bytes": 100 * MIB, "result": 0, "one_more_byte": 2},
        {"ok": False, "bytes": 0, "result": 2, "one_more_byte": 2},
    ]
    assert {path: sorted(os.listdir(path)) for path in before} == before


def test_a_namespace_leaves_user_and_directory_alone(machine: Machine, runs: Path) -> None:
    script = "id -u; pwd; echo >> /usr/local/vgpu/control || echo refused"

    result = run(machine, "--isolation", "namespace", "--", "sh", "-c", script)

    assert result.stdout.splitlines() == [str(os.getuid()), str(Path.cwd()), "refused"]


def test_auto_takes_the_namespace_where_it_changes_nothing_else(
    machine: Machine, runs: Path, tmp_path: Path
) -> None:
    """For root, on a machine where both places exist: shown by a namespace around."""
    (tmp_path / "vgpu").mkdir()
    (tmp_path / "preload").touch()
    script = f"echo preload=$LD_PRELOAD; {PROBE} --fill --check --text"
    inner = command("--memory", "100", "--", "sh", "-c", script)

    done = subprocess.run(
        [isolation.HELPER, "--mount-rw", str(tmp_path / "vgpu"), "/usr/local/vgpu",
         "--mount-rw", str(tmp_path / "preload"), "/etc/ld.so.preload", "--", *inner],
        env=machine.environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    expected = "" if os.getuid() == 0 else str(isolation.SHIM)
    assert done.stdout.splitlines()[0] == f"preload={expected}"
    assert "one byte more: CUresult 2" in done.stdout


@pytest.mark.parametrize("way", WAYS)
def test_a_process_that_is_limited_already_is_told(machine: Machine, runs: Path, way: str) -> None:
    inner = command("--", "true")

    result = run(machine, "--isolation", way, "--", *inner)

    assert result.returncode == 2
    assert "this process is limited already" in result.stderr


def test_arguments_of_any_length_and_of_any_bytes(machine: Machine, runs: Path) -> None:
    strange = os.fsdecode(b"\xff" * 70)
    program = machine.path / strange
    program.symlink_to("/bin/true")

    assert run(machine, "--", str(program), *["x" * 1000] * 100).returncode == 0
    wait_for(lambda: is_empty(runs), "the directory was removed")


def test_runs_lie_where_their_user_alone_may_go(tmp_path: Path) -> None:
    assert rundir.root({"HAMI_RUN_DIR": "/x"}, 5) == Path("/x")
    assert rundir.root({"XDG_RUNTIME_DIR": str(tmp_path)}, 5) == tmp_path / "hami"
    assert rundir.root({"XDG_RUNTIME_DIR": "/nowhere"}, 5) == Path("/tmp/hami-5")
    assert rundir.root({}, 5) == Path("/tmp/hami-5")
    assert rundir.root({"XDG_RUNTIME_DIR": str(tmp_path)}, 0) == Path("/run/hami")


def test_a_preloaded_library_of_the_user_stays(machine: Machine, runs: Path) -> None:
    result = run(
        machine, "--isolation", "environment", "--", "sh", "-c", "echo $LD_PRELOAD",
        environment={"LD_PRELOAD": "/nowhere/own.so"},
    )  # fmt: skip

    assert result.stdout.strip() == f"{isolation.SHIM}:/nowhere/own.so"


def test_ids_stay_themselves_in_a_user_namespace(tmp_path: Path) -> None:
    """Of a user other than root; this test's own where it is not root."""
    user = {"user": 65534, "group": 65534, "extra_groups": ()} if os.getuid() == 0 else {}
    expected = "65534" if user else str(os.getuid())

    done = subprocess.run(
        [isolation.HELPER, "--mount-ro", "/etc/hostname", "/usr/local/vgpu/control", "--",
         "sh", "-c", "id -u; id -g; test -r /usr/local/vgpu/control && echo shown"],
        cwd="/", capture_output=True, text=True, check=False, **user,  # type: ignore[call-overload]
    )  # fmt: skip

    assert done.stdout.split()[0] == expected, done.stderr
    assert done.stdout.split()[-1] == "shown"


def test_fixed_places_are_those_of_containers() -> None:
    from hami.nodeagent import allocate, install

    assert str(isolation.FIXED) == allocate.CONTAINER_DIR
    assert install.PACKAGED == isolation.SHIM
