"""In a container the files stand at a fixed place, which the environment cannot replace."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.gpu import MIB, OUT_OF_MEMORY, Container, Machine

Compile = Callable[..., Path]

LIMIT = 100 * MIB
IN_A_CONTAINER = """
mount -t tmpfs none /usr/local && mkdir /usr/local/vgpu && cd /usr/local/vgpu
touch control usage
mount --bind "$1/control" control && mount -o remount,bind,ro control
mount --bind "$1/usage" usage
shift
exec "$@"
"""


@pytest.fixture
def mounted(machine: Machine) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command where a container's files are mounted as the node agent asks for it."""
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody make a mount namespace")

    def run(container: Container, *command: object, **env: str) -> subprocess.CompletedProcess[str]:
        words = ["unshare", "--mount", "env", f"LD_PRELOAD={machine.shim}"]
        return subprocess.run(
            [*words, "sh", "-ec", IN_A_CONTAINER, "sh", container.directory, *map(str, command)],
            env={**container.environment, "LD_PRELOAD": "", **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    return run


def test_fixed_place_wins_over_the_environment(
    machine: Machine,
    mounted: Callable[..., subprocess.CompletedProcess[str]],
    compile_program: Compile,
) -> None:
    container = machine.container(LIMIT)
    generous = machine.container(None, name="generous")
    program = compile_program("linked", str(machine.libraries / "libcuda.so.1"))

    done = mounted(container, program, LIMIT + 1, HAMI_REGION_DIR=str(generous.directory))

    assert (done.stdout.split(), done.stderr) == ([str(LIMIT), str(OUT_OF_MEMORY)], "")


def test_control_file_cannot_be_written_where_it_is_mounted(
    machine: Machine, mounted: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    container = machine.container(LIMIT)
    before = (container.directory / "control").read_bytes()

    done = mounted(container, "sh", "-c", "echo x > /usr/local/vgpu/control")

    assert done.returncode != 0
    assert (container.directory / "control").read_bytes() == before
