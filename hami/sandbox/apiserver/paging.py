"""Lists in pages: every page of one list shows the same moment.

Owns the continue tokens and the snapshots behind them. Snapshots are lists of references to
records; the oldest is given up when there are too many, and its token answers 410.
"""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import msgspec

from hami.sandbox.apiserver import answers
from hami.sandbox.apiserver.records import Record

_MAX_SNAPSHOTS: Final = 64
_EXPIRED: Final = (
    "The provided continue parameter is too old to display a consistent list result. "
    "You must start a new list without the continue parameter."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A part of a list."""

    records: list[Record]
    version: int
    """The store's version at the moment that the whole list shows."""
    continue_token: str = ""
    """Empty on the last page."""
    remaining: int = 0


class _Token(msgspec.Struct, frozen=True):
    snapshot: int
    version: int
    start: int


class Paging:
    """The lists that clients are in the middle of."""

    def __init__(self) -> None:
        self._snapshots: OrderedDict[int, list[Record]] = OrderedDict()
        self._next = 0

    def first_page(self, records: list[Record], *, version: int, limit: int) -> Page:
        """The first page of these records; ``limit`` 0 is no limit."""
        if not limit or len(records) <= limit:
            return Page(records=records, version=version)
        self._next += 1
        self._snapshots[self._next] = records
        if len(self._snapshots) > _MAX_SNAPSHOTS:
            self._snapshots.popitem(last=False)
        return _page(records, _Token(self._next, version, 0), limit=limit)

    def next_page(self, token: str, *, limit: int, horizon: int) -> Page:
        """The page that the token stands for; StatusError(410) once its moment is forgotten."""
        try:
            where = msgspec.json.decode(base64.urlsafe_b64decode(token), type=_Token)
        except (binascii.Error, ValueError, msgspec.DecodeError) as error:
            raise answers.bad_request("continue key is not valid") from error
        records = self._snapshots.get(where.snapshot)
        if records is None or where.version < horizon:
            raise answers.expired(_EXPIRED)
        return _page(records, where, limit=limit or len(records))


def _page(records: list[Record], where: _Token, *, limit: int) -> Page:
    end = where.start + limit
    remaining = max(0, len(records) - end)
    following = _Token(where.snapshot, where.version, end)
    token = base64.urlsafe_b64encode(msgspec.json.encode(following)).decode() if remaining else ""
    return Page(
        records=records[where.start : end],
        version=where.version,
        continue_token=token,
        remaining=remaining,
    )
