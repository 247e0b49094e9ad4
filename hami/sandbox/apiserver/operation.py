"""The write that is to be admitted: what every part of admission is told about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hami.sandbox.apiserver.requests import Target

FieldValidation = Literal["Ignore", "Warn", "Strict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One write on its way in."""

    verb: Literal["CREATE", "UPDATE", "DELETE"]
    target: Target
    user: str = "system:anonymous"
    dry_run: bool = False
    field_validation: FieldValidation = "Warn"
    """What to do about fields that the kind does not have."""
    warnings: list[str] = field(default_factory=list)
    """What webhooks say to the client without refusing; sent as Warning headers."""
