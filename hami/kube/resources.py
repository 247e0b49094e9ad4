"""Which resources this project uses, and the paths under which the API server keeps them.

Owns the table of resources and the building and reading of paths. Knows no HTTP. Names come from
objects the API server has accepted or from users, so every part of a path is quoted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import quote

from hami.core.objects import ObjectMeta


class HasMetadata(Protocol):
    """Any decoded Kubernetes object."""

    @property
    def metadata(self) -> ObjectMeta:
        """Identity and version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One kind of object, as the REST API names it."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool

    def path(self, namespace: str = "", name: str = "", *, subresource: str = "") -> str:
        """The collection's path, or the object's where ``name`` is given.

        Without a namespace the collection is that of the whole cluster.
        """
        root = "/api/" if "/" not in self.api_version else "/apis/"
        parts = [root + self.api_version]
        if self.namespaced and namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name:
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(subresource)
        return "/".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRef:
    """Points at one object; with ``uid``, at one life of it."""

    resource: Resource
    name: str
    namespace: str = ""
    uid: str = ""

    @classmethod
    def to(cls, resource: Resource, obj: HasMetadata) -> ObjectRef:
        """The reference to an object that was read."""
        meta = obj.metadata
        return cls(resource=resource, name=meta.name, namespace=meta.namespace, uid=meta.uid)

    def path(self, subresource: str = "") -> str:
        """Where the object, or its sub-resource, is."""
        return self.resource.path(self.namespace, self.name, subresource=subresource)

    def involved(self) -> dict[str, Any]:
        """The reference as Events carry it."""
        fields = {
            "apiVersion": self.resource.api_version,
            "kind": self.resource.kind,
            "namespace": self.namespace,
            "name": self.name,
            "uid": self.uid,
        }
        return {key: value for key, value in fields.items() if value}

    def __str__(self) -> str:
        """``Pod team-a/train-0``, for messages."""
        where = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.resource.kind} {where}"


PODS: Final = Resource(api_version="v1", kind="Pod", plural="pods", namespaced=True)
NODES: Final = Resource(api_version="v1", kind="Node", plural="nodes", namespaced=False)
NAMESPACES: Final = Resource(
    api_version="v1", kind="Namespace", plural="namespaces", namespaced=False
)
RESOURCE_QUOTAS: Final = Resource(
    api_version="v1", kind="ResourceQuota", plural="resourcequotas", namespaced=True
)
POD_DISRUPTION_BUDGETS: Final = Resource(
    api_version="policy/v1",
    kind="PodDisruptionBudget",
    plural="poddisruptionbudgets",
    namespaced=True,
)
EVENTS: Final = Resource(api_version="v1", kind="Event", plural="events", namespaced=True)
LEASES: Final = Resource(
    api_version="coordination.k8s.io/v1", kind="Lease", plural="leases", namespaced=True
)


def resource_of(path: str) -> str:
    """The plural, with the sub-resource if there is one, that a path is about: a metric's label."""
    parts = path.partition("?")[0].strip("/").split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    if len(rest) > 2 and rest[0] == "namespaces":
        rest = rest[2:]
    if not rest:
        return "other"
    return f"{rest[0]}/{rest[2]}" if len(rest) > 2 else rest[0]
