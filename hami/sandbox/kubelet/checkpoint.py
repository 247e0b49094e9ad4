"""The device manager's checkpoint: what survives a restart of the kubelet.

Owns the file ``kubelet_internal_checkpoint``. Its shape is the kubelet's: one entry a container and
resource with the device ids by NUMA node and the plugin's answer, the registered devices, and a
checksum (of our own kind: the kubelet's is a hash of Go's memory layout).
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec
from google.protobuf.message import DecodeError

from hami.errors import CodecError
from hami.nodeagent.proto.deviceplugin_pb2 import ContainerAllocateResponse
from hami.sandbox.kubelet.book import Holding

FILE_NAME: Final = "kubelet_internal_checkpoint"
NO_NUMA_NODE: Final = "-1"


class _Entry(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    pod_uid: str = msgspec.field(name="PodUID")
    container_name: str
    resource_name: str
    device_ids: dict[str, list[str]] = msgspec.field(name="DeviceIDs")
    alloc_resp: bytes


class _Data(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    pod_device_entries: list[_Entry]
    registered_devices: dict[str, list[str]]


class _File(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    data: msgspec.Raw
    checksum: int


def write(path: Path, holdings: Iterable[Holding], *, registered: Mapping[str, list[str]]) -> None:
    """Replace the checkpoint, so that a reader finds the old one or the new one."""
    data = msgspec.json.encode(
        _Data(
            pod_device_entries=[
                _Entry(
                    pod_uid=holding.pod_uid,
                    container_name=holding.container,
                    resource_name=holding.resource,
                    device_ids={NO_NUMA_NODE: list(holding.devices)},
                    alloc_resp=holding.response.SerializeToString(),
                )
                for holding in holdings
            ],
            registered_devices=dict(registered),
        )
    )
    body = msgspec.json.encode(_File(data=msgspec.Raw(data), checksum=zlib.crc32(data)))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(body)
    temporary.replace(path)


def read(path: Path) -> tuple[dict[str, list[str]], list[Holding]]:
    """The registered devices and the holdings; nothing where there is no checkpoint.

    Raises:
        CodecError: The file is not a checkpoint, or not the one that was written.
    """
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        return {}, []
    try:
        file = msgspec.json.decode(body, type=_File)
        data = msgspec.json.decode(file.data, type=_Data)
    except msgspec.MsgspecError as error:
        raise CodecError(f"checkpoint {path}: {error}") from error
    if zlib.crc32(bytes(file.data)) != file.checksum:
        raise CodecError(f"checkpoint {path}: checksum {file.checksum} does not fit the data")
    return data.registered_devices, [_holding(path, entry) for entry in data.pod_device_entries]


def _holding(path: Path, entry: _Entry) -> Holding:
    try:
        response = ContainerAllocateResponse.FromString(entry.alloc_resp)
    except DecodeError as error:
        raise CodecError(f"checkpoint {path}: pod {entry.pod_uid}: {error}") from error
    return Holding(
        pod_uid=entry.pod_uid,
        container=entry.container_name,
        resource=entry.resource_name,
        devices=tuple(device for ids in entry.device_ids.values() for device in ids),
        response=response,
    )
