"""What a request asks for: method and URL read as verb, kind, namespace, name and sub-resource.

Pure: a path and a query in, a Target out. Knows which paths exist, not what is behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hami.sandbox.apiserver.kinds import NAMESPACE, Kind, find_kind

_COLLECTION_VERBS: Final = {"GET": "list", "POST": "create", "DELETE": "deletecollection"}
_OBJECT_VERBS: Final = {
    "GET": "get",
    "POST": "create",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}
_TRUE: Final = frozenset(("1", "true", "True"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One request on stored objects."""

    verb: str
    """A verb of Kubernetes' authorization; empty where the method fits no verb."""
    kind: Kind
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def resource(self) -> str:
        """``pods`` or ``pods/binding``, as rules and counters name it."""
        if self.subresource:
            return f"{self.kind.plural}/{self.subresource}"
        return self.kind.plural

    @property
    def key(self) -> tuple[str, str]:
        """Where the store keeps the object."""
        return self.namespace, self.name


def parse_target(method: str, path: str, *, query: Mapping[str, str]) -> Target | None:
    """The target of the request; None where the path leads to no kind of this server."""
    parts = [part for part in path.split("/") if part]
    if len(parts) > 2 and parts[0] == "api":
        return _parse(method, "", parts[1], parts[2:], query=query)
    if len(parts) > 3 and parts[0] == "apis":
        return _parse(method, parts[1], parts[2], parts[3:], query=query)
    return None


def is_true(value: str | None) -> bool:
    """How query parameters spell a boolean."""
    return value in _TRUE


def _parse(
    method: str, group: str, version: str, parts: list[str], *, query: Mapping[str, str]
) -> Target | None:
    namespace = ""
    is_in_namespace = len(parts) > 2 and parts[0] == "namespaces"
    if is_in_namespace and not (len(parts) == 3 and parts[2] in NAMESPACE.subresources):
        namespace, parts = parts[1], parts[2:]
    kind = find_kind(group, version, parts[0])
    if kind is None or len(parts) > 3:
        return None
    name = parts[1] if len(parts) > 1 else ""
    subresource = parts[2] if len(parts) > 2 else ""
    if subresource and subresource not in kind.subresources:
        return None
    if namespace and not kind.namespaced:
        return None
    if kind.namespaced and not namespace and (name or method != "GET"):
        return None
    verb = (_OBJECT_VERBS if name else _COLLECTION_VERBS).get(method, "")
    if verb in ("list", "get") and not subresource and is_true(query.get("watch")):
        verb = "watch"
    return Target(verb=verb, kind=kind, namespace=namespace, name=name, subresource=subresource)
