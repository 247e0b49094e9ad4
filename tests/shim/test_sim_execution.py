"""The simulated driver alone: streams, events, launches, and GPU time shared by processes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from hami.sandbox.gpu import catalogue, node
from tests.support import cuda
from tests.support.gpu import Machine, wait_for

MS = 10**6
HOLD = """
kernel = function({microseconds})
for _ in range({count}):
    assert launch(kernel) == 0
print("queued", flush=True)
input()
cu("cuCtxSynchronize")
"""


def queue(machine: Machine, count: int, microseconds: float = 1000) -> subprocess.Popen[str]:
    """A process with so many kernels queued."""
    process = cuda.begin(machine, HOLD.format(microseconds=microseconds, count=count))
    assert process.stdout is not None
    assert process.stdout.readline() == "queued\n"
    return process


def executed(moment: node.GpuTime) -> dict[int, int]:
    return {process.pid: process.executed_ns for process in moment.processes}


def now(machine: Machine) -> node.GpuTime:
    """Time spent on the first GPU until now: asking for memory is a moment to look at the clock."""
    before = node.read_time(machine.state, 0).time_ns
    cuda.run(machine, 'cu("cuStreamQuery", 1); record()')
    moment = node.read_time(machine.state, 0)
    assert moment.time_ns > before
    return moment


@pytest.mark.parametrize("count", [2, 3, 5])
def test_processes_with_work_share_exactly(machine: Machine, count: int) -> None:
    workers = [queue(machine, 1000, 5000) for _ in range(count)]
    first = now(machine)
    second = now(machine)

    had = [executed(second)[worker.pid] - executed(first)[worker.pid] for worker in workers]
    elapsed = second.time_ns - first.time_ns
    assert sum(had) == second.busy_ns - first.busy_ns == pytest.approx(elapsed, abs=count)
    assert max(had) == min(had) == pytest.approx(elapsed / count, abs=1)


def test_time_that_processes_had_adds_up_to_the_time_the_device_was_busy(machine: Machine) -> None:
    workers = [queue(machine, 10 * (i + 1), 700) for i in range(4)]
    for worker in workers:
        worker.communicate("\n", timeout=30)
        assert worker.returncode == 0

    moment = node.read_time(machine.state, 0)
    assert moment.busy_ns == 100 * 700_000
    assert all(process.executed_ns == process.busy_ns for process in moment.processes)


def test_device_is_never_idle_while_someone_has_work(machine: Machine) -> None:
    lone = queue(machine, 1000, 5000)
    guest = queue(machine, 10, 100)
    guest.communicate("\n", timeout=30)
    first = now(machine)
    second = now(machine)

    assert second.busy_ns - first.busy_ns == pytest.approx(second.time_ns - first.time_ns, abs=4)
    assert executed(second)[lone.pid] == second.busy_ns - 1_000_000


def test_killed_process_leaves_the_device_to_the_others(machine: Machine) -> None:
    victim = queue(machine, 1000, 10_000)
    heir = queue(machine, 1000, 10_000)
    victim.kill()
    victim.wait()

    def alone() -> bool:
        first, second = now(machine), now(machine)
        had = executed(second)[heir.pid] - executed(first)[heir.pid]
        return had >= second.time_ns - first.time_ns - 4

    wait_for(alone, "the survivor has the device to itself")


def test_elapsed_time_of_a_lone_process_is_the_kernels(machine: Machine) -> None:
    script = """
kernel = function(2000)
where = stream()
launch(kernel, where)
begin = record(where)
for _ in range(5):
    launch(kernel, where)
end = record(where)
print(code("cuEventElapsedTime", by(c_float()), begin, end), code("cuEventQuery", end))
print(round(elapsed(begin, end), 3), code("cuEventQuery", end))
timeless = event(2)
cu("cuEventRecord", timeless, where)
print(code("cuEventElapsedTime", by(c_float()), begin, timeless), code("cuEventQuery", event()))
"""
    assert cuda.run(machine, script) == ["600 600", "10.0 0", "400 0"]


def test_event_tells_the_time_after_others_have_come_and_gone(machine: Machine) -> None:
    script = """
kernel = function(20000)
launch(kernel)
begin = record()
for _ in range(3):
    launch(kernel)
