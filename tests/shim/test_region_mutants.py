"""Whatever bytes a region has, a program gets memory or is refused it, and never breaks."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hami.sandbox.gpu import catalogue, node
from tests.support.gpu import MIB, OUT_OF_MEMORY, Container, Machine
from tests.support.mutants import CONTENT, mutated, mutations

LIMIT = 100 * MIB


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    machine = Machine.create(tmp_path_factory.mktemp("mutants"), [catalogue.get("t4")])
    yield machine.container(LIMIT)
    machine.stop()


@pytest.fixture(scope="module")
def originals(container: Container) -> dict[str, bytes]:
    return {name: (container.directory / name).read_bytes() for name in CONTENT}


def spoil(directory: Path, name: str, content: bytes) -> None:
    """A new file each time: nobody has the old one mapped."""
    (directory / name).unlink(missing_ok=True)
    (directory / name).write_bytes(content)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    control=mutations(CONTENT["control"]),
    usage=mutations(CONTENT["usage"]),
    lengths=st.tuples(*(st.none() | st.integers(0, size) for size in CONTENT.values())),
)
def test_no_bytes_break_a_program(
    container: Container,
    originals: dict[str, bytes],
    control: list[tuple[int, bytes]],
    usage: list[tuple[int, bytes]],
    lengths: tuple[int | None, int | None],
) -> None:
    spoil(container.directory, "control", mutated(originals["control"], control, lengths[0]))
    spoil(container.directory, "usage", mutated(originals["usage"], usage, lengths[1]))

    done = subprocess.run(
        [node.PROBE, "--fill", "--allocate", "1", "--launch", "2"], env=container.environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode in {0, 1}, (done.returncode, done.stderr)
    answer = json.loads(done.stdout)
    for device in answer["devices"]:
        assert device["fill"]["result"] in {0, OUT_OF_MEMORY}
        assert device["cuda"]["free"] <= device["cuda"]["total"]
