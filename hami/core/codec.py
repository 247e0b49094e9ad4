"""Annotations and their meaning: only the ``codec`` files know the wire formats.

MIG reservations are in ``codec_mig``, pair scores in ``codec_links``. Sources: HAMi's protocol as
summarised in ``docs/protocol.md``. Writers are exact; readers are tolerant where the protocol is
(extra fields, trailing segments, letter case of JSON keys) and raise CodecError where it is not, so
that a caller skips one object and goes on with the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from hami.core import wire
from hami.core.allocation import ContainerDevice, Containers
from hami.core.device import (
    MODE_SHARED,
    Device,
    DeviceUuid,
    MigPlacement,
    MigProfile,
    VendorName,
)
from hami.core.quantity import MAX_INT32, MiB, Percent
from hami.core.wire import bounded as _bounded
from hami.core.wire import shown as _shown
from hami.errors import CodecError

NODE_KEY: Final = "hami.io/vgpu-node"
"""Pod annotation and label: the node the allocation is for."""
TIME_KEY: Final = "hami.io/vgpu-time"
BIND_TIME_KEY: Final = "hami.io/bind-time"
BIND_PHASE_KEY: Final = "hami.io/bind-phase"
SCHEDULED_BY_KEY: Final = "hami.io/scheduled-by"
"""Which controller recorded the allocation, in which of its reigns: ``<identity>/<term>``."""
ROLE_LABEL: Final = "hami.io/scheduler-role"
"""Of a controller's own pod: ``leader`` or ``follower``."""
TERM_KEY: Final = "hami.io/scheduler-term"
"""Annotation of a controller's own pod: its latest reign, as in ``SCHEDULED_BY_KEY``."""
NODE_POLICY_KEY: Final = "hami.io/node-scheduler-policy"
DEVICE_POLICY_KEY: Final = "hami.io/gpu-scheduler-policy"
WEIGHTS_KEY: Final = "hami.io/device-scoring-weights"
CORDON_KEY: Final = "hami.io/device-cordon"
POD_GROUP_LABEL: Final = "scheduling.x-k8s.io/pod-group"
MIN_AVAILABLE_LABEL: Final = "pod-group.scheduling.sigs.k8s.io/min-available"
GANG_SIZE_KEY: Final = "hami.io/gang-size"
"""Pod annotation: how many pods the gang has, where they do not all exist yet."""
NUDGE_KEY: Final = "hami.io/nudge"
"""Pod annotation of this project: changed to make the scheduler try a waiting pod again."""
WEBHOOK_LABEL: Final = "hami.io/webhook"

MAX_LABEL: Final = 63
"""A longer node name is no label value; the label is left out then, the annotation stands."""
MAX_DEVICES: Final = 128
"""Of one vendor on a node. All nodes' rows are as wide as the widest, so one must not be huge."""

_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})
MAX_MIG_PROFILES: Final = 32
"""Of one device; the largest real ones have about a dozen."""
MAX_MIG_PLACEMENTS: Final = 64
"""Of one profile. Those outside of a device's slices are read, and ignored by ``mig``."""

_SEPARATORS: Final = frozenset(",:;")
"""Of a pod's record: a device whose id has one could not be written there."""
_INTEGER: Final = re.compile(r"[+-]?\d{1,10}", re.ASCII)


# -- allocations ------------------------------------------------------------------------------


def encode_allocation(containers: Iterable[Iterable[ContainerDevice]], vendor: VendorName) -> str:
    """One vendor's devices of a pod: ``uuid,type,MiB,percent:`` each, ``;`` after each container.

    Containers without any of its devices contribute an empty segment, so that positions hold.
    """
    return "".join(
        "".join(f"{d.uuid},{d.vendor},{d.memory},{d.cores}:" for d in devices if d.vendor == vendor)
        + ";"
        for devices in containers
    )


def decode_allocation(text: str, vendor: VendorName) -> Containers:
    """The devices of each container, by position; trailing empty segments are dropped.

    The type field is not trusted to name the vendor (some writers put the model there): the
    annotation's key does, and is given here.

    Raises:
        CodecError: A device has fewer than four fields, or a number is not a 32-bit integer.
    """
    containers = [
        tuple(
            _decode_container_device(piece, vendor) for piece in segment.split(":") if "," in piece
        )
        for segment in text.split(";")
    ]
    while containers and not containers[-1]:
        containers.pop()
    return tuple(containers)


