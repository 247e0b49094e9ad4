"""Times as kubectl prints them: how long ago, in the one or two units that matter."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def age_of(obj: dict[str, Any], now: datetime) -> str:
    """How long ago the object was created."""
    created = obj["metadata"].get("creationTimestamp")
    return ago(created, now) if created else "<unknown>"


def ago(text: str, now: datetime) -> str:
    """How long ago the RFC 3339 time was, such as ``5m3s``; ``<invalid>`` for what is none."""
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return "<invalid>"
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return duration_text((now - time).total_seconds())


def duration_text(seconds: float) -> str:
    """The duration with the precision that its length deserves."""
    whole = int(seconds)
    if whole < 0:
        return "0s" if whole >= -1 else "<invalid>"
    if whole < 2 * _MINUTE:
        return f"{whole}s"
    if whole < 10 * _MINUTE:
        return _two(whole, _MINUTE, "m", 1, "s")
    if whole < 3 * _HOUR:
        return f"{whole // _MINUTE}m"
    if whole < 8 * _HOUR:
        return _two(whole, _HOUR, "h", _MINUTE, "m")
    if whole < 2 * _DAY:
        return f"{whole // _HOUR}h"
    if whole < 8 * _DAY:
        return _two(whole, _DAY, "d", _HOUR, "h")
    if whole < 2 * 365 * _DAY:
        return f"{whole // _DAY}d"
    if whole < 8 * 365 * _DAY:
        return _two(whole, 365 * _DAY, "y", _DAY, "d")
    return f"{whole // (365 * _DAY)}y"


def _two(seconds: int, large: int, large_unit: str, small: int, small_unit: str) -> str:
    rest = seconds % large // small
    return f"{seconds // large}{large_unit}" + (f"{rest}{small_unit}" if rest else "")
