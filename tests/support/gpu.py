"""Simulated GPUs, regions, and real processes that use them, with or without the shim."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from hami.nodeagent import region
from hami.sandbox.gpu import node
from hami.sandbox.gpu.catalogue import GpuModel

MIB = 2**20
OUT_OF_MEMORY = 2
ROOT = Path(__file__).resolve().parents[2]
SHIM = Path(os.environ.get("HAMI_TEST_SHIM", ROOT / "hami/shim/lib/libvgpu.so"))
"""Of this build, or another one that is to pass the same tests."""
DRIVER = Path(os.environ.get("HAMI_TEST_DRIVER", node.LIBRARY_DIR))
"""The simulated one, likewise."""
LOADED_FIRST = os.environ.get("HAMI_TEST_LOADED_FIRST", "")
"""What must come before the shim: the runtime of a sanitizer."""
SANITIZER_OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1"}
WAIT_SECONDS = 20.0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Poll until the condition holds; fails by name after WAIT_SECONDS."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.005)


@dataclass
class Machine:
    """One simulated node, and containers on it that are nothing but directories."""

    path: Path
    uuids: tuple[str, ...]
    shim: Path = SHIM
    libraries: Path = DRIVER
    extra: dict[str, str] = field(default_factory=dict)
    """More environment for every process."""
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @classmethod
    def create(cls, path: Path, gpus: Sequence[GpuModel], **settings: int) -> Self:
        uuids = node.create_node_state(path / "gpus", gpus, node_name="test-node", **settings)  # type: ignore[arg-type]  # all of ours are ints
        return cls(path=path, uuids=uuids)

    def stop(self) -> None:
        """End what containers started and tests left running."""
        for process in self.started:
            process.kill()
            process.communicate()

    @property
    def state(self) -> Path:
        return self.path / "gpus"

    def environment(self, container: Container | None = None) -> dict[str, str]:
        inherited = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        environment = {
            **inherited,
            "HAMI_SIM_NODE": str(self.state),
            "LD_LIBRARY_PATH": str(self.libraries),
            **self.extra,
        }
        if LOADED_FIRST:
            environment |= {"LD_PRELOAD": LOADED_FIRST, **SANITIZER_OPTIONS}
        if container is not None:
            environment["LD_PRELOAD"] = f"{LOADED_FIRST} {self.shim}".strip()
            environment["HAMI_REGION_DIR"] = str(container.directory)
            environment["NVIDIA_VISIBLE_DEVICES"] = ",".join(container.uuids)
        return environment

    def container(
        self,
        *limits: int | None,
        name: str = "container",
        first_gpu: int = 0,
        priority: int = 1,
        flags: region.Flag = region.Flag.NONE,
    ) -> Container:
        """A container with one GPU for each limit (bytes, None: none), beginning at first_gpu."""
        directory = self.path / name
        directory.mkdir()
        uuids = self.uuids[first_gpu : first_gpu + len(limits)]
        region.create(
            directory,
            devices=[
                region.RegionDevice(uuid=uuid, memory_limit_bytes=limit)
                for uuid, limit in zip(uuids, limits, strict=True)
            ],
            priority=priority,
            flags=flags,
        )
        return Container(machine=self, directory=directory, uuids=uuids)

    def used_bytes(self, gpu: int = 0) -> int:
        return node.read_use(self.state)[gpu].used_bytes

    def peak_bytes(self, gpu: int = 0) -> int:
        return node.read_use(self.state)[gpu].peak_bytes


@dataclass
class Container:
    """What a container is to the shim: a region directory and the devices it may see."""

    machine: Machine
    directory: Path
    uuids: tuple[str, ...]

    @property
    def environment(self) -> dict[str, str]:
        return self.machine.environment(self)

    def used_bytes(self, device: int = 0) -> int:
        return region.read_usage(self.directory).used_bytes(device)

    def run(
        self, *command: str | Path, timeout: float = 60.0, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in command],
            env={**self.environment, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, *command: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(word) for word in command],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.machine.started.append(process)
        return process


class Client:
    """A running ``client`` program: each call is one order, the answer a tuple of numbers."""

    def __init__(
        self, program: Path | Sequence[str | Path], environment: Mapping[str, str]
    ) -> None:
        command = [program] if isinstance(program, Path) else program
        self.process = subprocess.Popen(
            [str(word) for word in command],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._read() == "ready"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def tell(self, order: str, *words: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join([order, *map(str, words)]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> tuple[int, ...]:
        return tuple(int(word) for word in self._read().split())

    def ask(self, order: str, *words: object) -> tuple[int, ...]:
        self.tell(order, *words)
        return self.answer()

    def alloc(self, size: int) -> int:
        """The address."""
        result, address = self.ask("alloc", size)
        assert result == 0
        return address

    def value(self, order: str, *words: object) -> int:
        """The second number of an answer that begins with success."""
        result, answer, *_ = self.ask(order, *words)
        assert result == 0
        return answer

    def exec_anew(self) -> None:
        self.tell("exec")
        assert self._read() == "ready"

    def stop(self) -> None:
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()
