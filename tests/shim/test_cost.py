"""What launches are debited follows what they take; the device has a time of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hami.nodeagent import region
from hami.nodeagent.controlfile import ControlFile
from tests.support import pacing
from tests.support.gpu import SHIM, Client
from tests.support.pacing import MS, PIECE_NS, PLENTY

Compile = Callable[..., Path]

UUID = "GPU-11111111-1111-1111-1111-111111111111"
US = 1_000
SHARED = ("-shared", "-Wl,-Bsymbolic", "-Wl,-soname,libcuda.so.1", "-fvisibility=default")

NOT_READY_QUERIES, LAUNCH_HOST_NS, STREAM_IS_BUSY = range(3)
DEVICE_NS, LAUNCHES, EVENTS_MADE, RECORDS, QUERIES, QUERIES_IN_CAPTURE = range(6)


class Clockwork:
    """A process over the clocked driver, and what the region says of it."""

    def __init__(self, directory: Path, client: Client) -> None:
        self.directory = directory
        self.client = client

    def order(self, what: str, *words: object) -> int:
        return self.client.ask(what, *words)[0]

    def launch(self, index: int, count: int, threads: int = 1) -> None:
        assert self.order("launch", index, count, threads) == 0

    @property
    def spent_ns(self) -> int:
        return pacing.spent_ns(self.directory)

    @property
    def took_ns(self) -> int:
        return self.order("get", DEVICE_NS)


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlFile]:
    directory = tmp_path / "region"
    directory.mkdir()
    region.create(directory, devices=[region.RegionDevice(uuid=UUID, memory_limit_bytes=None)])
    with ControlFile(directory) as control:
        yield control


@pytest.fixture
def clockwork(
    tmp_path: Path, control: ControlFile, compile_program: Compile
) -> Iterator[Clockwork]:
    """A process that is limited, but to more than it ever takes."""
    pacing.pace(control, PLENTY)
    driver = compile_program("clocked_cuda", *SHARED, output="libcuda.so.1")
    environment = {
        "LD_LIBRARY_PATH": str(driver.parent),
        "LD_PRELOAD": str(SHIM),
        "HAMI_REGION_DIR": str(tmp_path / "region"),
    }
    with Client(compile_program("clockwork"), environment) as client:
        yield Clockwork(tmp_path / "region", client)


@pytest.mark.parametrize("length_ns", [2 * US, 20 * US, 3 * MS, 700 * MS])
def test_debited_is_what_the_device_took(clockwork: Clockwork, length_ns: int) -> None:
    clockwork.order("length", 0, length_ns)

    clockwork.launch(0, 400)

    took = clockwork.took_ns
    assert took == 400 * length_ns
    assert abs(clockwork.spent_ns - took) <= 0.01 * took + PIECE_NS + length_ns


def test_wrong_first_guess_is_paid_for_by_the_third_launch(clockwork: Clockwork) -> None:
    clockwork.order("length", 0, 50 * MS)

    clockwork.launch(0, 3)

    assert clockwork.spent_ns >= 2 * 50 * MS


def test_sizes_of_one_kernel_have_costs_of_their_own(clockwork: Clockwork) -> None:
    for threads, length in ((128, 10 * US), (2**20, 5 * MS)):
        clockwork.order("length", 0, length)
        clockwork.launch(0, 50, threads)
    clockwork.order("length", 0, 10 * US)
    before = clockwork.spent_ns
    clockwork.launch(0, 50, 128)

    assert clockwork.spent_ns - before <= 50 * 10 * US + PIECE_NS


def test_kernel_that_has_become_longer_is_learnt_anew(clockwork: Clockwork) -> None:
    clockwork.order("length", 0, 10 * US)
    clockwork.launch(0, 2000)
    before = clockwork.spent_ns
    clockwork.order("length", 0, 5 * MS)

    clockwork.launch(0, 2000)

    assert clockwork.spent_ns - before >= 0.9 * 2000 * 5 * MS


def test_kernel_that_has_become_shorter_is_learnt_anew(clockwork: Clockwork) -> None:
    clockwork.order("length", 0, 5 * MS)
    clockwork.launch(0, 100)
    before = clockwork.spent_ns
    clockwork.order("length", 0, 10 * US)

    clockwork.launch(0, 2000)

    assert clockwork.spent_ns - before <= 2000 * 10 * US + 20 * MS


def test_one_long_measurement_among_short_ones_is_not_believed(clockwork: Clockwork) -> None:
    clockwork.order("length", 0, 10 * US)
    clockwork.launch(0, 500)
    clockwork.order("length", 0, 500 * MS)
    clockwork.launch(0, 1)
    clockwork.order("length", 0, 10 * US)
    before = clockwork.spent_ns

    clockwork.launch(0, 1000)

    assert clockwork.spent_ns - before <= 1.2 * 1000 * 10 * US + PIECE_NS


def test_what_the_host_did_meanwhile_is_not_the_kernels(clockwork: Clockwork) -> None:
    clockwork.order("length", 0, 100 * US)
    clockwork.order("set", LAUNCH_HOST_NS, 20 * MS)

    clockwork.launch(0, 3)
    clockwork.order("set", LAUNCH_HOST_NS, 0)
    clockwork.launch(0, 100)

    assert clockwork.spent_ns <= 103 * 100 * US + 3 * MS


def test_driver_that_launches_synchronously_is_believed_in_the_end(clockwork: Clockwork) -> None:
    clockwork.order("length", 0, 0)
    clockwork.order("set", LAUNCH_HOST_NS, 10 * MS)

    clockwork.launch(0, 50)

    assert clockwork.spent_ns >= 40 * 10 * MS


def test_host_time_counts_where_the_stream_was_busy_anyway(clockwork: Clockwork) -> None:
    clockwork.order("set", STREAM_IS_BUSY, 1)
    clockwork.order("length", 0, 5 * MS)
    clockwork.order("set", LAUNCH_HOST_NS, 8 * MS)

    clockwork.launch(0, 30)

    assert abs(clockwork.spent_ns - 30 * 5 * MS) <= 2 * 5 * MS


def test_graphs_are_debited_and_measured_anew_after_an_update(clockwork: Clockwork) -> None:
    clockwork.order("length", 1, 4 * MS)
    assert clockwork.order("replay", 1, 100) == 0
    assert abs(clockwork.spent_ns - 400 * MS) <= 2 * 4 * MS

    clockwork.order("length", 1, 6 * MS)
    assert clockwork.order("update", 1) == 0
    before = clockwork.spent_ns
    clockwork.order("replay", 1, 100)

    assert abs(clockwork.spent_ns - before - 600 * MS) <= 3 * 6 * MS


def test_graph_that_gets_a_destroyed_ones_handle_is_unknown(clockwork: Clockwork) -> None:
    clockwork.order("length", 1, 10 * US)
    assert clockwork.order("replay", 1, 200) == 0
    assert clockwork.order("destroy", 1) == 0
    clockwork.order("length", 1, 50 * MS)
    queries = clockwork.order("get", QUERIES)
    clockwork.order("set", NOT_READY_QUERIES, 20)

    assert clockwork.order("replay", 1, 3) == 0  # the third waits for the first

    assert clockwork.order("get", QUERIES) - queries > 20


def test_captured_launches_are_not_debited(clockwork: Clockwork) -> None:
    clockwork.order("length", 0, 5 * MS)

    assert clockwork.order("captured", 0, 100) == 0

    assert clockwork.spent_ns == 0
    assert clockwork.order("get", EVENTS_MADE) == 0


def test_no_event_is_made_or_asked_for_while_another_stream_is_captured(
    clockwork: Clockwork,
) -> None:
    clockwork.order("length", 0, 2 * MS)
    clockwork.order("set", NOT_READY_QUERIES, 1)
    clockwork.launch(0, 1)
    events, queries = (clockwork.order("get", what) for what in (EVENTS_MADE, QUERIES))

    assert clockwork.order("beside", 0, 50) == 0

    assert clockwork.order("get", EVENTS_MADE) == events
    assert clockwork.order("get", QUERIES) == queries
    assert clockwork.order("get", QUERIES_IN_CAPTURE) == 0
    assert clockwork.spent_ns > 0
    clockwork.launch(0, 50)
    assert clockwork.order("get", QUERIES) > queries


def test_third_launch_of_an_unknown_kernel_waits_for_the_device(clockwork: Clockwork) -> None:
    clockwork.order("length", 0, 50 * MS)
    clockwork.order("set", NOT_READY_QUERIES, 20)

    clockwork.launch(0, 3)

    assert clockwork.order("get", QUERIES) > 20


def test_nothing_is_timed_where_limits_are_off(clockwork: Clockwork, control: ControlFile) -> None:
    control.set_core_mode(0, region.CoreMode.OFF)

    clockwork.launch(0, 1000)

    assert clockwork.order("get", LAUNCHES) == 1000
    assert clockwork.order("get", EVENTS_MADE) == 0
    assert clockwork.spent_ns == 0


def test_many_kernels_at_once_are_all_debited(clockwork: Clockwork) -> None:
    """More functions and sizes than one set of the table has room for."""
    for index in range(16):
        clockwork.order("length", index, 30 * US)
    for size in range(40):
        for index in range(16):
            clockwork.launch(index, 4, 2**size % 2**31 or 3)

    took = clockwork.took_ns
    assert abs(clockwork.spent_ns - took) <= 0.02 * took + PIECE_NS
