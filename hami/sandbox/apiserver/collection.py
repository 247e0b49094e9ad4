"""The objects of one kind and the bounded log of their latest changes.

Watches hold no buffer of their own: each has a position in this log, and one that falls behind
the log's beginning has lost changes and must list again.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager

from hami.sandbox.apiserver import answers
from hami.sandbox.apiserver.kinds import Kind
from hami.sandbox.apiserver.records import Change, Key, Record, Selection


class Subscription:
    """One reader of a collection's log: where it is, and whether there is something for it."""

    __slots__ = ("_collection", "_news", "_position", "_selection")

    def __init__(self, collection: Collection, selection: Selection, position: int) -> None:
        self._collection = collection
        self._selection = selection
        self._position = position
        self._news = asyncio.Event()

    def take(self) -> list[Change] | None:
        """The changes since the last call; None once the log has lost some of them."""
        self._news.clear()
        changes = self._collection.changes_from(self._position)
        self._position = self._collection.end
        return changes

    async def wait(self) -> None:
        """Return once there is a change that concerns the selection."""
        await self._news.wait()

    def notice(self, change: Change, *, at: int) -> None:
        """Hear of a change before it is logged; one that is of no concern is passed over."""
        if self._position == at and change.type_for(self._selection) is None:
            self._position += 1
        else:
            self.wake()

    def wake(self) -> None:
        """Make the reader look."""
        self._news.set()


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
        self._subscriptions: set[Subscription] = set()

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

    @contextmanager
    def subscribed(self, selection: Selection, position: int) -> Iterator[Subscription]:
        """A reader of the log that begins at the position."""
        subscription = Subscription(self, selection, position)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def forget_changes(self, *, version: int) -> None:
        """Drop the log, so that no watch can go on from before ``version``."""
        self._dropped += len(self._log)
        self._log.clear()
        self.horizon = version
        for subscription in self._subscriptions:
            subscription.wake()

    def apply(self, change: Change) -> None:
        """Make the change visible to readers and watches."""
        key = change.record.key
        if change.deleted:
            del self.records[key]
        else:
            self.records[key] = change.record
        if change.deleted or change.before is None:
            self._order = None
        for subscription in self._subscriptions:
            subscription.notice(change, at=self.end)
        self._log.append(change)
        excess = len(self._log) - self._event_window
        if excess > self._event_window // 8:
            self.horizon = self._log[excess - 1].version
            del self._log[:excess]
            self._dropped += excess

    def _keys(self, namespace: str) -> list[Key]:
        if self._order is None:
            self._order = sorted(self.records)
        if not namespace:
            return self._order
        start = bisect_left(self._order, (namespace, ""))
        return self._order[start : bisect_left(self._order, (namespace + "\0", ""))]
