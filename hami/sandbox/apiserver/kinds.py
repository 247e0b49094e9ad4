"""The kinds that this server stores, one row each.

Owns what discovery, routing and storage need to know about a kind. Knows nothing about objects of
that kind: defaults, validation and printer columns have their own tables, keyed by plural name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from hami.sandbox.apiserver.answers import StatusError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kind:
    """One REST resource: its names, its scope and how its objects behave."""

    group: str = ""
    """Empty for the core group."""
    version: str = "v1"
    kind: str
    plural: str
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    namespaced: bool = True
    subresources: tuple[str, ...] = ()
    """Sub-resources by name; ``status`` separates who may write which half of the object."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Paths that a field selector may name, with the value that stands for an absent field."""
    has_generation: bool = False
    """Whether a change outside of metadata and status bumps ``metadata.generation``."""
    update_needs_version: bool = False
    """Whether an update without ``metadata.resourceVersion`` is refused."""

    @property
    def api_version(self) -> str:
        """``v1`` or ``group/v1``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def singular(self) -> str:
        """The lower-case singular name that kubectl accepts."""
        return self.kind.lower()

    @property
    def qualified(self) -> str:
        """``pods`` or ``leases.coordination.k8s.io``, as error messages name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


_EVENT_FIELDS = (
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "type",
)
_POD_FIELDS = (
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
)
_RBAC = "rbac.authorization.k8s.io"
_ADMISSION = "admissionregistration.k8s.io"

POD: Final = Kind(
    kind="Pod",
    plural="pods",
    short_names=("po",),
    categories=("all",),
    subresources=("status", "binding", "eviction", "log"),
    fields=dict.fromkeys(_POD_FIELDS, ""),
    has_generation=True,
)
NODE: Final = Kind(
    kind="Node",
    plural="nodes",
    short_names=("no",),
    namespaced=False,
    subresources=("status",),
    fields={"spec.unschedulable": "false"},
)
NAMESPACE: Final = Kind(
    kind="Namespace",
    plural="namespaces",
    short_names=("ns",),
    namespaced=False,
    subresources=("status",),
    fields={"status.phase": ""},
)
EVENT: Final = Kind(
    kind="Event",
    plural="events",
    short_names=("ev",),
    fields=dict.fromkeys(_EVENT_FIELDS, ""),
)
RESOURCE_QUOTA: Final = Kind(
    kind="ResourceQuota", plural="resourcequotas", short_names=("quota",), subresources=("status",)
)
ENDPOINTS: Final = Kind(kind="Endpoints", plural="endpoints", short_names=("ep",))
PRIORITY_CLASS: Final = Kind(
    group="scheduling.k8s.io",
    kind="PriorityClass",
    plural="priorityclasses",
    short_names=("pc",),
    namespaced=False,
    has_generation=True,
)
POD_DISRUPTION_BUDGET: Final = Kind(
    group="policy",
    kind="PodDisruptionBudget",
    plural="poddisruptionbudgets",
    short_names=("pdb",),
    subresources=("status",),
    has_generation=True,
    update_needs_version=True,
)
MUTATING_WEBHOOKS: Final = Kind(
    group=_ADMISSION,
    kind="MutatingWebhookConfiguration",
    plural="mutatingwebhookconfigurations",
    namespaced=False,
    has_generation=True,
    update_needs_version=True,
)
VALIDATING_WEBHOOKS: Final = Kind(
    group=_ADMISSION,
    kind="ValidatingWebhookConfiguration",
    plural="validatingwebhookconfigurations",
    namespaced=False,
    has_generation=True,
    update_needs_version=True,
)

KINDS: Final = (
    POD,
    NODE,
    NAMESPACE,
    EVENT,
    Kind(kind="ConfigMap", plural="configmaps", short_names=("cm",)),
    Kind(kind="Secret", plural="secrets", fields={"type": ""}),
    Kind(
        kind="Service",
        plural="services",
        short_names=("svc",),
        categories=("all",),
        subresources=("status",),
    ),
    ENDPOINTS,
    Kind(kind="ServiceAccount", plural="serviceaccounts", short_names=("sa",)),
    RESOURCE_QUOTA,
    Kind(group="coordination.k8s.io", kind="Lease", plural="leases", update_needs_version=True),
    MUTATING_WEBHOOKS,
    VALIDATING_WEBHOOKS,
    POD_DISRUPTION_BUDGET,
    PRIORITY_CLASS,
    Kind(group=_RBAC, kind="Role", plural="roles"),
    Kind(group=_RBAC, kind="RoleBinding", plural="rolebindings"),
    Kind(group=_RBAC, kind="ClusterRole", plural="clusterroles", namespaced=False),
    Kind(group=_RBAC, kind="ClusterRoleBinding", plural="clusterrolebindings", namespaced=False),
)

_BY_PATH = {(kind.group, kind.version, kind.plural): kind for kind in KINDS}
_BY_NAME = {
    name: kind
    for kind in KINDS
    for name in (kind.plural, kind.kind, kind.singular, kind.qualified, *kind.short_names)
}


def find_kind(group: str, version: str, plural: str) -> Kind | None:
    """The kind that a URL names, or None."""
    return _BY_PATH.get((group, version, plural))


def get_kind(name: str) -> Kind:
    """The kind of that plural, singular, kind or short name; raises StatusError(404)."""
    kind = _BY_NAME.get(name)
    if kind is None:
        raise StatusError(404, "NotFound", f"no kind is called {name!r} here")
    return kind
