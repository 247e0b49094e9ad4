"""Annotations that steer a running pod: what they may say, and what they may not."""

from __future__ import annotations

import pytest

from hami.core.codec_steering import (
    CORE_WEIGHT_KEY,
    SUSPEND_KEY,
    decode_core_weight,
    decode_suspend,
)
from hami.errors import CodecError


@pytest.mark.parametrize(
    ("text", "suspended"), [(None, False), ("true", True), ("1", True), ("false", False)]
)
def test_suspend(text: str | None, suspended: bool) -> None:
    assert decode_suspend({} if text is None else {SUSPEND_KEY: text}) is suspended


@pytest.mark.parametrize("text", ["", "yes", "TRUE ", "perhaps"])
def test_malformed_suspend_names_its_key(text: str) -> None:
    with pytest.raises(CodecError, match=SUSPEND_KEY):
        decode_suspend({SUSPEND_KEY: text})


@pytest.mark.parametrize(("text", "weight"), [(None, 0), ("1", 1), ("200", 200), ("10000", 10_000)])
def test_weight(text: str | None, weight: int) -> None:
    assert decode_core_weight({} if text is None else {CORE_WEIGHT_KEY: text}) == weight


@pytest.mark.parametrize("text", ["", "0", "10001", "-5", "1.5", "٣", " 7", "9" * 40])
def test_malformed_weight_names_its_key(text: str) -> None:
    with pytest.raises(CodecError, match=CORE_WEIGHT_KEY):
        decode_core_weight({CORE_WEIGHT_KEY: text})
