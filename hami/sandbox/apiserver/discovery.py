"""What this server is and which kinds it has, for clients that ask first.

Owns ``/version``, ``/healthz`` and its like, ``/api``, ``/apis`` (plain and aggregated) and as much
of ``/openapi/v3`` as tells kubectl that the server checks fields itself (and of ``/openapi/v2``,
see ``openapi``). There are no schemas in it, so ``kubectl explain`` finds nothing. All of it is
derived from the table of kinds.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from hami import __version__
from hami.sandbox.apiserver import openapi
from hami.sandbox.apiserver.kinds import KINDS, Kind
from hami.sandbox.apiserver.views import JSON, parse_accept

_AGGREGATED: Final = "apidiscovery.k8s.io"
_MINOR: Final = 33
_HEALTH_PATHS: Final = ("/healthz", "/livez", "/readyz")
_VERBS: Final = (
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
)
_SUBRESOURCE_VERBS: Final = {
    "status": ("get", "patch", "update"),
    "binding": ("create",),
    "eviction": ("create",),
    "log": ("get",),
}
_SUBRESOURCE_KINDS: Final = {
    "binding": ("", "v1", "Binding"),
    "eviction": ("policy", "v1", "Eviction"),
}
REVIEW: Final = Kind(
    group="authorization.k8s.io",
    kind="SelfSubjectAccessReview",
    plural="selfsubjectaccessreviews",
    namespaced=False,
)
"""Answered, not stored."""


def describe(path: str, accept: str) -> tuple[str, bytes] | None:
    """Content type and body of a discovery path; None where the path is none."""
    path = path.rstrip("/") or "/"
    if path in _HEALTH_PATHS:
        return "text/plain", b"ok"
    if path in ("/api", "/apis") and _wants_aggregated(accept):
        content_type = f"{JSON};g={_AGGREGATED};v=v2;as=APIGroupDiscoveryList"
        return content_type, _aggregated(path)
    if path == "/openapi/v2":
        return openapi.CONTENT_TYPE, openapi.document(KINDS)
    document = _documents().get(path)
    return None if document is None else (JSON, document)


@functools.cache
def _documents() -> dict[str, bytes]:
    groups = sorted({kind.group for kind in (*KINDS, REVIEW)} - {""})
    documents: dict[str, Any] = {
        "/version": _version(),
        "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
        "/apis": {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [_group(group) for group in groups],
        },
        "/api/v1": _resource_list("v1", _kinds_of("")),
        "/openapi/v3": {"paths": _openapi_paths(groups)},
        "/openapi/v3/api/v1": _openapi("v1", _kinds_of("")),
    }
    for group in groups:
        kinds = _kinds_of(group)
        documents[f"/apis/{group}"] = {"kind": "APIGroup", "apiVersion": "v1", **_group(group)}
        documents[f"/apis/{group}/v1"] = _resource_list(f"{group}/v1", kinds)
        documents[f"/openapi/v3/apis/{group}/v1"] = _openapi(f"{group}/v1", kinds)
    return {path: msgspec.json.encode(document) for path, document in documents.items()}


def _version() -> dict[str, str]:
    return {
        "major": "1",
        "minor": str(_MINOR),
        "gitVersion": f"v1.{_MINOR}.0+hami-sandbox-{__version__}",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "",
        "goVersion": "",
        "compiler": platform.python_implementation(),
        "platform": f"{platform.system().lower()}/{platform.machine()}",
    }


def _kinds_of(group: str) -> list[Kind]:
    return [kind for kind in (*KINDS, REVIEW) if kind.group == group]


def _group(group: str) -> dict[str, Any]:
    version = {"groupVersion": f"{group}/v1", "version": "v1"}
    return {"name": group, "versions": [version], "preferredVersion": version}


def _resource_list(group_version: str, kinds: Sequence[Kind]) -> dict[str, Any]:
    resources = [resource for kind in kinds for resource in _resources(kind)]
    head = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version}
    return {**head, "resources": resources}


def _resources(kind: Kind) -> list[dict[str, Any]]:
    main: dict[str, Any] = {
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": _verbs_of(kind),
    }
    if kind.short_names:
        main["shortNames"] = kind.short_names
    if kind.categories:
        main["categories"] = kind.categories
    listed = [main]
    for name in kind.subresources:
        group, version, other = _SUBRESOURCE_KINDS.get(name, ("", "", kind.kind))
        subresource = {
            "name": f"{kind.plural}/{name}",
            "singularName": "",
            "namespaced": kind.namespaced,
            "kind": other,
            "verbs": _SUBRESOURCE_VERBS[name],
        }
        listed.append(subresource | ({"group": group, "version": version} if version else {}))
    return listed


def _verbs_of(kind: Kind) -> tuple[str, ...]:
    return ("create",) if kind is REVIEW else _VERBS


def _wants_aggregated(accept: str) -> bool:
    return any(
        (parameters.get("g"), parameters.get("v")) == (_AGGREGATED, "v2")
        for media_type, parameters in parse_accept(accept)
        if media_type == JSON
    )


@functools.cache
def _aggregated(path: str) -> bytes:
    groups = [""] if path == "/api" else sorted({kind.group for kind in (*KINDS, REVIEW)} - {""})
    items = [
        {
            "metadata": {"name": group, "creationTimestamp": None},
            "versions": [
                {
                    "version": "v1",
                    "freshness": "Current",
                    "resources": [_aggregated_resource(kind) for kind in _kinds_of(group)],
                }
            ],
        }
        for group in groups
    ]
    api_version = f"{_AGGREGATED}/v2"
    listed = {"kind": "APIGroupDiscoveryList", "apiVersion": api_version, "metadata": {}}
    return msgspec.json.encode({**listed, "items": items})


def _aggregated_resource(kind: Kind) -> dict[str, Any]:
    return {
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.singular,
        "verbs": _verbs_of(kind),
        "shortNames": kind.short_names,
        "categories": kind.categories,
        "subresources": [_aggregated_subresource(kind, name) for name in kind.subresources],
    }


def _aggregated_subresource(kind: Kind, name: str) -> dict[str, Any]:
    group, version, other = _SUBRESOURCE_KINDS.get(name, (kind.group, kind.version, kind.kind))
    return {
        "subresource": name,
        "responseKind": {"group": group, "version": version, "kind": other},
        "verbs": _SUBRESOURCE_VERBS[name],
    }


def _openapi_paths(groups: Sequence[str]) -> dict[str, Any]:
    names = ["api/v1", *(f"apis/{group}/v1" for group in groups)]
    return {name: {"serverRelativeURL": f"/openapi/v3/{name}"} for name in names}


def _openapi(group_version: str, kinds: Sequence[Kind]) -> dict[str, Any]:
    """The patch operations alone: kubectl looks there for the ``fieldValidation`` parameter."""
    prefix = "api" if group_version == "v1" else "apis"
    paths = {}
    for kind in kinds:
        namespace = "/namespaces/{namespace}" if kind.namespaced else ""
        paths[f"/{prefix}/{group_version}{namespace}/{kind.plural}/{{name}}"] = {
            "patch": {
                "parameters": [
                    {"name": name, "in": "query", "schema": {"type": "string"}}
                    for name in ("dryRun", "fieldValidation")
                ],
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-action": "patch",
                "x-kubernetes-group-version-kind": {
                    "group": kind.group,
                    "version": kind.version,
                    "kind": kind.kind,
                },
            }
        }
    info = {"title": "hami sandbox", "version": __version__}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": {}}}
