"""The state file of one simulated node: made here, then shared by all processes that run on it.

A process uses the node by two settings: NODE_ENV names the file, and
LIBRARY_DIR stands first in LD_LIBRARY_PATH. Faults are injected by changing the file while it is in
use; a reader or writer here maps it, since only the sandbox's own processes can touch it.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hami.errors import SandboxError
from hami.sandbox.gpu import layout
from hami.sandbox.gpu.catalogue import GpuModel
from hami.sandbox.gpu.layout import MAX_GPUS

NODE_ENV: Final = "HAMI_SIM_NODE"
LIBRARY_DIR: Final = Path(__file__).parent / "lib"
PROBE: Final = LIBRARY_DIR / "gpu-probe"

MAGIC: Final = int.from_bytes(b"HIMGSU01", "little")
VERSION: Final = 2
DRIVER_VERSION: Final = "570.133.20"
CUDA_VERSION: Final = 12080
QUEUE_DEPTH: Final = 1024
POOL_STEP_BYTES: Final = 32 * 2**20
NVML_PERIOD_NS: Final = 166_666_667
NVML_LAG_NS: Final = 20_000_000

_NO_PROCESS_UTILIZATION: Final = 1
_HOST_PIDS: Final = 2
_XID_EVENT: Final = 8
_GPUS_PER_NUMA_NODE: Final = 4
_BUS_STEP: Final = 0x0F


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUse:
    """Memory of one simulated GPU, as its driver counts it."""

    used_bytes: int
    peak_bytes: int
    """The most that was ever held at once; by living processes, if peaks are exact."""
    evicted_bytes: int = 0
    """Managed memory that had to leave the device, ever."""
    moved_bytes: int = 0
    """Managed memory that kernels had to fetch from the host, ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """One process on one simulated GPU."""

    pid: int
    used_bytes: int
    busy_ns: int
    """Device time of all kernels that it ever queued."""
    executed_ns: int
    """What it has had of that, when the driver last looked at the clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTime:
    """How a simulated GPU's time was spent, when its driver last looked at the clock.

    The driver looks when a process queues, waits or asks; every few ms while one waits.
    """

    time_ns: int
    """Of CLOCK_MONOTONIC; 0: nobody has used it."""
    busy_ns: int
    """Device time given to anyone, ever."""
    processes: tuple[GpuProcess, ...]


def gpu_uuid(node_name: str, index: int) -> str:
    """The UUID of a node's GPU: always the same for the same name and index."""
    digest = hashlib.sha256(f"{node_name}/{index}".encode()).digest()
    return f"GPU-{uuid.UUID(bytes=digest[:16], version=4)}"


def create_node_state(
    path: Path,
    gpus: Sequence[GpuModel],
    *,
    node_name: str,
    driver_version: str = DRIVER_VERSION,
    cuda_version: int = CUDA_VERSION,
    context_bytes: int = 0,
    exact_peaks: bool = False,
    queue_depth: int = QUEUE_DEPTH,
    pool_step_bytes: int = POOL_STEP_BYTES,
    nvml_period_ns: int = NVML_PERIOD_NS,
    nvml_lag_ns: int = NVML_LAG_NS,
) -> tuple[str, ...]:
    """Write the state of a node at rest; replaces an older one. The UUIDs, in order.

    Args:
        path: The file.
        gpus: The node's GPUs; four share a NUMA node.
        node_name: Names the node, and through it its UUIDs.
        driver_version: What the driver says it is.
        cuda_version: 12080 is CUDA 12.8.
        context_bytes: Device memory that every CUDA context takes.
        exact_peaks: Never count a process that died just now into a peak; for tests.
        queue_depth: Launches that a process may queue before one blocks.
        pool_step_bytes: By how much memory pools grow at a time.
        nvml_period_ns: Time that each of NVML's samples of utilisation covers.
        nvml_lag_ns: From the end of that time to the moment the sample can be seen; at most two
            periods.

    Raises:
        SandboxError: There are too many GPUs, or the file cannot be written.
    """
    if len(gpus) > MAX_GPUS:
        raise SandboxError(f"node {node_name}: expected at most {MAX_GPUS} GPUs, met {len(gpus)}")
    node = layout.Node(
        magic=MAGIC,
        version=VERSION,
        size=ctypes.sizeof(layout.Node),
        gpu_count=len(gpus),
        cuda_version=cuda_version,
        node_name=node_name.encode()[:63],
        driver_version=driver_version.encode()[:31],
        context_bytes=context_bytes,
        exact_peaks=int(exact_peaks),
        realtime_offset_ns=time.time_ns() - time.monotonic_ns(),
        nvml_period_ns=nvml_period_ns,
        nvml_lag_ns=nvml_lag_ns,
        queue_depth=queue_depth,
        pool_step_bytes=pool_step_bytes,
    )
    for index, model in enumerate(gpus):
        node.gpus[index] = _gpu(model, index, node_name=node_name)
    try:
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_bytes(memoryview(node).cast("B")[: layout.Node.timelines.offset])
        os.truncate(temporary, ctypes.sizeof(layout.Node))
        temporary.chmod(0o666)
        temporary.replace(path)
    except OSError as error:
        raise SandboxError(f"node {node_name}: writing {path}: {error}") from error
    return tuple(gpu_uuid(node_name, index) for index in range(len(gpus)))


