"""In a container the files stand at a fixed place, which the environment cannot replace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.gpu import MIB, OUT_OF_MEMORY, Client, Container, Machine
from tests.support.inside import FAIL_OPEN, FIXED, PROGRAM, Inside, need_namespaces

Compile = Callable[..., Path]

LIMIT = 100 * MIB
LIMITED = [str(LIMIT), str(OUT_OF_MEMORY)]
REFUSED = ["0", str(OUT_OF_MEMORY)]
WORDS_OF_ENV = (
    "HAMI_SIM_NODE=$HAMI_SIM_NODE LD_LIBRARY_PATH=$LD_LIBRARY_PATH "
    "NVIDIA_VISIBLE_DEVICES=$NVIDIA_VISIBLE_DEVICES"  # the driver's, not ours
)
MORE = f"{PROGRAM} {LIMIT + 1}"


@pytest.fixture
def linked(machine: Machine, compile_program: Compile) -> Path:
    need_namespaces("--mount")
    return compile_program("linked", str(machine.libraries / "libcuda.so.1"))


@pytest.fixture
def inside(machine: Machine, linked: Path) -> Inside:
    return Inside(machine.container(LIMIT), linked)


def generous(machine: Machine) -> Container:
    return machine.container(None, name="generous")


def test_fixed_place_wins_over_the_environment(machine: Machine, inside: Inside) -> None:
    done = inside.run(PROGRAM, LIMIT + 1, HAMI_REGION_DIR=str(generous(machine).directory))

    assert (done.stdout.split(), done.stderr) == (LIMITED, "")


def test_control_file_cannot_be_written_where_it_is_mounted(inside: Inside) -> None:
    before = (inside.container.directory / "control").read_bytes()

    done = inside.run("sh", "-c", "echo x > /usr/local/vgpu/control")

    assert done.returncode != 0
    assert (inside.container.directory / "control").read_bytes() == before


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["env", "-i", "sh", "-c", MORE], id="env -i"),
        pytest.param(["setsid", "--wait", "sh", "-c", MORE], id="setsid"),
        pytest.param(["sh", "-c", f"sh -c 'sh -c \"{MORE}; true\"; true'; true"], id="nested"),
        pytest.param(["sh", "-c", f"exec {MORE}"], id="exec"),
        pytest.param(["sh", "-c", f"unset LD_PRELOAD HAMI_REGION_DIR; {MORE}"], id="unset"),
        pytest.param(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", MORE],
            id="another user",
        ),
        pytest.param(["sh", "-c", f"{MORE} & wait"], id="background"),
    ],
)
def test_however_a_process_is_started_it_is_limited(inside: Inside, command: list[str]) -> None:
    if command[:2] == ["env", "-i"]:
        words = ["sh", "-c", f"env -i {WORDS_OF_ENV} sh -c '{MORE}'"]
    else:
        words = command

    done = inside.run(*words)

    assert (done.stdout.split(), done.stderr) == (LIMITED, "")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        pytest.param((), "/usr/local/vgpu/control: cannot be opened", id="neither"),
        pytest.param(("usage",), "/usr/local/vgpu/control: cannot be opened", id="no limits"),
        pytest.param(("control",), "/usr/local/vgpu/usage: cannot be opened", id="no usage"),
    ],
)
@pytest.mark.parametrize("preload", ["", "/usr/local/vgpu/../vgpu/libvgpu.so", "copies/link.so"])
def test_without_its_files_a_container_gets_no_memory_and_hears_why(
    machine: Machine, inside: Inside, files: tuple[str, ...], said: str, preload: str
) -> None:
    inside.files = files
    region_dir = str(generous(machine).directory)
    command = f"cd /usr/local; LD_PRELOAD={preload} {PROGRAM} 1"

    done = inside.run("sh", "-c", command, HAMI_REGION_DIR=region_dir)

    assert done.stdout.split() == REFUSED
    first, second = done.stderr.splitlines()
    assert said in first
    assert "no device memory will be granted" in second


def test_program_that_never_uses_the_driver_hears_nothing_of_missing_limits(
    inside: Inside,
) -> None:
    inside.files = ()

    done = inside.run("sh", "-c", "echo fine; ls / > /dev/null")

    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


def test_node_that_fails_open_lifts_unreadable_limits_and_says_so(inside: Inside) -> None:
    inside.library, inside.files = FAIL_OPEN, ()

    done = inside.run(PROGRAM, LIMIT + 1)

    total, result = done.stdout.split()
    assert (int(total) > LIMIT, result) == (True, "0")
    assert "limits are off" in done.stderr.splitlines()[-1]


def test_node_that_fails_open_keeps_limits_that_can_be_read(inside: Inside) -> None:
    inside.library = FAIL_OPEN

    assert inside.run(PROGRAM, LIMIT + 1).stdout.split() == LIMITED


def test_container_cannot_make_itself_a_place_that_fails_open(inside: Inside) -> None:
    inside.files = ()
    command = f"cp {FIXED} {FAIL_OPEN}; LD_PRELOAD={FAIL_OPEN} {PROGRAM} 1"

    assert inside.run("sh", "-c", command).stdout.split() == REFUSED


@pytest.mark.parametrize(
    "preload",
    [
        "/usr/local/copies/copy.so",
        f"/usr/local/copies/copy.so:{FIXED}",
        "/usr/local/copies/link.so",
    ],
)
def test_library_loaded_again_by_the_container_neither_doubles_nor_lifts_the_limit(
    machine: Machine, inside: Inside, preload: str
) -> None:
    region_dir = str(generous(machine).directory)
    exact, more = (
        inside.run(PROGRAM, size, LD_PRELOAD=preload, HAMI_REGION_DIR=region_dir)
        for size in (LIMIT, LIMIT + 1)
    )

    assert (exact.stdout.split(), exact.stderr) == ([str(LIMIT), "0"], "")
    assert (more.stdout.split(), more.stderr) == (LIMITED, "")


def test_copy_does_not_help_where_the_limits_are_missing(machine: Machine, inside: Inside) -> None:
    inside.files = ()
    region_dir = str(generous(machine).directory)

    done = inside.run(
        PROGRAM, 1, LD_PRELOAD="/usr/local/copies/copy.so", HAMI_REGION_DIR=region_dir
    )

    assert done.stdout.split() == REFUSED


def test_of_two_copies_outside_of_containers_one_keeps_the_limit(
    machine: Machine, linked: Path, tmp_path: Path
) -> None:
    container = machine.container(LIMIT)
    copy = tmp_path / "copy.so"
    copy.write_bytes(machine.shim.read_bytes())
    preload = {"LD_PRELOAD": f"{copy}:{machine.shim}"}

    exact, more = (container.run(linked, str(size), env=preload) for size in (LIMIT, LIMIT + 1))

    assert exact.stdout.split() == [str(LIMIT), "0"]
    assert more.stdout.split() == LIMITED


def test_memory_that_one_copy_charged_is_discharged_when_it_is_freed(
    machine: Machine, tmp_path: Path, start_client: Callable[..., Client]
) -> None:
    container = machine.container(LIMIT)
    copy = tmp_path / "copy.so"
    copy.write_bytes(machine.shim.read_bytes())
    client = start_client(container, LD_PRELOAD=f"{copy}:{machine.shim}")

    for _ in range(3):
        address = client.alloc(LIMIT)
        assert client.ask("info") == (0, 0, LIMIT)
        assert client.ask("free", address) == (0,)

    assert container.used_bytes() == 0