end = record()
print("queued", flush=True)
input()
cu("cuEventSynchronize", end)
input()
print(elapsed(begin, end))
"""
    process = cuda.begin(machine, script)
    assert process.stdout is not None
    assert process.stdout.readline() == "queued\n"
    queue(machine, 4, 1000).communicate("\n", timeout=30)
    out, _ = process.communicate("\n\n", timeout=30)

    assert 60 <= float(out) <= 64.001
    assert node.read_time(machine.state, 0).busy_ns == 84 * MS


def test_streams_are_queues_of_their_own_to_wait_for(machine: Machine) -> None:
    script = """
first, second = stream(), stream()
short, long = function(1000), function(10_000_000, "long")
launch(short, first)
launch(long, second)
cu("cuStreamSynchronize", first)
print(code("cuStreamQuery", first), code("cuStreamQuery", second))
mark = record(second)
cu("cuStreamWaitEvent", first, mark, 0)
print(code("cuStreamQuery", first), code("cuEventQuery", mark))
print(launch(short, first))
"""
    assert cuda.run(machine, script) == ["0 600", "600 600", "0"]


def test_legacy_stream_waits_for_blocking_streams_alone(machine: Machine) -> None:
    script = """
long = function(10_000_000)
free, blocking = stream(1), stream(0)
launch(long, free)
print(code("cuStreamQuery", 0), code("cuStreamQuery", 2))
launch(long, blocking)
print(code("cuStreamQuery", 1), code("cuStreamQuery", 2))
launch(long, 0)
print(code("cuStreamQuery", 2), code("cuStreamQuery_ptsz", 0), code("cuStreamQuery", stream(1)))
"""
    assert cuda.run(machine, script) == ["0 0", "600 0", "600 600 0"]


def test_streams_tell_what_they_are(machine: Machine) -> None:
    script = """
least, greatest = c_int(), c_int()
cu("cuCtxGetStreamPriorityRange", by(least), by(greatest))
where = made("cuStreamCreateWithPriority", 1, c_int(-9))
priority, flags, number, device = c_int(), c_uint(), c_uint64(), c_int(9)
cu("cuStreamGetPriority", where, by(priority))
cu("cuStreamGetFlags", where, by(flags))
cu("cuStreamGetId", where, by(number))
cu("cuStreamGetDevice", where, by(device))
owner = c_void_p()
cu("cuStreamGetCtx", where, by(owner))
print(least.value, greatest.value, priority.value, flags.value, device.value)
print(number.value > 2, owner.value == context.value, code("cuStreamDestroy_v2", where))
print(code("cuStreamCreate", by(owner), 2), code("cuStreamDestroy_v2", 0))
"""
    assert cuda.run(machine, script) == ["0 -5 -5 1 0", "True True 0", "1 400"]


@pytest.mark.parametrize("depth", [1, 16])
def test_launch_blocks_while_the_queue_is_full(
    tmp_machine: Callable[..., Machine], depth: int
) -> None:
    machine = tmp_machine(queue_depth=depth)
    script = f"""
kernel = function(3_600_000_000)
for _ in range({depth}):
    launch(kernel)
print("full", flush=True)
launch(kernel)
print("never", flush=True)
"""
    process = cuda.begin(machine, script)
    assert process.stdout is not None
    assert process.stdout.readline() == "full\n"

    def sleeps() -> bool:
        return now(machine).processes[0].busy_ns == depth * 3600 * 1000 * MS

    wait_for(sleeps, "the launch waits")
    process.kill()
    assert process.stdout.read() == ""


LAUNCHES = [
    "launch(kernel, where)",
    "launch(kernel, where, name='cuLaunchKernel_ptsz')",
    "code('cuLaunchCooperativeKernel', kernel, 1, 1, 1, 32, 1, 1, 0, where, None)",
    "code('cuLaunchCooperativeKernel_ptsz', kernel, 1, 1, 1, 32, 1, 1, 0, where, None)",
    "code('cuLaunchKernelEx', by(config), kernel, None, None)",
    "code('cuLaunchKernelEx_ptsz', by(config), kernel, None, None)",
    "code('cuLaunchCooperativeKernelMultiDevice', by(many), 1, 0)",
    "code('cuLaunchGridAsync', kernel, 1, 1, where)",
    "code('cuLaunchGrid', kernel, 1, 1)",
    "code('cuLaunch', kernel)",
    "launch(loaded, where)",
]


@pytest.mark.parametrize("call", LAUNCHES)
def test_every_way_to_launch_takes_the_kernels_time(machine: Machine, call: str) -> None:
    script = f"""
