"""One simulated node's GPUs for this whole test process: its NVML is loaded once and for all."""

from __future__ import annotations

import ctypes
import functools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hami.sandbox.gpu import catalogue
from hami.sandbox.gpu import node as gpu_node

MODELS = ("a100-40gb", "a100-40gb", "t4")
A100_MIB = 40960
T4_MIB = 15360


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """Where they are simulated, and what they are called."""

    state: Path
    uuids: tuple[str, ...]

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find them."""
        return {
            gpu_node.NODE_ENV: str(self.state),
            "LD_LIBRARY_PATH": str(gpu_node.LIBRARY_DIR),
        }

    @contextmanager
    def lost(self, index: int) -> Iterator[None]:
        """One GPU is off the bus while the block runs."""
        gpu_node.set_gpu_lost(self.state, index)
        try:
            yield
        finally:
            gpu_node.set_gpu_lost(self.state, index, lost=False)

    def report_xid(self, index: int, xid: int) -> None:
        gpu_node.inject_xid(self.state, index, xid=xid)


def create_gpus(path: Path, *models: str, node_name: str) -> Gpus:
    uuids = gpu_node.create_node_state(
        path, [catalogue.get(name) for name in models], node_name=node_name
    )
    return Gpus(state=path, uuids=uuids)


@functools.cache
def simulated_gpus(*models: str) -> Gpus:
    """The GPUs that ``pynvml`` sees in this process; once others were asked for, it sees those."""
    library = gpu_node.LIBRARY_DIR / "libnvidia-ml.so.1"
    assert library.is_file(), f"{library} is missing: run `python native.py` first"
    directory = Path(tempfile.mkdtemp(prefix="hami-gpus-"))
    gpus = create_gpus(directory / "node", *(models or MODELS), node_name="test-node")
    os.environ[gpu_node.NODE_ENV] = str(gpus.state)
    ctypes.CDLL(str(library))  # found by its soname from now on
    return gpus