def _decode_container_device(piece: str, vendor: VendorName) -> ContainerDevice:
    fields = piece.split(",")
    if len(fields) < 4:
        raise CodecError(f"expected uuid,type,memory,cores, met {_shown(piece)}")
    return ContainerDevice(
        uuid=DeviceUuid(fields[0]),
        vendor=vendor,
        memory=MiB(_natural(fields[2], "memory")),
        cores=Percent(_natural(fields[3], "cores")),
    )


def merge_vendors(parts: Sequence[Containers]) -> Containers:
    """One list of devices a container from several vendors' annotations, vendors in order."""
    length = max((len(part) for part in parts), default=0)
    return tuple(
        tuple(device for part in parts if position < len(part) for device in part[position])
        for position in range(length)
    )


# -- device inventory --------------------------------------------------------------------------


class _WireMigPlacement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    start: int = 0
    size: int = 0


class _WireMigProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str = ""
    memorymb: int = msgspec.field(name="memoryMB", default=0)
    core: int = 0
    slicecount: int = msgspec.field(name="sliceCount", default=0)
    placements: tuple[_WireMigPlacement, ...] = ()


class _WireDevice(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Field order and the omission of zero values are the writer's contract."""

    id: str = ""
    index: int = 0
    count: int = 0
    devmem: int = 0
    devcore: int = 0
    type: str = ""
    numa: int = 0
    mode: str = ""
    migprofiles: tuple[_WireMigProfile, ...] = msgspec.field(name="migProfiles", default=())
    health: bool = False


_WIRE_DEVICES: Final = msgspec.json.Decoder(list[_WireDevice])
_INNER_SHAPES: Final[wire.Inner] = {
    _WireDevice: {"migProfiles": _WireMigProfile},
    _WireMigProfile: {"placements": _WireMigPlacement},
}


def encode_register(devices: Iterable[Device]) -> str:
    """The JSON inventory of a node, devices in the given order."""
    rows = [
        _WireDevice(
            id=d.uuid,
            index=d.index,
            count=d.slots,
            devmem=d.memory,
            devcore=d.cores,
            type=d.model,
            numa=d.numa,
            mode=d.mode,
            migprofiles=tuple(
                _WireMigProfile(
                    name=p.name,
                    memorymb=p.memory,
                    core=p.cores,
                    slicecount=p.slices,
                    placements=tuple(
                        _WireMigPlacement(start=at.start, size=at.size) for at in p.placements
                    ),
                )
                for p in d.mig_profiles
            ),
            health=d.healthy,
        )
        for d in devices
    ]
    return wire.encode(rows)


def decode_register(text: str, vendor: VendorName) -> tuple[Device, ...]:
    """The inventory of a node, in either form: JSON, or the older colon-separated text.

    Raises:
        CodecError: The text follows neither form, lists no device or more than ``MAX_DEVICES``,
            lists one twice, or has an id that no record can hold.
    """
    stripped = text.strip()
    if stripped.startswith(("[", "{", "null")):
        devices = _decode_register_json(stripped, vendor)
    else:
        devices = _decode_register_text(text, vendor)
    if not devices:
        raise CodecError("expected at least one device, met an empty list")
    if len(devices) > MAX_DEVICES:
        raise CodecError(f"expected at most {MAX_DEVICES} devices, met {len(devices)}")
    seen: set[str] = set()
    for device in devices:
        if not device.uuid:
            raise CodecError("expected every device to have an id, met one without")
        if not _SEPARATORS.isdisjoint(device.uuid):
            raise CodecError(f"expected ids without , : and ;, met {_shown(device.uuid)}")
        if device.uuid in seen:
            raise CodecError(f"expected every id once, met {_shown(device.uuid)} twice")
        seen.add(device.uuid)
    return devices


def _decode_register_json(text: str, vendor: VendorName) -> tuple[Device, ...]:
    try:
        rows = _WIRE_DEVICES.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        rows = _decode_tolerantly(text)
    return tuple(
        Device(
            uuid=DeviceUuid(row.id),
            vendor=vendor,
            index=_bounded(row.index, "index"),
            slots=_bounded(row.count, "count"),
            memory=MiB(_bounded(row.devmem, "devmem")),
            cores=Percent(_bounded(row.devcore, "devcore")),
            model=row.type,
            numa=_bounded(max(row.numa, 0), "numa"),
            mode=row.mode,
            healthy=row.health,
            mig_profiles=_decode_mig_profiles(row.migprofiles),
        )
        for row in rows
    )


def _decode_mig_profiles(profiles: Sequence[_WireMigProfile]) -> tuple[MigProfile, ...]:
    _bounded(len(profiles), "number of migProfiles", highest=MAX_MIG_PROFILES)
    for profile in profiles:
        _bounded(len(profile.placements), "number of placements", highest=MAX_MIG_PLACEMENTS)
    return tuple(
        MigProfile(
            name=p.name,
            memory=MiB(_bounded(p.memorymb, "memoryMB")),
            cores=Percent(_bounded(p.core, "core")),
            slices=_bounded(p.slicecount, "sliceCount"),
            placements=tuple(
                MigPlacement(start=_bounded(at.start, "start"), size=_bounded(at.size, "size"))
                for at in p.placements
            ),
        )
        for p in profiles
    )


def _decode_tolerantly(text: str) -> list[_WireDevice]:
    """The devices of an inventory that spells keys in its own way, or says more than is known."""
    try:
        tree = msgspec.json.decode(text)
        if not isinstance(tree, list):
            raise CodecError(f"expected a JSON array of devices, met {type(tree).__name__}")
        return [
            msgspec.convert(wire.spell(row, _WireDevice, _INNER_SHAPES), _WireDevice)
            for row in tree
        ]
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        raise CodecError(f"device inventory: {error}") from error


def _decode_register_text(text: str, vendor: VendorName) -> tuple[Device, ...]:
    if ":" not in text:
        raise CodecError(f"expected devices that end in ':', met {_shown(text)}")
    return tuple(
        _decode_device_text(segment, vendor) for segment in text.split(":") if segment.strip()
    )


def _decode_device_text(segment: str, vendor: VendorName) -> Device:
    fields = segment.split(",")
    if len(fields) not in (7, 9):
        raise CodecError(f"expected 7 or 9 fields of a device, met {len(fields)}")
    index, mode = (fields[7], fields[8]) if len(fields) == 9 else ("0", MODE_SHARED)
    return Device(
        uuid=DeviceUuid(fields[0]),
        vendor=vendor,
        slots=_natural(fields[1], "count"),
        memory=MiB(_natural(fields[2], "devmem")),
        cores=Percent(_natural(fields[3], "devcore")),
        model=fields[4],
        numa=max(_integer(fields[5], "numa"), 0),
        healthy=parse_bool(fields[6]),
        index=_natural(index, "index"),
        mode=mode,
    )


def encode_register_text(devices: Iterable[Device]) -> str:
    """The older colon-separated inventory, nine fields a device."""
    return "".join(
        f"{d.uuid},{d.slots},{d.memory},{d.cores},{d.model},{d.numa},"
        f"{'true' if d.healthy else 'false'},{d.index},{d.mode}:"
        for d in devices
    )


# -- small values ------------------------------------------------------------------------------


def parse_bool(text: str) -> bool:
    """A truth value in one of the protocol's spellings.

    Raises:
        CodecError: It is none of them.
    """
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise CodecError(f"expected true or false, met {_shown(text)}")


def split_list(text: str | None) -> tuple[str, ...]:
    """A comma-separated list of a user, each trimmed, empty ones dropped."""
    return tuple(item for item in (part.strip() for part in (text or "").split(",")) if item)


def node_label(node: str) -> dict[str, str]:
    """The label that goes with the node annotation, where the name is a legal label value."""
    return {NODE_KEY: node} if len(node) <= MAX_LABEL else {}


# -- handshake ---------------------------------------------------------------------------------

_REQUESTING: Final = "Requesting"
_LAYOUT: Final = "%Y-%m-%d %H:%M:%S"


def encode_handshake_request(now: datetime) -> str:
    """The controller's question whether an agent is alive, at this time (UTC)."""
    return f"{_REQUESTING}_{now.astimezone(UTC).strftime(_LAYOUT)}"


def encode_handshake_report(now: datetime) -> str:
    """An agent's answer, at this time (UTC)."""
    return f"Reported_{now.astimezone(UTC).strftime(_LAYOUT)}"


def decode_handshake_request(text: str) -> datetime | None:
    """When the question was asked; None if the value is no open question.

    The wire carries no zone: UTC is assumed, which is what this project writes.

    Raises:
        CodecError: It is a question without a readable time.
    """
    if _REQUESTING not in text:
        return None
    _, _, when = text.partition("_")
    try:
        return datetime.strptime(when.strip(), _LAYOUT).replace(tzinfo=UTC)
    except ValueError as error:
        raise CodecError(f"expected Requesting_<time>, met {_shown(text)}") from error


def _integer(text: str, what: str) -> int:
    if _INTEGER.fullmatch(text) is None or not -MAX_INT32 - 1 <= int(text) <= MAX_INT32:
        raise CodecError(f"{what}: expected a 32-bit integer, met {_shown(text)}")
    return int(text)


def _natural(text: str, what: str) -> int:
    return _bounded(_integer(text, what), what)
