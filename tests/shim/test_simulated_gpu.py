"""The simulated driver alone: what it shows, what it grants, how long it takes, how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hami.errors import SandboxError
from hami.sandbox.gpu import catalogue, node
from tests.support.gpu import MIB, OUT_OF_MEMORY, Client, Machine, wait_for

Compile = Callable[..., Path]

TELL = Path(__file__).parent / "programs" / "nvml_tell.py"


def tell(machine: Machine, *expressions: str, **env: str) -> list[Any]:
    done = subprocess.run(
        [sys.executable, TELL, *expressions],
        env={**machine.environment(), **env},
        capture_output=True,
        text=True,
        check=True,
    )
    answers: list[Any] = json.loads(done.stdout)
    return answers


def probe(machine: Machine, *flags: str, **env: str) -> dict[str, Any]:
    done = subprocess.run(
        [node.PROBE, *flags],
        env={**machine.environment(), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def start_plain(
    machine: Machine, start_client: Callable[..., Client], compile_program: Compile
) -> Callable[[], Client]:
    """Starts a client on the machine without any container."""
    container = machine.container(None, name="plain")
    return lambda: start_client(container, LD_PRELOAD="", NVIDIA_VISIBLE_DEVICES="all")


@pytest.mark.parametrize("model", catalogue.MODELS.values(), ids=lambda model: model.key)
def test_each_model_shows_its_real_figures(tmp_path: Path, model: catalogue.GpuModel) -> None:
    machine = Machine.create(tmp_path, [model])

    name, total, capability, architecture, pci = tell(
        machine,
        "n.nvmlDeviceGetName(h(0))",
        "n.nvmlDeviceGetMemoryInfo(h(0)).total",
        "n.nvmlDeviceGetCudaComputeCapability(h(0))",
        "n.nvmlDeviceGetArchitecture(h(0))",
        "n.nvmlDeviceGetPciInfo(h(0)).pciDeviceId",
    )

    assert (name, total) == (model.product, model.memory_bytes)
    assert tuple(capability) == model.compute_capability
    assert (architecture, pci) == (int(model.architecture), model.pci_device_id)
    cuda = probe(machine, "--fill", "--check")["devices"][0]
    assert cuda["cuda"]["total"] == model.memory_bytes - model.reserved_bytes
    assert cuda["fill"]["one_more_byte"] == OUT_OF_MEMORY


def test_unknown_model_is_refused_with_the_list_of_those_that_exist() -> None:
    with pytest.raises(SandboxError, match=r"expected one of t4, .*, met 'geforce'"):
        catalogue.get("geforce")


def test_nvml_identifies_devices_in_every_way(tmp_path: Path) -> None:
    machine = Machine.create(tmp_path, [catalogue.get("a100-80gb")] * 8)

    answers = tell(
        machine,
        "n.nvmlDeviceGetCount()",
        "[n.nvmlDeviceGetUUID(h(i)) for i in range(8)]",
        "n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByUUID(n.nvmlDeviceGetUUID(h(5))))",
        "n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByPciBusId(n.nvmlDeviceGetPciInfo(h(3)).busId))",
        "[n.nvmlDeviceGetNumaNodeId(h(i)) for i in range(8)]",
        "n.nvmlDeviceGetTopologyCommonAncestor(h(0), h(3))",
        "n.nvmlDeviceGetTopologyCommonAncestor(h(0), h(4))",
        "n.nvmlDeviceGetMinorNumber(h(6))",
        "n.nvmlSystemGetDriverVersion()",
        "n.nvmlSystemGetCudaDriverVersion()",
        "n.nvmlDeviceGetMigMode(h(0))",
        "h(8)",
        "n.nvmlDeviceGetFanSpeed(h(0))",
    )

    assert answers == [
        *(8, list(machine.uuids), 5, 3, [0, 0, 0, 0, 1, 1, 1, 1], 40, 50, 6),
        *(node.DRIVER_VERSION, node.CUDA_VERSION, "error 3", "error 2", "error 13"),
    ]


def test_uuids_follow_from_the_node_and_the_index(tmp_path: Path) -> None:
    again = node.create_node_state(tmp_path / "a", [catalogue.get("t4")] * 2, node_name="n")
    other = node.create_node_state(tmp_path / "b", [catalogue.get("t4")] * 2, node_name="m")

    assert again == (node.gpu_uuid("n", 0), node.gpu_uuid("n", 1))
    assert len({*again, *other}) == 4
    assert all(len(uuid) == 40 and uuid.startswith("GPU-") for uuid in again)


VISIBLE = [
    pytest.param("all", None, [0, 1, 2, 3], id="all"),
    pytest.param("none", None, [], id="none"),
    pytest.param("void", None, [], id="void"),
    pytest.param("", None, [], id="empty"),
    pytest.param("2,0", None, [2, 0], id="indices keep their order"),
    pytest.param("{3},{1}", None, [3, 1], id="uuids"),
    pytest.param("1,1", None, [1], id="named twice, shown once"),
    pytest.param("9,1", None, [1], id="one that does not exist"),
    pytest.param("all", "1,2", [1, 2], id="cuda indices"),
    pytest.param("{3},{2}", "1", [2], id="cuda indices count what the container has"),
    pytest.param("all", "{3}", [3], id="cuda uuid"),
    pytest.param("all", "{2:.12}", [2], id="beginning of a uuid"),
    pytest.param("all", "GPU-", [], id="ambiguous beginning"),
    pytest.param("all", "1,-1,2", [1], id="an invalid item hides the rest"),
    pytest.param("all", "", [], id="cuda empty"),
    pytest.param("all", "1,1", [], id="cuda named twice"),
    pytest.param("{3}", "{2}", [], id="cuda asks for what the container has not"),
]


@pytest.mark.parametrize(("container", "cuda", "expected"), VISIBLE)
def test_visible_devices_follow_the_runtimes_rules(
    tmp_path: Path, container: str, cuda: str | None, expected: list[int]
) -> None:
    machine = Machine.create(tmp_path, [catalogue.get("t4")] * 4)
    environment = {"NVIDIA_VISIBLE_DEVICES": container.format(*machine.uuids)}
    if cuda is not None:
        environment["CUDA_VISIBLE_DEVICES"] = cuda.format(*machine.uuids)

    found = probe(machine, **environment)

    assert [device["uuid"] for device in found["devices"]] == [machine.uuids[i] for i in expected]
    assert found.get("error") == (None if expected else "cuInit: CUresult 100")


def test_cuda_visible_devices_does_not_concern_nvml(machine: Machine) -> None:
    assert tell(machine, "n.nvmlDeviceGetCount()", CUDA_VISIBLE_DEVICES="0") == [2]


def test_without_a_node_there_is_no_driver(machine: Machine) -> None:
    assert tell(machine, HAMI_SIM_NODE="") == ["init 9"]
    assert probe(machine, HAMI_SIM_NODE="/nowhere")["error"] == "cuInit: CUresult 100"


def test_memory_is_shared_by_all_processes_and_counted_by_nvml(
    machine: Machine, start_plain: Callable[[], Client]
) -> None:
    first, second = start_plain(), start_plain()
    _, free, _ = first.ask("info")

    first.alloc(free - 10 * MIB)

    assert second.ask("info")[1] == 10 * MIB
    assert second.ask("alloc", 10 * MIB + 1)[0] == OUT_OF_MEMORY
    second.alloc(10 * MIB)
    used, processes = tell(
        machine,
        "n.nvmlDeviceGetMemoryInfo(h(0), version=n.nvmlMemory_v2).used",
        "[(p.pid, p.usedGpuMemory) for p in n.nvmlDeviceGetComputeRunningProcesses(h(0))]",
    )
    assert used == free
    assert processes == [
        [first.process.pid, free - 10 * MIB],
        [second.process.pid, 10 * MIB],
    ]


def test_large_allocations_take_whole_blocks(
    machine: Machine, start_plain: Callable[[], Client]
) -> None:
    client = start_plain()

    client.alloc(3 * MIB)
    client.alloc(100)

    assert machine.used_bytes() == 4 * MIB + 512


def test_driver_frees_what_a_killed_process_held(
    machine: Machine, start_plain: Callable[[], Client]
) -> None:
    victim, heir = start_plain(), start_plain()
    _, free, _ = victim.ask("info")
    victim.alloc(free)

    victim.process.kill()
    victim.process.wait()

    assert heir.ask("alloc", free)[0] == 0


def test_contexts_cost_what_the_node_says(tmp_path: Path) -> None:
    machine = Machine.create(tmp_path, [catalogue.get("t4")], context_bytes=100 * MIB)
    model = catalogue.get("t4")

    cuda = probe(machine)["devices"][0]["cuda"]

    assert cuda["free"] == model.memory_bytes - model.reserved_bytes - 100 * MIB


def test_state_file_of_something_else_is_refused(tmp_path: Path, machine: Machine) -> None:
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"x" * 20_000_000)

    with pytest.raises(SandboxError, match="expected version 2"):
        node.read_use(foreign)
    assert tell(machine, HAMI_SIM_NODE=str(foreign)) == ["init 9"]


def test_what_is_copied_to_the_device_comes_back(machine: Machine) -> None:
    script = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
context, address = ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
assert cuda.cuCtxSetCurrent(context) == 0
assert cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(8192)) == 0
back = ctypes.create_string_buffer(8192)
assert cuda.cuMemsetD32_v2(address, 0x61626364, ctypes.c_size_t(2048)) == 0
assert cuda.cuMemcpyHtoD_v2(ctypes.c_uint64(address.value + 4), b"hello", ctypes.c_size_t(5)) == 0
assert cuda.cuMemcpyDtoH_v2(back, address, ctypes.c_size_t(8192)) == 0
assert back.raw[:12] == b"dcbahellocba", back.raw[:12]
assert cuda.cuMemcpyDtoH_v2(back, ctypes.c_uint64(64), ctypes.c_size_t(8)) == 1
print("ok")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=machine.environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.stdout, done.stderr) == ("ok\n", "")


def launch(machine: Machine, program: Path, *words: object, gpu: int = 0) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [str(program), *map(str, words)],
        env={**machine.environment(), "NVIDIA_VISIBLE_DEVICES": str(gpu)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    machine.started.append(process)
    return process


def test_kernels_take_their_time(machine: Machine, compile_program: Compile) -> None:
    process = launch(machine, compile_program("launcher"), 500, 100, 1)
    out, _ = process.communicate(timeout=30)

    measured, took = map(float, out.split())

    assert took >= measured >= 50


def test_more_blocks_than_the_device_holds_take_more_waves(
    machine: Machine, compile_program: Compile
) -> None:
    at_once = catalogue.get("h100").sm_count * 2  # blocks of 1024 threads
    process = launch(machine, compile_program("launcher"), 1000, 10, at_once * 2 + 1)
    out, _ = process.communicate(timeout=30)

    assert float(out.split()[0]) >= 30


def test_two_processes_share_a_device_and_not_two_devices(
    machine: Machine, compile_program: Compile
) -> None:
    program = compile_program("launcher")
    launch(machine, program, 1000, 10**6, 1, gpu=0)
    wait_for(lambda: bool(node.read_processes(machine.state, 0)), "the first process launches")

    def milliseconds(gpu: int) -> float:
        out, _ = launch(machine, program, 1000, 200, 1, gpu=gpu).communicate()
        return float(out.split()[0])

    assert milliseconds(gpu=0) >= 400
    wait_for(lambda: 200 <= milliseconds(gpu=1) < 400, "a device of one's own is not shared")


def test_nvml_sees_who_keeps_the_device_busy(machine: Machine, compile_program: Compile) -> None:
    process = launch(machine, compile_program("launcher"), 1000, 10**6, 1)
    wait_for(lambda: bool(node.read_processes(machine.state, 0)), "the process launches")

    _, _, busy, idle, processes = tell(
        machine,
        "str(n.nvmlDeviceGetUtilizationRates(h(0))) + str(n.nvmlDeviceGetUtilizationRates(h(1)))",
        "__import__('time').sleep(0.3)",
        "n.nvmlDeviceGetUtilizationRates(h(0)).gpu",
        "n.nvmlDeviceGetUtilizationRates(h(1)).gpu",
        "[p.pid for p in n.nvmlDeviceGetProcessUtilization(h(0), 0)]",
    )

    assert busy > idle == 0
    assert processes == [process.pid]


def test_injected_xid_reaches_those_who_wait_for_it(machine: Machine) -> None:
    script = """
