"""The gauges of every device and every container, as Prometheus text.

A large cluster has hundreds of thousands of these lines, and hardly any of them changes between two
scrapes. So a node's lines are kept while its generation stands, and a pod's while its reservation
does; only the others are written anew. Pure but for what it keeps; the caller brings a consistent
copy of the cache, and may do so on a thread of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Generic, TypeVar

from hami import gauges
from hami.core.allocation import Allocation
from hami.core.device import Device, DeviceUuid
from hami.core.quantity import BYTES_PER_MIB
from hami.gauges import Older
from hami.metrics import Metric

ZONE: Final = "vGPU"
LABEL_CHARACTERS: Final = 256
"""Longer values are cut: names of devices are whatever their nodes say."""
JOINED: Final = 256
"""Nodes or pods whose lines go into one piece."""

Labels = dict[str, str]
V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUse:
    """One device with what is used of it."""

    device: Device
    slots: int
    memory: int
    cores: int


@dataclass(slots=True, kw_only=True)
class Share:
    """What one container has of one device."""

    memory: int = 0
    cores: int = 0


def _ratio(use: DeviceUse) -> float | None:
    return use.memory / use.device.memory if use.device.memory > 0 else None


DEVICE_GAUGES: Final[Mapping[Metric, Callable[[DeviceUse], float | None]]] = {
    gauges.GPU_MEMORY_LIMIT: lambda use: use.device.memory * BYTES_PER_MIB,
    gauges.GPU_CORE_LIMIT: lambda use: use.device.cores,
    gauges.GPU_MEMORY_ALLOCATED: lambda use: use.memory * BYTES_PER_MIB,
    gauges.GPU_SHARED: lambda use: use.slots,
    gauges.GPU_CORE_ALLOCATED: lambda use: use.cores,
    gauges.NODE_GPU_OVERVIEW: lambda use: use.memory * BYTES_PER_MIB,
    gauges.NODE_GPU_MEMORY_RATIO: _ratio,
}
CONTAINER_GAUGES: Final[Mapping[Metric, Callable[[Share], float | None]]] = {
    gauges.VGPU_MEMORY_ALLOCATED: lambda share: share.memory * BYTES_PER_MIB,
    gauges.VGPU_CORE_ALLOCATED: lambda share: share.cores,
}


def device_views(node: str, uses: Iterable[DeviceUse]) -> Iterator[tuple[Labels, DeviceUse]]:
    """Each of the node's devices with its labels; of equal ids the first."""
    seen: set[str] = set()
    for use in uses:
        device = use.device
        if device.uuid in seen:
            continue
        seen.add(device.uuid)
        yield (
            {
                "node": clean(node),
                "device_uuid": clean(device.uuid),
                "device_index": str(device.index),
                "device_type": clean(device.model),
                "device_cores": str(use.cores),
                "device_memory_limit": str(device.memory),
                "zone": ZONE,
            },
            use,
        )


def container_views(allocation: Allocation) -> Iterator[tuple[Labels, Share]]:
    """Each device of each of the pod's containers, with all that the container has of it."""
    for position, devices in enumerate(allocation.containers):
        shares: dict[DeviceUuid, Share] = {}
        for device in devices:
            share = shares.setdefault(device.uuid, Share())
            share.memory += device.memory
            share.cores += device.cores
        for uuid, share in shares.items():
            yield (
                {
                    "namespace": clean(allocation.namespace),
                    "node": clean(allocation.node),
                    "pod": clean(allocation.name),
                    "container_index": str(position),
                    "device_uuid": clean(uuid),
                    "zone": ZONE,
                },
                share,
            )


def clean(text: str) -> str:
    """A label's value: bounded, and fit to be encoded."""
    text = text[:LABEL_CHARACTERS]
    return text if text.isascii() else text.encode(errors="replace").decode()


class GaugeText(Generic[V]):
    """Writes some gauges of many things, and keeps what it wrote of each."""

    def __init__(
        self,
        values: Mapping[Metric, Callable[[V], float | None]],
        *,
        older: Sequence[Older] = (),
    ) -> None:
        """Nothing is kept yet.

        Args:
            values: The gauges, and what each of them shows of a thing; None for nothing.
            older: More names for some of them.
        """
        self._gauges = [
            _Gauge(row, ((label, label) for label in row.labels), value)
            for row, value in values.items()
        ] + [_Gauge(name.row, name.labels, values[name.of]) for name in older if name.of in values]
        self._kept: dict[Hashable, tuple[object, tuple[bytes, ...]]] = {}

    def write(
        self, things: Iterable[tuple[Hashable, object, Callable[[], Iterable[tuple[Labels, V]]]]]
    ) -> Iterator[bytes]:
        """The text of all these things, in pieces; what is no longer among them is forgotten.

        Args:
            things: For each its key, its version (what is equal need not be written again), and
                what gives its lines.
        """
        kept: dict[Hashable, tuple[object, tuple[bytes, ...]]] = {}
        for key, version, views in things:
            before = self._kept.get(key)
            if before is not None and (before[0] is version or before[0] == version):
                kept[key] = before
            else:
                kept[key] = version, self._lines(views())
        self._kept = kept
        for at, gauge in enumerate(self._gauges):
            pieces = (lines[at] for _, lines in kept.values() if lines[at])
            for number, joined in enumerate(_joined(pieces)):
                yield gauge.header + joined if number == 0 else joined

    def _lines(self, views: Iterable[tuple[Labels, V]]) -> tuple[bytes, ...]:
        escaped = [({name: _escape(text) for name, text in own.items()}, v) for own, v in views]
        return tuple(
            "".join(gauge.line(labels, view) for labels, view in escaped).encode()
            for gauge in self._gauges
        )


class _Gauge(Generic[V]):
    """One gauge: its header, and the pattern of its lines."""

    def __init__(
        self,
        row: Metric,
        labels: Iterable[tuple[str, str]],
        value: Callable[[V], float | None],
    ) -> None:
        text = row.help.replace("\\", r"\\").replace("\n", r"\n")
        self.header = f"# HELP {row.name} {text}\n# TYPE {row.name} gauge\n".encode()
        pairs = ",".join(f'{shown}="%({name})s"' for shown, name in labels)
        self._pattern = f"{row.name}{{{pairs}}} "
        self._value = value

    def line(self, labels: Labels, view: V) -> str:
        value = self._value(view)
        return "" if value is None else f"{self._pattern % labels}{value}\n"


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same in fewer pieces, none of which takes long to copy."""
    rest = iter(pieces)
    while some := list(islice(rest, JOINED)):
        yield b"".join(some)


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
