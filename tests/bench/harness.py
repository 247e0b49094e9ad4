"""What benchmarks share: the processes they measure, a quick HTTP client, figures and their file.

The client writes and reads HTTP/1.1 by hand: a comfortable one costs as much time as the controller
takes for its answer, and would be measured in its place.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from hami.config import ControllerSettings, KubeSettings, LogSettings, Settings
from tests.bench import crowd
from tests.support import scripted

ROOT = Path(__file__).parents[2]
START_SECONDS = 180.0
READ_BYTES = 2**22


class Http:
    """One kept connection; requests one after the other."""

    def __init__(self, url: str) -> None:
        self._host, _, port = url.removeprefix("http://").partition(":")
        self._port = int(port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> bytes:
        """The answer's body; anything but a 200 is an error."""
        return await self._ask(b"POST", path, body)

    async def get(self, path: str) -> bytes:
        return await self._ask(b"GET", path, b"")

    async def _ask(self, verb: bytes, path: str, body: bytes) -> bytes:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, limit=READ_BYTES)
        reader, writer = self._streams
        head = b"%s %s HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n" % (
            verb,
            path.encode(),
        )
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        status, *fields = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        length = next(
            int(value)
            for name, _, value in (field.partition(b":") for field in fields)
            if name.lower() == b"content-length"
        )
        answer = await reader.readexactly(length)
        assert b" 200 " in status, (status, answer[:500])
        return answer

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            with suppress(ConnectionError):
                await self._streams[1].wait_closed()
            self._streams = None


@dataclass(slots=True, kw_only=True)
class Controller:
    """A controller in a process of its own, ready."""

    url: str
    health_url: str
    pid: int
    log_file: Path
    ready_seconds: float
    """From its start until it was ready."""

    @property
    def resident_mib(self) -> float:
        return resident_mib(self.pid)

    @property
    def cpu_seconds(self) -> float:
        """What it has used of a core so far; other processes do not add to that."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def logged(self, event: str) -> dict[str, Any] | None:
        """The first log line of this event."""
        for line in self.log_file.read_bytes().splitlines():
            if event.encode() in line:
                with suppress(msgspec.DecodeError):
                    found: dict[str, Any] = msgspec.json.decode(line)
                    if found.get("event") == event:
                        return found
        return None


@asynccontextmanager
async def standin(**options: Any) -> AsyncIterator[str]:
    """The address of a stand-in API server; options are those of its command line."""
    arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.standin", *arguments,
        cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            line = await process.stdout.readline()
        yield json.loads(line)["url"]
    finally:
        await _end(process)


@asynccontextmanager
async def controller(
    api_url: str, *, kube: Mapping[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Controller]:
    """A controller of this API server with its defaults, save what is given here."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        settings_file, log_file = directory / "settings.yaml", directory / "log"
        settings_file.write_bytes(
            msgspec.yaml.encode(_settings(api_url, directory, kube or {}, settings))
        )
        started = time.perf_counter()
        with log_file.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "hami", "controller", "--config", str(settings_file),
                cwd=ROOT, stderr=log, stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        found = Controller(
            url="", health_url="", pid=process.pid, log_file=log_file, ready_seconds=0.0
        )
        try:
            await _until_ready(found, process)
            found.ready_seconds = time.perf_counter() - started
            yield found
        finally:
            await _end(process)


def _settings(
    api_url: str, directory: Path, kube: Mapping[str, Any], settings: Mapping[str, Any]
) -> Settings:
    local = {"host": "127.0.0.1", "port": 0, "health_host": "127.0.0.1", "health_port": 0}
    return Settings(
        log=LogSettings(format="json"),
        kube=KubeSettings(kubeconfig=write_kubeconfig(directory, api_url), **kube),
        controller=ControllerSettings(**{**local, **settings}),
    )


def write_kubeconfig(directory: Path | str, api_url: str) -> str:
    return scripted.write_kubeconfig(Path(directory) / "kubeconfig", api_url)


@contextmanager
def kubeconfig(api_url: str) -> Iterator[str]:
    """The path of a kubeconfig for the API server."""
    with TemporaryDirectory() as directory:
        yield write_kubeconfig(directory, api_url)


async def _until_ready(found: Controller, process: asyncio.subprocess.Process) -> None:
    health: Http | None = None
    async with asyncio.timeout(START_SECONDS):
        while True:
            if process.returncode is not None:
                raise AssertionError(f"the controller ended: {found.log_file.read_text()[-2000:]}")
            if health is None and (line := found.logged("health_server_started")):
                found.health_url = f"http://127.0.0.1:{line['port']}"
                health = Http(found.health_url)
            if not found.url and (line := found.logged("server_started")):
                found.url = f"http://127.0.0.1:{line['port']}"
            if health is not None and found.url:
                with suppress(AssertionError):
                    await health.get("/readyz")
                    break
            await asyncio.sleep(0.02)
    await health.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


class Questions:
    """The bodies of a scheduler's questions about the same nodes, made before they are timed."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = msgspec.json.encode(list(names))

    def ask(self, pod: Mapping[str, Any]) -> bytes:
        encoded = msgspec.json.encode(pod)
        return b'{"Pod":%s,"Nodes":null,"NodeNames":%s}' % (encoded, self._names)


def bind_body(pod: Mapping[str, Any], node: str) -> bytes:
    meta = pod["metadata"]
    return msgspec.json.encode(
        {
            "PodName": meta["name"],
            "PodNamespace": meta["namespace"],
            "PodUID": meta["uid"],
            "Node": node,
        }
    )


def sample_of(nodes: int) -> int:
    """How many fitting nodes kube-scheduler looks for by default, and asks an extender about."""
    if nodes < 100:
        return nodes
    return max(100, nodes * max(5, 50 - nodes // 125) // 100)


def node_names(count: int) -> list[str]:
    return [crowd.node_name(i) for i in range(count)]


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the worst, in milliseconds."""
    several = seconds if len(seconds) > 1 else [*seconds, *seconds]
    cuts = statistics.quantiles(several, n=100, method="inclusive")
    return {
        "p50_ms": round(cuts[49] * 1000, 2),
        "p99_ms": round(cuts[98] * 1000, 2),
        "max_ms": round(max(seconds) * 1000, 2),
    }


def machine() -> dict[str, Any]:
    """The facts about this machine that figures depend on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = next(
        line for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line
    )
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory.split()[1]) / 2**20),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")


def write_json(file: Path | None, figures: Any) -> None:
    """The figures and the machine they are of."""
    if file is not None:
        body = {"machine": machine(), "figures": figures}
        file.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


def print_rows(rows: Iterable[Mapping[str, Any]]) -> None:
    """A small table; columns are the first row's keys."""
    rows = list(rows)
    if not rows:
        return
    columns = list(rows[0])
    cells = [[str(row.get(name, "")) for name in columns] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(columns)]
    for line in [columns, *cells]:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))
