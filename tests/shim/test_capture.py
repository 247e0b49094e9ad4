"""Graphs and every way to launch, on the simulated GPU, which knows what spoils a capture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hami.nodeagent.controlfile import ControlFile
from hami.sandbox.gpu import node
from tests.support import cuda, pacing
from tests.support.gpu import Client, Container, Machine
from tests.support.pacing import MS, PIECE_NS, PLENTY, SECOND

Compile = Callable[..., Path]

CRAWL = SECOND // 1000
PATHS = [
    *("cuLaunchKernel", "cuLaunchKernel_ptsz", "cuLaunchKernelEx", "cuLaunchKernelEx_ptsz"),
    *("cuLaunchCooperativeKernel", "cuLaunchCooperativeKernel_ptsz"),
    *("cuLaunchCooperativeKernelMultiDevice", "cuLaunch", "cuLaunchGrid", "cuLaunchGridAsync"),
]


@pytest.fixture
def container(machine: Machine) -> Container:
    return machine.container(None)


@pytest.fixture
def control(container: Container) -> Iterator[ControlFile]:
    with ControlFile(container.directory) as control:
        pacing.pace(control, PLENTY)
        yield control


@pytest.fixture
def grapher(
    compile_program: Compile, container: Container, control: ControlFile
) -> Iterator[Client]:
    """A process with a kernel of 2 ms, that is limited but never waits."""
    with Client(compile_program("grapher"), container.environment) as client:
        assert client.ask("init", 0) == (0,)
        assert client.ask("kernel", 2000) == (0,)
        yield client


def busy_ns(machine: Machine) -> int:
    return sum(process.busy_ns for process in node.read_processes(machine.state, 0))


def test_captured_launches_are_neither_delayed_nor_debited(
    machine: Machine, container: Container, control: ControlFile, grapher: Client
) -> None:
    pacing.pace(control, CRAWL)

    assert grapher.ask("capture", 1000) == (0,)  # half an hour, if it had to be paid for

    assert pacing.spent_ns(container.directory) == 0
    assert pacing.waited_ns(container.directory) == 0
    assert busy_ns(machine) == 0


def test_replays_are_debited(machine: Machine, container: Container, grapher: Client) -> None:
    assert grapher.ask("capture", 4) == (0,)

    assert grapher.ask("replay", 60) == (0,)

    assert busy_ns(machine) == 60 * 4 * 2 * MS
    assert abs(pacing.spent_ns(container.directory) - busy_ns(machine)) <= 0.05 * busy_ns(machine)


def test_updated_graph_is_measured_anew(
    machine: Machine, container: Container, grapher: Client
) -> None:
    assert grapher.ask("capture", 1) == (0,)
    assert grapher.ask("replay", 40) == (0,)
    assert grapher.ask("kernel", 6000) == (0,)
    assert grapher.ask("capture", 1) == (0,)
    assert grapher.ask("swap") == (0,)
    busy, spent = busy_ns(machine), pacing.spent_ns(container.directory)

    for _ in range(20):  # a queue at the old price is no longer than that
        assert grapher.ask("replay", 2) == (0,)

    busy, spent = busy_ns(machine) - busy, pacing.spent_ns(container.directory) - spent
    assert busy == 40 * 6 * MS
    assert abs(spent - busy) <= 0.05 * busy + 3 * 6 * MS


def test_capture_survives_paced_launches_of_another_thread(
    container: Container, grapher: Client
) -> None:
    """In global mode one query of an event by another thread invalidates it."""
    for _ in range(5):
        assert grapher.ask("beside", 20) == (0,)
        assert grapher.ask("path", "cuLaunchKernel", 20) == (0,)

    assert pacing.spent_ns(container.directory) >= 5 * 2 * 20 * 2 * MS * 0.9


def test_capture_that_ends_with_its_stream_is_no_longer_in_the_way(
    machine: Machine, container: Container, grapher: Client
) -> None:
    """Nothing is timed during a capture: one that was never ended would freeze what is known."""
    assert grapher.ask("abandon") == (0,)

    assert grapher.ask("path", "cuLaunchKernel", 50) == (0,)

    assert abs(pacing.spent_ns(container.directory) - busy_ns(machine)) <= 3 * 2 * MS


@pytest.mark.parametrize("path", PATHS)
def test_every_way_to_launch_is_paid_for(
    machine: Machine, container: Container, grapher: Client, path: str
) -> None:
    assert grapher.ask("path", "cuLaunchKernel", 5) == (0,)  # what one costs is known now

    assert grapher.ask("path", path, 50) == (0,)

    assert busy_ns(machine) == 55 * 2 * MS
    assert abs(pacing.spent_ns(container.directory) - busy_ns(machine)) <= 5 * 2 * MS + PIECE_NS


@pytest.mark.parametrize("path", ["cuGraphLaunch", "cuGraphLaunch_ptsz"])
def test_every_way_to_launch_a_graph_is_paid_for(
    machine: Machine, container: Container, grapher: Client, path: str
) -> None:
    assert grapher.ask("capture", 2) == (0,)

    assert grapher.ask("path", path, 50) == (0,)

    assert busy_ns(machine) == 50 * 2 * 2 * MS
    assert abs(pacing.spent_ns(container.directory) - busy_ns(machine)) <= 3 * 4 * MS + PIECE_NS


@pytest.mark.parametrize("path", [*PATHS, "cuGraphLaunch", "cuGraphLaunch_ptsz"])
def test_every_way_to_launch_waits(control: ControlFile, grapher: Client, path: str) -> None:
    """The one that a suspended container is refused for good is any of them."""
    assert grapher.ask("capture", 1) == (0,)
    assert grapher.ask("path", "cuLaunchKernel", 5) == (
        0,
    )  # one device's share of many is not timed
    pacing.pace(control, CRAWL)
    grapher.tell("path", path, 50)
    pacing.wait_until_held(grapher)

    pacing.pace(control, PLENTY)

    assert grapher.answer() == (0,)


def test_launches_of_a_green_context_are_paid_for_and_outlived(
    machine: Machine, container: Container, control: ControlFile
) -> None:
    script = """
class Resource(ctypes.Structure):
    _fields_ = [("type", c_int), ("padding", ctypes.c_uint8 * 92), ("sm", c_uint),
                ("rest", ctypes.c_uint8 * 36), ("next", c_void_p)]

whole, parts, left, groups = Resource(), (Resource * 1)(), Resource(), c_uint(1)
cu("cuDeviceGetDevResource", 0, by(whole), 1)
kernel = function(1000)
for _ in range(20):
    cu("cuDevSmResourceSplitByCount", parts, by(groups), by(whole), by(left), 0, 30)
    green = made("cuGreenCtxCreate", made("cuDevResourceGenerateDesc", parts, 1), 0, 1)
    cu("cuCtxSetCurrent", made("cuCtxFromGreenCtx", green))
    where = made("cuGreenCtxStreamCreate", green, 1, 0)
    for _ in range(5):
        cu("cuLaunchKernel", kernel, 1, 1, 1, 1, 1, 1, 0, where, None, None)
    cu("cuStreamSynchronize", where)
    cu("cuCtxSetCurrent", context)
    cu("cuGreenCtxDestroy", green)
    cu("cuLaunchKernel", kernel, 1, 1, 1, 1, 1, 1, 0, None, None, None)
    cu("cuCtxSynchronize")
"""
    cuda.run(machine, script, container=container)

    assert busy_ns(machine) == 20 * 6 * MS
    assert abs(pacing.spent_ns(container.directory) - busy_ns(machine)) <= 6 * MS
