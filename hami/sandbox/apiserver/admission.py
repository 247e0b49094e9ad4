"""What every write passes before it is stored: the order of defaults, webhooks and checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hami.sandbox.apiserver.records import Object
from hami.sandbox.apiserver.requests import Target
from hami.sandbox.apiserver.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """The write that is to be admitted."""

    verb: Literal["CREATE", "UPDATE", "DELETE"]
    target: Target
    dry_run: bool = False


class Admission:
    """The chain that admits, changes or refuses a write."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def admit(self, operation: Operation, obj: Object | None, old: Object | None) -> Object:
        """The object as it is to be stored (the old one for a deletion); raises StatusError."""
        return obj if obj is not None else old or {}
