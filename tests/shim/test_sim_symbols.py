"""The simulated driver alone: how it is resolved, which version it is, and injected faults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hami.errors import SandboxError
from hami.sandbox.gpu import catalogue, node
from tests.support import cuda
from tests.support.gpu import ROOT, Machine

DEFINITIONS = (ROOT / "hami/sandbox/gpu/src/sim_driver.def").read_text()
ROWS = re.findall(r'^SIM_FUNCTION\("(\w+)", (\d+), (\d), (\w+),', DEFINITIONS, re.M)

ASK = """
def ask(symbol, version=12080, flags=0):
    function, status = c_void_p(), c_int(9)
    wanted = (symbol.encode(), by(function), c_int(version), flags, by(status))
    return code("cuGetProcAddress_v2", *wanted), status.value, function.value

def exported(name):
    return ctypes.cast(getattr(library, name), c_void_p).value
"""


def test_every_function_is_exported_and_resolved_to_the_same_address(machine: Machine) -> None:
    script = f"""
for symbol, version, flags, name in {ROWS!r}:
    if int(version) <= 12080:
        result, status, address = ask(symbol, int(version), int(flags))
        assert (result, status) == (0, 0), (symbol, version, flags)
        assert address == exported(name), (symbol, version, flags)
print("ok")
"""
    assert cuda.run(machine, ASK + script) == ["ok"]
    assert len({name for *_, name in ROWS}) == len(ROWS)


def test_status_tells_why_there_is_no_function(machine: Machine) -> None:
    script = """
print(ask("cuMemCpyQuickly"), ask("cuGraphLaunch", 9000), ask("cuGraphLaunch", 12080, 3)[0])
print(ask("cuLaunchKernel", flags=2)[2] == exported("cuLaunchKernel_ptsz"))
print(ask("cuStreamBeginCapture", 10000)[2] == exported("cuStreamBeginCapture"))
print(ask("cuStreamBeginCapture", 10010)[2] == exported("cuStreamBeginCapture_v2"))
print(code("cuGetProcAddress", b"cuNothing", by(c_void_p()), c_int(12080), 0))
"""
    assert cuda.run(machine, ASK + script) == [
        *("(0, 1, None) (0, 2, None) 1", "True", "True", "True", "500"),
    ]


def test_older_driver_does_not_know_what_is_newer(tmp_path: Path) -> None:
    machine = Machine.create(tmp_path, [catalogue.get("t4")], cuda_version=11040)
    script = """
def old(symbol):
    function = c_void_p()
    return code("cuGetProcAddress", symbol, by(function), c_int(12080), 0), function.value

version = c_int()
cu("cuDriverGetVersion", by(version))
print(version.value, old(b"cuLaunchKernelEx"), code("cuGetProcAddress_v2", b"cuInit"))
print(old(b"cuGraphExecUpdate") == (0, exported("cuGraphExecUpdate")))
print(code("cuLibraryLoadData", by(c_void_p()), b"", None, None, 0, None, None, 0))
"""
    assert cuda.run(machine, ASK + script) == ["11040 (500, None) 801", "True", "801"]


def test_functions_can_be_dropped(machine: Machine) -> None:
    script = """
print(ask("cuGraphLaunch"), ask("cuStreamBeginCapture")[2] == exported("cuStreamBeginCapture"))
print(code("cuGraphLaunch", 0, 0), code("cuGraphLaunch_ptsz", 0, 0), code("cuCtxSynchronize"))
"""
    text = "cuGraphLaunch,cuStreamBeginCapture_v2"
    assert cuda.run(machine, ASK + script, HAMI_SIM_DROP=text) == ["(0, 1, None) True", "801 801 0"]


def test_addresses_can_differ_from_the_exported_ones(machine: Machine) -> None:
    script = """
_, status, address = ask("cuDriverGetVersion")
version = c_int()
print(status, address != exported("cuDriverGetVersion"))
print(ctypes.CFUNCTYPE(c_int, c_void_p)(address)(ctypes.addressof(version)), version.value)
"""
    assert cuda.run(machine, ASK + script, HAMI_SIM_THUNKS="1") == ["0 True", "0 12080"]


def test_nth_call_fails_with_the_given_code(machine: Machine) -> None:
    script = """
def tries():
    return [code("cuMemAlloc_v2", by(c_void_p()), 8) for _ in range(4)]

print(tries(), [code("cuCtxSynchronize") for _ in range(3)])
"""
    text = "cuMemAlloc_v2:3=2,nonsense,cuCtxSynchronize:2+=719"
    assert cuda.run(machine, script, HAMI_SIM_FAULTS=text) == ["[0, 0, 2, 0] [0, 719, 719]"]


def test_calls_of_one_function_by_another_do_not_count(machine: Machine) -> None:
    script = """
print(code("cuMemsetD8_v2", made("cuMemAlloc_v2", 8), 0, 8))
"""
    text = "cuMemsetD8Async:1+=1"
    assert cuda.run(machine, script, HAMI_SIM_FAULTS=text) == ["0"]


def test_all_arguments_pass_through_a_closed_gate(machine: Machine) -> None:
    script = """
print(launch(function(1500), stream(), blocks=3))
cu("cuCtxSynchronize")
"""
    assert cuda.run(machine, script, HAMI_SIM_FAULTS="cuLaunchKernel:9=1") == ["0"]
    assert node.read_time(machine.state, 0).busy_ns == 1_500_000


def test_calls_can_be_delayed(machine: Machine) -> None:
    script = """
begin = time.monotonic()
cu("cuCtxSynchronize")
print(time.monotonic() - begin >= 0.02)
"""
    assert cuda.run(machine, script, HAMI_SIM_FAULTS="cuCtxSynchronize:delay=20ms") == ["True"]


def test_faults_can_be_set_for_running_processes(machine: Machine) -> None:
    script = """
for _ in range(3):
    print(code("cuCtxSynchronize"), flush=True)
    input()
"""
    process = cuda.begin(machine, script)
    assert process.stdout is not None
    assert process.stdin is not None
    answers = [process.stdout.readline()]
    for faults in ("cuCtxSynchronize:1=700", ""):
        node.set_faults(machine.state, faults)
        process.stdin.write("\n")
        process.stdin.flush()
        answers.append(process.stdout.readline())

    assert answers == ["0\n", "700\n", "0\n"]


def test_too_many_faults_are_refused(machine: Machine) -> None:
    with pytest.raises(SandboxError, match="expected less than 512 bytes"):
        node.set_faults(machine.state, "cuInit:1=1," * 60)
