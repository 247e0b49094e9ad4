"""Annotations by which a pod's work is steered while it runs: suspended, or weighed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hami.core import codec
from hami.core.wire import shown
from hami.errors import CodecError

SUSPEND_KEY: Final = "hami.io/suspend"
"""Pod annotation of this project: ``true`` makes the pod's submissions of work wait."""
CORE_WEIGHT_KEY: Final = "hami.io/core-weight"
"""Pod annotation of this project: its containers' weight where they share a contended device."""
MAX_WEIGHT: Final = 10_000


def decode_suspend(annotations: Mapping[str, str]) -> bool:
    """Whether the pod's work is to wait.

    Raises:
        CodecError: The value is no truth value.
    """
    text = annotations.get(SUSPEND_KEY)
    try:
        return text is not None and codec.parse_bool(text)
    except CodecError as error:
        raise CodecError(f"{SUSPEND_KEY}: {error}") from error


def decode_core_weight(annotations: Mapping[str, str]) -> int:
    """The weight of the pod's containers; 0: the usual one.

    Raises:
        CodecError: The value is no whole number from 1 to 10000.
    """
    text = annotations.get(CORE_WEIGHT_KEY)
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise CodecError(f"{CORE_WEIGHT_KEY}: expected 1 to {MAX_WEIGHT}, met {shown(text)}")
    if not 1 <= int(text) <= MAX_WEIGHT:
        raise CodecError(f"{CORE_WEIGHT_KEY}: expected 1 to {MAX_WEIGHT}, met {shown(text)}")
    return int(text)