import pynvml as n
n.nvmlInit()
events = n.nvmlEventSetCreate()
for index in range(2):
    handle = n.nvmlDeviceGetHandleByIndex(index)
    n.nvmlDeviceRegisterEvents(handle, n.nvmlEventTypeXidCriticalError, events)
print("waiting", flush=True)
data = n.nvmlEventSetWait_v2(events, 20000)
print(n.nvmlDeviceGetUUID(data.device), data.eventType, data.eventData)
try:
    n.nvmlEventSetWait_v2(events, 20)
except n.NVMLError_Timeout:
    print("nothing more")
"""
    waiter = subprocess.Popen(
        [sys.executable, "-c", script],
        env=machine.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    machine.started.append(waiter)
    assert waiter.stdout is not None
    assert waiter.stdout.readline() == "waiting\n"

    node.inject_xid(machine.state, 1, xid=79)

    assert waiter.stdout.readline() == f"{machine.uuids[1]} 8 79\n"
    assert waiter.stdout.readline() == "nothing more\n"


def test_lost_device_answers_nobody_until_it_is_back(
    machine: Machine, start_plain: Callable[[], Client]
) -> None:
    client = start_plain()

    node.set_gpu_lost(machine.state, 0)

    assert tell(machine, "h(0)", "n.nvmlDeviceGetUUID(h(1))") == ["error 15", machine.uuids[1]]
    assert client.ask("alloc", 1)[0] == 719
    node.set_gpu_lost(machine.state, 0, lost=False)
    assert tell(machine, "n.nvmlDeviceGetUUID(h(0))") == [machine.uuids[0]]
    assert client.ask("alloc", 1)[0] == 0


def test_fault_on_a_gpu_that_does_not_exist_is_refused(machine: Machine) -> None:
    with pytest.raises(SandboxError, match="expected an index below 2, met 2"):
        node.inject_xid(machine.state, 2, xid=79)


def test_probe_ends_on_sigterm_with_code_zero(machine: Machine) -> None:
    process = subprocess.Popen(
        [str(node.PROBE), "--text", "--allocate", "100", "--hold", "0"],
        env=machine.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    machine.started.append(process)
    wait_for(lambda: machine.used_bytes() == 100 * MIB, "the probe holds memory")

    process.terminate()

    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "holding 100 MiB: CUresult 0" in out


@pytest.mark.parametrize(
    ("words", "code"), [(("--allocate", "x"), 2), (("--unknown",), 2), (("--launch", "3"), 0)]
)
def test_probe_tells_misuse_from_failure(
    machine: Machine, words: tuple[str, ...], code: int
) -> None:
    done = subprocess.run(
        [node.PROBE, *words], env=machine.environment(), capture_output=True, check=False
    )

    assert done.returncode == code


def test_probe_check_fails_where_the_memory_cannot_be_had(machine: Machine) -> None:
    flags = ("--check", "--allocate", str(2**21))

    done = subprocess.run(
        [node.PROBE, *flags], env=machine.environment(), capture_output=True, text=True, check=False
    )

    assert (done.returncode, json.loads(done.stdout)["ok"]) == (1, False)