class Config(ctypes.Structure):
    _fields_ = [("grid", c_uint * 3), ("block", c_uint * 3), ("shared", c_uint),
                ("stream", c_void_p), ("attrs", c_void_p), ("count", c_uint)]

class Many(ctypes.Structure):
    _fields_ = [("function", c_void_p), ("grid", c_uint * 3), ("block", c_uint * 3),
                ("shared", c_uint), ("stream", c_void_p), ("parameters", c_void_p)]

where = stream()
kernel = function(1500)
config = Config((1, 1, 1), (32, 1, 1), 0, where, None, 0)
many = Many(kernel, (1, 1, 1), (32, 1, 1), 0, where, None)
library = made("cuLibraryLoadData", b"hami-sim kernels\\nk 1500\\n", None, None, 0, None, None, 0)
loaded = made("cuLibraryGetKernel", library, b"k")
print({call})
cu("cuCtxSynchronize")
"""
    assert cuda.run(machine, script) == ["0"]
    assert node.read_time(machine.state, 0).busy_ns == 1500 * 1000


def test_launches_that_cannot_be_are_refused(machine: Machine) -> None:
    script = """
kernel = function(1)
print(launch(0), launch(kernel, blocks=0))
print(code("cuLaunchKernel", kernel, 1, 1, 1, 2048, 1, 1, 0, 0, None, None))
print(code("cuLaunchCooperativeKernel", kernel, 264, 1, 1, 1024, 1, 1, 0, 0, None))
print(code("cuLaunchCooperativeKernel", kernel, 265, 1, 1, 1024, 1, 1, 0, 0, None))
blocks = c_int()
cu("cuOccupancyMaxActiveBlocksPerMultiprocessor", by(blocks), kernel, c_int(1024), 0)
print(blocks.value)
"""
    assert cuda.run(machine, script) == ["400 1", "1", "0", "720", "2"]


def test_durations_can_be_set_from_outside(machine: Machine) -> None:
    script = """
for name in ("kernel", "other"):
    launch(function(1000, name))
cu("cuCtxSynchronize")
"""
    cuda.run(machine, script, HAMI_SIM_KERNELS="other=2500,more=1")

    assert node.read_time(machine.state, 0).busy_ns == 3500 * 1000


def test_host_functions_run_when_the_stream_gets_there(machine: Machine) -> None:
    script = """
seen = []
first, second = stream(), stream()
address = made("cuMemAlloc_v2", 8)
source = ctypes.create_string_buffer(b"old", 8)

@ctypes.CFUNCTYPE(None, c_void_p)
def call(argument):
    seen.append((argument, 0))
    source.value = b"new"

@ctypes.CFUNCTYPE(None, c_void_p, c_int, c_void_p)
def back(stream, status, argument):
    seen.append((argument, status))

launch(function(2_000), first)
cu("cuLaunchHostFunc", first, call, 5)
cu("cuLaunchHostFunc", second, call, 4)
cu("cuStreamAddCallback", first, back, 6, 0)
cu("cuMemcpyHtoDAsync_v2", address, source, 8, first)
cu("cuStreamSynchronize", first)
read = ctypes.create_string_buffer(8)
cu("cuMemcpyDtoH_v2", read, address, 8)
cu("cuStreamSynchronize", second)
print(sorted(seen), [argument for argument, _ in seen if argument != 4], read.value)
"""
    assert cuda.run(machine, script) == ["[(4, 0), (5, 0), (6, 0)] [5, 6] b'new'"]


@pytest.mark.parametrize(("name", "error"), [("crash", 719), ("crash_700", 700)])
def test_failed_kernel_makes_its_context_useless_until_it_is_reset(
    machine: Machine, name: str, error: int
) -> None:
    script = f"""
