"""Annotations that say how a container's limits are enforced: what is asked for, and what is so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from hami.core import wire
from hami.errors import CodecError

ENFORCEMENT_KEY: Final = "hami.io/enforcement"
"""Pod annotation of this project: the backend that a pod's containers are to have."""
ENFORCEMENT_STATUS_KEY: Final = "hami.io/enforcement-status"
"""Pod annotation of this project: the backend that each container has, by the node's agent."""
SHIM: Final = "shim"
"""A library in front of the driver keeps the limits."""
NONE: Final = "none"
"""Nothing does: the container has whole devices, or was allowed to do without."""

_STATUS: Final = msgspec.json.Decoder(dict[str, str])


def encode_enforcement_status(backends: Mapping[str, str]) -> str:
    """Backend by container; the same text for the same facts."""
    return wire.encode(dict(sorted(backends.items())))


def decode_enforcement_status(text: str) -> dict[str, str]:
    """Backend by container; an absent annotation is the empty text, and says nothing.

    Raises:
        CodecError: It is no JSON object of texts.
    """
    try:
        return _STATUS.decode(text) if text else {}
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        raise CodecError(f"{ENFORCEMENT_STATUS_KEY}: expected an object, met {error}") from error
