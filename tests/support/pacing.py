"""A governor that does but what a test tells it, and what a region says of computing time."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

from hami.nodeagent import region
from hami.nodeagent.controlfile import ControlFile
from hami.nodeagent.region_layout import Bucket, Usage
from tests.support.gpu import Client, wait_for

MS = 1_000_000
SECOND = 1_000_000_000
BURST_NS = 10 * MS
PIECE_NS = MS
"""The most that a thread takes in advance."""
PLENTY = 2**40 - 1
"""A rate at which nobody ever waits."""
NAPS = 8
"""So often has gone to sleep who waits at the gate; one that waits for orders does not."""


def pace(control: ControlFile, rate: int, *, burst_ns: int = BURST_NS, device: int = 0) -> None:
    """Limit the device to that rate from now on."""
    now = time.monotonic_ns()
    control.beat(now)
    control.set_pace(device, ns_per_second=rate, burst_ns=burst_ns, now_ns=now)
    control.set_core_mode(device, region.CoreMode.LIMIT)


def granted_ns(control: ControlFile, device: int = 0) -> int:
    """Granted until now."""
    return control.granted(device, time.monotonic_ns())


def spent_ns(directory: Path, device: int = 0) -> int:
    """What all processes have debited."""
    use = region.read_usage(directory)
    return sum(process.devices[device].spent_ns for process in use.processes)


def waited_ns(directory: Path, device: int = 0) -> int:
    """How long their threads have waited."""
    use = region.read_usage(directory)
    return sum(process.devices[device].waited_ns for process in use.processes)


def scribble_bucket(directory: Path, debited_ns: int, device: int = 0) -> None:
    """Write over a bucket, as any process of the container could."""
    place = Usage.buckets.offset + device * ctypes.sizeof(Bucket) + Bucket.debited_ns.offset
    with (directory / region.USAGE).open("r+b") as file:
        file.seek(place)
        file.write(debited_ns.to_bytes(8, "little"))


def read_bucket(directory: Path, device: int = 0) -> int:
    """What the bucket's counter says."""
    place = Usage.buckets.offset + device * ctypes.sizeof(Bucket) + Bucket.debited_ns.offset
    with (directory / region.USAGE).open("rb") as file:
        file.seek(place)
        return int.from_bytes(file.read(8), "little")


def naps(pid: int) -> int:
    """How often a process has gone to sleep of its own accord, all threads together."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def wait_until_held(client: Client) -> None:
    """Until it stands at the gate: it goes to sleep again and again."""
    pid = client.process.pid
    before = naps(pid)
    wait_for(lambda: naps(pid) >= before + NAPS, "the launch is held at the gate")