def _gpu(model: GpuModel, index: int, *, node_name: str) -> layout.Gpu:
    bus = _BUS_STEP * (index + 1)
    return layout.Gpu(
        name=model.product.encode(),
        uuid=gpu_uuid(node_name, index).encode(),
        bus_id=f"0000:{bus:02X}:00.0".encode(),
        pci_domain=0,
        pci_bus=bus,
        pci_device=0,
        pci_device_id=model.pci_device_id,
        pci_subsystem_id=model.pci_device_id,
        numa_node=index // _GPUS_PER_NUMA_NODE,
        capability_major=model.compute_capability[0],
        capability_minor=model.compute_capability[1],
        multiprocessors=model.sm_count,
        threads_per_multiprocessor=model.threads_per_sm,
        architecture=int(model.architecture),
        memory_bytes=model.memory_bytes,
        reserved_bytes=model.reserved_bytes,
    )


@contextmanager
def _mapped(path: Path) -> Iterator[layout.Node]:
    try:
        with path.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), ctypes.sizeof(layout.Node))
    except (OSError, ValueError) as error:
        raise SandboxError(f"node state {path}: {error}") from error
    node = layout.Node.from_buffer(memory)  # unmapped with the last reference to it
    if (node.magic, node.version) != (MAGIC, VERSION):
        raise SandboxError(f"node state {path}: expected version {VERSION}, met {node.version}")
    yield node


def _checked(node: layout.Node, gpu: int) -> int:
    if not 0 <= gpu < node.gpu_count:
        raise SandboxError(f"GPU: expected an index below {node.gpu_count}, met {gpu}")
    return gpu


def set_gpu_lost(path: Path, gpu: int, *, lost: bool = True) -> None:
    """Let a GPU fall off the bus, or bring it back.

    Raises:
        SandboxError: There is no such node or GPU.
    """
    with _mapped(path) as node:
        node.gpus[_checked(node, gpu)].lost = int(lost)


def inject_xid(path: Path, gpu: int, *, xid: int) -> None:
    """Report an XID error on a GPU to everyone who waits for its events.

    Raises:
        SandboxError: There is no such node or GPU.
    """
    inject_event(path, gpu, kind=_XID_EVENT, data=xid)


def inject_event(path: Path, gpu: int, *, kind: int, data: int = 0) -> None:
    """Report an event of NVML's type ``kind`` on a GPU. One injector at a time.

    Raises:
        SandboxError: There is no such node or GPU.
    """
    with _mapped(path) as node:
        sequence = node.last_event + 1
        node.events[sequence % layout.EVENTS] = layout.Event(
            sequence=sequence, gpu=_checked(node, gpu), type=kind, data=data
        )
        node.last_event = sequence


def set_faults(path: Path, faults: str) -> None:
    """Let calls of the CUDA driver fail or take long, in all processes; replaces earlier ones.

    Args:
        path: The node's state.
        faults: As HAMI_SIM_FAULTS has them: ``cuMemAlloc_v2:3=2`` fails the third call from now on
            with 2, ``cuMemAlloc_v2:3+=2`` the later ones too, ``cuLaunchKernel:delay=5ms`` delays
            each; several with commas. Empty: none.

    Raises:
        SandboxError: There is no such node, or the text is too long.
    """
    text = faults.encode()
    if len(text) >= layout.FAULTS_BYTES:
        raise SandboxError(
            f"faults: expected less than {layout.FAULTS_BYTES} bytes, met {len(text)}"
        )
    with _mapped(path) as node:
        node.faults = text
        node.faults_version += 1


def set_nvml(
    path: Path,
    *,
    process_utilization: bool = True,
    host_pids: bool = False,
    delay_ns: int = 0,
) -> None:
    """Change how NVML answers.

    Args:
        path: The node's state.
        process_utilization: Whether utilisation of processes is supported.
        host_pids: Whether processes go by their pids on the host, instead of those that they see.
        delay_ns: How long each query of a device takes.

    Raises:
        SandboxError: There is no such node.
    """
    with _mapped(path) as node:
        node.nvml_flags = (0 if process_utilization else _NO_PROCESS_UTILIZATION) | (
            _HOST_PIDS if host_pids else 0
        )
        node.nvml_delay_ns = delay_ns


def read_use(path: Path) -> tuple[GpuUse, ...]:
    """Memory of each GPU. What dead processes held counts until the driver is next asked.

    Raises:
        SandboxError: There is no such node.
    """
    with _mapped(path) as node:
        return tuple(
            GpuUse(
                used_bytes=gpu.used_bytes,
                peak_bytes=gpu.peak_bytes,
                evicted_bytes=gpu.evicted_bytes,
                moved_bytes=gpu.moved_bytes,
            )
            for gpu in node.gpus[: node.gpu_count]
        )


def read_processes(path: Path, gpu: int) -> tuple[GpuProcess, ...]:
    """Who uses a GPU, the dead included until the driver is next asked.

    Raises:
        SandboxError: There is no such node or GPU.
    """
    return read_time(path, gpu).processes


def read_time(path: Path, gpu: int) -> GpuTime:
    """How a GPU's time was spent, and who uses it, all as of the same moment.

    Raises:
        SandboxError: There is no such node or GPU.
    """
    with _mapped(path) as node:
        row = _checked(node, gpu)
        timeline = node.timelines[row]
        while True:  # the driver may move on while we look
            clock = layout.Clock.from_buffer_copy(timeline.clocks[timeline.current & 1])
            processes = tuple(
                _process(process.pid, process.rows[row], clock)
                for process in node.processes[: node.process_high]
                if process.token
            )
            if bytes(timeline.clocks[timeline.current & 1]) == bytes(clock):
                return GpuTime(time_ns=clock.time_ns, busy_ns=clock.busy_ns, processes=processes)


def _process(pid: int, row: layout.Row, clock: layout.Clock) -> GpuProcess:
    return GpuProcess(
        pid=pid,
        used_bytes=row.bytes,
        busy_ns=row.busy_ns,
        executed_ns=max(0, row.busy_ns - max(0, row.finish_ns - clock.virtual_ns)),
    )
