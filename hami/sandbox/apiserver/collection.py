"""The objects of one kind and the bounded log of their latest changes.

Watches hold no buffer of their own: each has a position in this log, and one that falls behind
the log's beginning has lost changes and must list again.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right

from hami.sandbox.apiserver import answers
from hami.sandbox.apiserver.kinds import Kind
from hami.sandbox.apiserver.records import Change, Key, Record, Selection


class Collection:
    """All objects of one kind, and the log of their latest changes."""

    def __init__(self, kind: Kind, *, event_window: int) -> None:
        self.kind = kind
        self.records: dict[Key, Record] = {}
        self.horizon = 0
        """The oldest version that a watch can start from: all later changes are in the log."""
        self._event_window = event_window
        self._log: list[Change] = []
        self._dropped = 0
        self._order: list[Key] | None = []
        self._changed = asyncio.Event()

    def select(self, selection: Selection) -> list[Record]:
        """The selected records, ordered by namespace and name."""
        return [
            record
            for record in map(self.records.__getitem__, self._keys(selection.namespace))
            if selection.matches(record)
        ]

    def position_after(self, version: int) -> int:
        """Where in the log a watch from that version begins; StatusError(410) if it is gone."""
        if version < self.horizon:
            raise answers.expired(f"too old resource version: {version} ({self.horizon})")
        found = bisect_right(self._log, version, key=lambda change: change.version)
        return self._dropped + found

    @property
    def end(self) -> int:
        """The position behind the last change."""
        return self._dropped + len(self._log)

    def changes_from(self, position: int) -> list[Change] | None:
        """The changes since the position; None once the log has lost some of them."""
        if position < self._dropped:
            return None
        return self._log[position - self._dropped :]

    async def wait_for_change(self) -> None:
        """Return after the next change, or once the log was forgotten."""
        await self._changed.wait()

    def forget_changes(self, *, version: int) -> None:
        """Drop the log, so that no watch can go on from before ``version``."""
        self._dropped += len(self._log)
        self._log.clear()
        self.horizon = version
        self._wake()

    def apply(self, change: Change) -> None:
        """Make the change visible to readers and watches."""
        key = change.record.key
        if change.deleted:
            del self.records[key]
        else:
            self.records[key] = change.record
        if change.deleted or change.before is None:
            self._order = None
        self._log.append(change)
        excess = len(self._log) - self._event_window
        if excess > self._event_window // 8:
            self.horizon = self._log[excess - 1].version
            del self._log[:excess]
            self._dropped += excess
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _keys(self, namespace: str) -> list[Key]:
        if self._order is None:
            self._order = sorted(self.records)
        if not namespace:
            return self._order
        start = bisect_left(self._order, (namespace, ""))
        return self._order[start : bisect_left(self._order, (namespace + "\0", ""))]