mark = event()
print(launch(function(1000, "{name}")))
print(code("cuCtxSynchronize"), launch(1), code("cuEventQuery", mark))
print(code("cuMemAlloc_v2", by(c_void_p()), 8), code("cuStreamSynchronize", 0))
print(code("cuDevicePrimaryCtxReset_v2", 0))
print(code("cuMemAlloc_v2", by(c_void_p()), 8), code("cuStreamSynchronize", 0))
"""
    assert cuda.run(machine, script) == [
        *("0", f"{error} {error} {error}", f"{error} {error}", "0", "0 0"),
    ]


def test_copies_and_fills_of_every_shape(machine: Machine) -> None:
    script = """
class Copy(ctypes.Structure):
    _fields_ = [(side + field, kind) for side in ("src", "dst") for field, kind in
                (("X", c_size_t), ("Y", c_size_t), ("Type", c_int), ("Host", c_void_p),
                 ("Device", c_uint64), ("Array", c_void_p), ("Pitch", c_size_t))] + [
                ("width", c_size_t), ("height", c_size_t)]

first, second = made("cuMemAlloc_v2", 64), made("cuMemAlloc_v2", 64)
back = ctypes.create_string_buffer(64)

def read(address, size):
    cu("cuMemcpyDtoH_v2", back, address, size)
    return back.raw[:size]

cu("cuMemsetD8_v2", first, 0, 64)
cu("cuMemsetD2D8_v2", first, 8, 0x61, 2, 3)
print(read(first, 24))
cu("cuMemsetD16Async", second, 0x6362, 4, 0)
cu("cuMemsetD32Async_ptsz", second + 8, 0x64646464, 1, 0)
print(read(second, 12))
cu("cuMemcpyDtoDAsync_v2", second + 12, second, 4, 0)
print(read(second, 16))
cu("cuMemcpy2D_v2", by(Copy(0, 0, 2, None, first, None, 8, 0, 0, 2, None, second, None, 2, 2, 3)))
print(read(second, 8))
target = ctypes.create_string_buffer(4)
cu("cuMemcpyAsync", target, second, 4, 0)
print(target.raw)
print(code("cuMemcpyDtoD_v2", second, 4096, 4), code("cuMemsetD32_v2", second + 1, 0, 1))
"""
    assert cuda.run(machine, script) == [
        str(b"aa\0\0\0\0\0\0" * 3),
        str(b"bcbcbcbcdddd"),
        str(b"bcbcbcbcddddbcbc"),
        str(b"aaaaaabc"),
        str(b"aaaa"),
        "1 1",
    ]


def test_green_context_has_some_of_the_multiprocessors(machine: Machine) -> None:
    script = """
class Resource(ctypes.Structure):
    _fields_ = [("type", c_int), ("padding", ctypes.c_uint8 * 92), ("sm", c_uint),
                ("rest", ctypes.c_uint8 * 36), ("next", c_void_p)]

whole, parts, left, groups = Resource(), (Resource * 2)(), Resource(), c_uint(2)
cu("cuDeviceGetDevResource", 0, by(whole), 1)
cu("cuDevSmResourceSplitByCount", parts, by(groups), by(whole), by(left), 0, 30)
print(whole.sm, parts[0].sm, parts[1].sm, left.sm)
desc = made("cuDevResourceGenerateDesc", parts, 1)
green = made("cuGreenCtxCreate", desc, 0, 1)
where = made("cuGreenCtxStreamCreate", green, 1, 0)
owner = made("cuCtxFromGreenCtx", green)
kernel = function(1000)
print(code("cuLaunchKernel", kernel, 2 * 32 + 1, 1, 1, 1024, 1, 1, 0, where, None, None))
cu("cuStreamSynchronize", where)
cu("cuStreamDestroy_v2", where)
print(code("cuCtxSetCurrent", owner), code("cuCtxSetCurrent", context))
print(code("cuGreenCtxDestroy", green), code("cuCtxSetCurrent", owner))
"""
    assert cuda.run(machine, script) == ["132 32 32 68", "0", "0 0", "0 201"]
    assert node.read_time(machine.state, 0).busy_ns == 2 * MS


@pytest.fixture
def tmp_machine(tmp_path: object, request: pytest.FixtureRequest) -> Callable[..., Machine]:
    """Makes a node with one H100 and settings of its own."""

    def make(**settings: int) -> Machine:
        machine = Machine.create(tmp_path, [catalogue.get("h100")], **settings)  # type: ignore[arg-type]
        request.addfinalizer(machine.stop)
        return machine

    return make
