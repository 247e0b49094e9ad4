"""The wall clock as the API writes it."""

from __future__ import annotations

from datetime import UTC, datetime


def wall_time() -> str:
    """Now, in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
