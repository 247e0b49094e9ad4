"""In which form a command prints what it found."""

from __future__ import annotations

from enum import StrEnum


class Output(StrEnum):
    """Forms in which a table is printed."""

    TABLE = "table"
    JSON = "json"
