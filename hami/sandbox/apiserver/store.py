"""Every object of the sandbox's cluster, in memory.

Owns names, uids, resource versions (one counter for all kinds) and optimistic locking. Knows no
HTTP, no admission and no rule of any kind: whoever writes here has checked the object.
One event loop, or one thread without any, may use a store.
"""

from __future__ import annotations

import builtins
import random
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec

from hami.sandbox.apiserver import answers, selectors
from hami.sandbox.apiserver.collection import Collection
from hami.sandbox.apiserver.kinds import KINDS, Kind, get_kind
from hami.sandbox.apiserver.records import (
    Change,
    Key,
    Object,
    Record,
    Selection,
    build_record,
    with_version,
)

_SUFFIX_ALPHABET: Final = "bcdfghjklmnpqrstvwxz2456789"
_BASE_LENGTH: Final = 58
_DEFAULT_NAMESPACES: Final = ("default", "kube-node-lease", "kube-public", "kube-system")


class Store:
    """Every object of the sandbox's cluster.

    ``insert``, ``replace`` and ``remove`` are what the API is built on; ``create``, ``get``,
    ``list``, ``update`` and ``delete`` are for seeding and looking from the same process. Neither
    applies defaults, validation, admission or grace periods.
    """

    def __init__(
        self, *, event_window: int = 10_000, clock: Callable[[], datetime] | None = None
    ) -> None:
        self.version = 0
        self._clock = clock or (lambda: datetime.now(UTC))
        self._collections = {
            kind.qualified: Collection(kind, event_window=event_window) for kind in KINDS
        }
        for name in _DEFAULT_NAMESPACES:
            self.create(new_namespace(name))

    def collection(self, kind: Kind) -> Collection:
        """The objects of that kind."""
        return self._collections[kind.qualified]

    def now(self) -> datetime:
        """The time that goes into timestamps, in UTC."""
        return self._clock()

    def timestamp(self) -> str:
        """The time in the format of ``metadata.creationTimestamp``, to the second."""
        return format_time(self.now())

    def find_record(self, kind: Kind, key: Key) -> Record | None:
        """The current version of the object with that (namespace, name), or None."""
        return self.collection(kind).records.get(key)

    def get_record(self, kind: Kind, key: Key) -> Record:
        """The current version of the object; raises StatusError(404)."""
        record = self.find_record(kind, key)
        if record is None:
            raise answers.not_found(kind.qualified, key[1])
        return record

    def insert(self, kind: Kind, obj: Object) -> Record:
        """Store a new object with fresh metadata; raises StatusError(409) if the name is taken."""
        metadata = self.complete_metadata(kind, obj)
        key = (metadata.get("namespace", ""), metadata["name"])
        if key in self.collection(kind).records:
            raise answers.already_exists(kind.qualified, key[1])
        record = self._next_record(kind, {**obj, "metadata": metadata})
        self.collection(kind).apply(Change(None, record))
        return record

    def replace(self, kind: Kind, obj: Object, *, before: Record) -> Record:
        """Store the object's next version; StatusError(409) if ``before`` is no longer current.

        What changes nothing keeps its version and is no event.
        """
        current = self.get_record(kind, before.key)
        if current is not before:
            raise answers.modified(kind.qualified, before.key[1])
        if self.is_unchanged(obj, before):
            return before
        record = self._next_record(kind, obj)
        self.collection(kind).apply(Change(before, record))
        return record

    def remove(self, kind: Kind, before: Record) -> Record:
        """Forget the object and return its last state; StatusError(409) if it has changed."""
        current = self.get_record(kind, before.key)
        if current is not before:
            raise answers.modified(kind.qualified, before.key[1])
        record = self._next_record(kind, before.decode())
        self.collection(kind).apply(Change(before, record, deleted=True))
        return record

    def complete_metadata(self, kind: Kind, obj: Object) -> Object:
        """The metadata of a new object: its own, a name, a uid and a time of creation."""
        metadata = dict(obj.get("metadata") or {})
        if not metadata.get("name"):
            metadata["name"] = _generate_name(metadata.get("generateName", ""))
        if kind.namespaced:
            metadata.setdefault("namespace", "default")
        else:
            metadata.pop("namespace", None)
        metadata["uid"] = metadata.get("uid") or str(uuid.uuid4())
        metadata["creationTimestamp"] = metadata.get("creationTimestamp") or self.timestamp()
        if kind.has_generation:
            metadata.setdefault("generation", 1)
        return metadata

    @staticmethod
    def is_unchanged(obj: Object, before: Record) -> bool:
        """Whether storing the object would change nothing but its version."""
        return with_version(obj, before.version) == before.decode()

    # From here on: seeding and looking from the same process.

    def create(self, obj: Object) -> Object:
        """Store a new object and return it as stored; raises StatusError(409)."""
        return self.insert(get_kind(obj["kind"]), obj).decode()

    def find(self, kind: str, name: str, namespace: str = "default") -> Object | None:
        """The object, or None; ``kind`` is any of a kind's names."""
        found = get_kind(kind)
        record = self.find_record(found, (namespace if found.namespaced else "", name))
        return record.decode() if record else None

    def get(self, kind: str, name: str, namespace: str = "default") -> Object:
        """The object; raises StatusError(404)."""
        obj = self.find(kind, name, namespace)
        if obj is None:
            raise answers.not_found(get_kind(kind).qualified, name)
        return obj

    def list(
        self, kind: str, namespace: str = "", *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        """The selected objects, ordered by namespace and name."""
        found = get_kind(kind)
        selection = Selection(
            namespace=namespace if found.namespaced else "",
            labels=selectors.parse_labels(labels),
            fields=selectors.parse_fields(fields, supported=found.fields),
        )
        return [record.decode() for record in self.collection(found).select(selection)]

    def update(self, obj: Object) -> Object:
        """Replace the object; with a resourceVersion in it, raises StatusError(409) if stale."""
        kind = get_kind(obj["kind"])
        metadata = obj["metadata"]
        before = self.get_record(kind, (metadata.get("namespace", ""), metadata["name"]))
        if metadata.get("resourceVersion", str(before.version)) != str(before.version):
            raise answers.modified(kind.qualified, metadata["name"])
        return self.replace(kind, obj, before=before).decode()

    def delete(self, kind: str, name: str, namespace: str = "default") -> Object:
        """Remove the object at once, whatever its finalizers; raises StatusError(404)."""
        found = get_kind(kind)
        key = (namespace if found.namespaced else "", name)
        return self.remove(found, self.get_record(found, key)).decode()

    def forget_changes(self) -> None:
        """Make every watch and list that goes on from an earlier version meet 410."""
        self.version += 1
        for collection in self._collections.values():
            collection.forget_changes(version=self.version)

    def dump(self) -> bytes:
        """Everything but the log, as JSON for ``load``."""
        return msgspec.json.encode(
            {
                "version": self.version,
                "objects": [msgspec.Raw(record.encoded) for record in self._all_records()],
            }
        )

    @classmethod
    def load(cls, dumped: bytes, *, event_window: int = 10_000) -> Store:
        """A store of what was dumped, versions and uids included; watches must list again."""
        content = msgspec.json.decode(dumped)
        store = cls(event_window=event_window)
        for obj in content["objects"]:
            kind = get_kind(obj["kind"])
            version = int(obj["metadata"]["resourceVersion"])
            store.collection(kind).apply(Change(None, build_record(kind, obj, version=version)))
        store.version = content["version"]
        store.forget_changes()
        return store

    def records_in(self, namespace: str) -> builtins.list[tuple[Kind, Record]]:
        """Everything that lives in the namespace."""
        selection = Selection(namespace=namespace)
        return [
            (collection.kind, record)
            for collection in self._collections.values()
            if collection.kind.namespaced
            for record in collection.select(selection)
        ]

    def _all_records(self) -> Iterator[Record]:
        for collection in self._collections.values():
            yield from collection.records.values()

    def _next_record(self, kind: Kind, obj: Object) -> Record:
        record = build_record(kind, obj, version=self.version + 1)
        self.version += 1
        return record


def new_namespace(name: str) -> Object:
    """A Namespace as API servers make them."""
    labels = {"kubernetes.io/metadata.name": name}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": labels},
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    }


def format_time(time: datetime) -> str:
    """RFC 3339 in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _generate_name(prefix: str) -> str:
    suffix = "".join(random.choices(_SUFFIX_ALPHABET, k=5))
    return prefix[:_BASE_LENGTH] + suffix
