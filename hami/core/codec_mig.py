"""The pod annotation that says which MIG instances a pod's devices are.

The controller writes where each instance is to stand; the vendor's agent makes it and adds which
one it became.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from hami.core import wire
from hami.core.allocation import MigInstance, MigReservation, MigShare
from hami.core.device import DeviceUuid, MigPlacement
from hami.core.wire import bounded
from hami.errors import CodecError

MAX_RESERVATIONS: Final = 4096
MAX_UINT32: Final = 2**32 - 1
LAST_SLICE: Final = 8
"""No device has more slices."""


class _WirePlacement(msgspec.Struct, frozen=True):
    start: int
    size: int


class _WireReservation(msgspec.Struct, frozen=True, omit_defaults=True):
    """Field order is the writer's contract."""

    container: int = msgspec.field(name="containerIndex")
    device: int = msgspec.field(name="deviceIndex")
    uuid: str = msgspec.field(name="gpuUUID")
    profile: str
    placement: _WirePlacement
    instance: str = msgspec.field(name="migUUID", default="")
    gpu_instance: int | None = msgspec.field(name="gpuInstanceID", default=None)
    compute_instance: int | None = msgspec.field(name="computeInstanceID", default=None)


_INNER: Final[wire.Inner] = {_WireReservation: {"placement": _WirePlacement}}


def encode_mig_reservations(reservations: Iterable[MigReservation]) -> str:
    """The reservations in the given order; what an agent added to one is kept."""
    return wire.encode(
        [
            _WireReservation(
                container=r.container,
                device=r.device,
                uuid=r.uuid,
                profile=r.share.profile,
                placement=_WirePlacement(
                    start=r.share.placement.start, size=r.share.placement.size
                ),
                instance=r.share.instance.uuid if r.share.instance else "",
                gpu_instance=r.share.instance.gpu_instance if r.share.instance else None,
                compute_instance=r.share.instance.compute_instance if r.share.instance else None,
            )
            for r in reservations
        ]
    )


def decode_mig_reservations(text: str) -> tuple[MigReservation, ...]:
    """The reservations in their order; none for an empty text.

    Raises:
        CodecError: The text is no JSON array of reservations; one lacks a field, has an index or a
            placement that cannot be, or some but not all of what an agent adds; or two are for the
            same device of the same container.
    """
    if not text:
        return ()
    try:
        tree = msgspec.json.decode(text)
        if tree is None:
            return ()
        if not isinstance(tree, list):
            raise CodecError(f"expected a JSON array of reservations, met {type(tree).__name__}")
        bounded(len(tree), "number of reservations", highest=MAX_RESERVATIONS)
        shape = _WireReservation
        rows = [msgspec.convert(wire.spell(row, shape, _INNER), shape) for row in tree]
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        raise CodecError(f"MIG reservations: {error}") from error
    seen: set[tuple[int, int]] = set()
    for row in rows:
        place = row.container, row.device
        if place in seen:
            raise CodecError(f"expected every container and device index once, met {place} twice")
        seen.add(place)
    return tuple(_reservation(row) for row in rows)


def _reservation(row: _WireReservation) -> MigReservation:
    if not row.uuid or not row.profile:
        raise CodecError("expected every reservation to have a gpuUUID and a profile, met an empty")
    start = bounded(row.placement.start, "start", highest=LAST_SLICE)
    size = bounded(row.placement.size, "size", highest=LAST_SLICE)
    if size == 0 or start + size > LAST_SLICE:
        raise CodecError(f"expected a placement within 8 slices, met {start} to {start + size}")
    return MigReservation(
        container=bounded(row.container, "containerIndex"),
        device=bounded(row.device, "deviceIndex"),
        uuid=DeviceUuid(row.uuid),
        share=MigShare(
            profile=row.profile,
            placement=MigPlacement(start=start, size=size),
            instance=_instance(row),
        ),
    )


def _instance(row: _WireReservation) -> MigInstance | None:
    gpu, compute = row.gpu_instance, row.compute_instance
    if not row.instance and gpu is None and compute is None:
        return None
    if not row.instance or gpu is None or compute is None:
        raise CodecError(
            "expected all of migUUID, gpuInstanceID, computeInstanceID or none of them"
        )
    return MigInstance(
        uuid=row.instance,
        gpu_instance=bounded(gpu, "gpuInstanceID", highest=MAX_UINT32),
        compute_instance=bounded(compute, "computeInstanceID", highest=MAX_UINT32),
    )
