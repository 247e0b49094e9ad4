"""What each region directory was prepared for, kept beside it so that a restart forgets nothing.

A Claim says which container of which pod a directory serves, and under which device ids the kubelet
knows that. It is written before the kubelet gets its answer. Plain data and its file; blocking.
Containers never see it: only ``control`` and ``usage`` are mounted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from hami.core.codec_enforcement import SHIM
from hami.errors import CodecError

FILE: Final = "claim.json"
VERSION: Final = 1
MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, order=True)
class Holder:
    """A container, as the kubelet names it: there is no uid."""

    namespace: str
    pod: str
    container: str


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One directory's purpose."""

    version: int = VERSION
    ids: tuple[str, ...]
    """The kubelet's device ids, sorted."""
    uid: str
    """Of the pod."""
    namespace: str
    pod: str
    container: str
    index: int
    """Of the container in its pod, init containers first."""
    init: bool
    """A plain init container: the kubelet does not tell what those hold."""
    devices: tuple[str, ...]
    """UUIDs in the order of the allocation."""
    backend: str = SHIM
    """What enforces its limits; a claim of a version that knew one alone does not say."""
    whole: bool = False
    """Whether it has every one of its devices to itself."""
    library: str = ""
    """The shim it was prepared with, a path of the host."""
    created_ns: int = 0
    """Unix time of the kubelet's request."""

    @property
    def pod_key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.pod}"

    @property
    def holder(self) -> Holder:
        """The container, as the kubelet names it."""
        return Holder(self.namespace, self.pod, self.container)


_DECODER = msgspec.json.Decoder(Claim)


def write(directory: Path, claim: Claim) -> None:
    """Put the claim into the directory, at once.

    Raises:
        OSError: The host's file system refuses.
    """
    temporary = directory / f".{FILE}"
    with temporary.open("wb") as file:
        file.write(msgspec.json.encode(claim))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / FILE)


def read(directory: Path) -> Claim:
    """The directory's claim.

    Raises:
        CodecError: There is none, or it is not one of this version.
    """
    path = directory / FILE
    try:
        with path.open("rb") as file:
            claim = _DECODER.decode(file.read(MAX_BYTES))
    except (OSError, msgspec.MsgspecError) as error:
        raise CodecError(f"{path}: expected a claim, met {error}") from error
    if claim.version != VERSION:
        raise CodecError(f"{path}: expected version {VERSION}, met {claim.version}")
    return claim
