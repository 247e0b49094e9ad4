"""Kubernetes' strategic merge patch: lists are merged where the type says by which key.

Pure. Follows k8s.io/apimachinery's ``strategicpatch`` to the order of merged lists, because
``kubectl apply`` and ``edit`` compute their patches with that package. The directives are
``$patch`` (replace, delete), ``$deleteFromPrimitiveList/``, ``$setElementOrder/`` and
``$retainKeys``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hami.sandbox.apiserver.patching import Json, PatchError

_DIRECTIVE: Final = "$patch"
_DELETE_PRIMITIVES: Final = "$deleteFromPrimitiveList/"
_ELEMENT_ORDER: Final = "$setElementOrder/"
_RETAIN_KEYS: Final = "$retainKeys"


@dataclass(frozen=True, slots=True)
class Merge:
    """How one field merges: its own fields, and for a list the key of its elements."""

    key: str | None = None
    """The merge key of a list of objects; empty for a list of primitives that is a set; None for
    what is no list, or a list that is replaced as a whole."""
    fields: Mapping[str, Merge] = field(default_factory=dict)


_PLAIN: Final = Merge()
_SET: Final = Merge("")
_CONDITIONS: Final = Merge("type")
_CONTAINERS: Final = Merge(
    "name",
    {
        "env": Merge("name"),
        "ports": Merge("containerPort"),
        "volumeDevices": Merge("devicePath"),
        "volumeMounts": Merge("mountPath"),
    },
)
_METADATA: Final = Merge(fields={"finalizers": _SET, "ownerReferences": Merge("uid")})
_POD: Final = {
    "spec": Merge(
        fields={
            "containers": _CONTAINERS,
            "ephemeralContainers": _CONTAINERS,
            "hostAliases": Merge("ip"),
            "imagePullSecrets": Merge("name"),
            "initContainers": _CONTAINERS,
            "resourceClaims": Merge("name"),
            "schedulingGates": Merge("name"),
            "topologySpreadConstraints": Merge("topologyKey"),
            "volumes": Merge("name"),
        }
    ),
    "status": Merge(
        fields={
            "conditions": _CONDITIONS,
            "hostIPs": Merge("ip"),
            "podIPs": Merge("ip"),
            "resourceClaimStatuses": Merge("name"),
        }
    ),
}
_NODE: Final = {
    "spec": Merge(fields={"podCIDRs": _SET}),
    "status": Merge(fields={"addresses": Merge("type"), "conditions": _CONDITIONS}),
}
_WEBHOOKS: Final = {"webhooks": Merge("name", {"matchConditions": Merge("name")})}
_STATUS_CONDITIONS: Final = {"status": Merge(fields={"conditions": _CONDITIONS})}
_BY_PLURAL: Final[Mapping[str, Mapping[str, Merge]]] = {
    "pods": _POD,
    "nodes": _NODE,
    "namespaces": _STATUS_CONDITIONS,
    "poddisruptionbudgets": _STATUS_CONDITIONS,
    "services": {"spec": Merge(fields={"ports": Merge("port")}), **_STATUS_CONDITIONS},
    "serviceaccounts": {"secrets": Merge("name"), "imagePullSecrets": Merge("name")},
    "mutatingwebhookconfigurations": _WEBHOOKS,
    "validatingwebhookconfigurations": _WEBHOOKS,
}


def apply_strategic_patch(document: dict[str, Any], patch: Json, *, plural: str) -> dict[str, Any]:
    """The document, an object of that plural name, with the patch merged in, or PatchError."""
    if not isinstance(patch, dict):
        raise PatchError("a strategic merge patch is an object")
    fields = {"metadata": _METADATA, **_BY_PLURAL.get(plural, {})}
    return _merge_object(document, patch, Merge(fields=fields))


def _merge_object(original: dict[str, Any], patch: dict[str, Any], how: Merge) -> dict[str, Any]:
    if _DIRECTIVE in patch:
        return _replace_or_delete(patch)
    merged = _retain_keys(original, patch)
    patch = {name: value for name, value in patch.items() if name != _RETAIN_KEYS}
    ordered = _merge_ordered_lists(merged, patch, how)
    for name, value in patch.items():
        if name.startswith(_ELEMENT_ORDER) or name in ordered:
            continue
        if name.startswith(_DELETE_PRIMITIVES):
            _delete_primitives(merged, name.removeprefix(_DELETE_PRIMITIVES), value)
        elif value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge_value(merged.get(name), value, how.fields.get(name, _PLAIN))
    return merged


def _merge_value(original: Json, patch: Json, how: Merge) -> Json:
    if isinstance(original, dict) and isinstance(patch, dict):
        return _merge_object(original, patch, how)
    if isinstance(original, list) and isinstance(patch, list) and how.key is not None:
        return _merge_list(original, patch, how)
    return _without_directives(patch)


def _replace_or_delete(patch: Mapping[str, Any]) -> dict[str, Any]:
    match patch[_DIRECTIVE]:
        case "replace":
            return {name: value for name, value in patch.items() if name != _DIRECTIVE}
        case "delete":
            return {}
    raise PatchError(f"unknown {_DIRECTIVE} directive {patch[_DIRECTIVE]!r} in an object")


def _retain_keys(original: dict[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    if _RETAIN_KEYS not in patch:
        return dict(original)
    retained = _as_list(patch[_RETAIN_KEYS], _RETAIN_KEYS)
    extra = [n for n in patch if not n.startswith("$") and n not in retained]
    if extra:
        raise PatchError(f"{_RETAIN_KEYS} does not list {extra[0]!r}, which the patch sets")
    return {name: value for name, value in original.items() if name in retained}


def _delete_primitives(merged: dict[str, Any], name: str, doomed: Json) -> None:
    values = _as_list(doomed, name)
    if isinstance(merged.get(name), list):
        merged[name] = [value for value in merged[name] if value not in values]


def _merge_ordered_lists(merged: dict[str, Any], patch: dict[str, Any], how: Merge) -> set[str]:
    """Merge the lists that come with ``$setElementOrder``; their names."""
    names = set()
    for directive in [name for name in patch if name.startswith(_ELEMENT_ORDER)]:
        name = directive.removeprefix(_ELEMENT_ORDER)
        order = _as_list(patch[directive], directive)
        names.add(name)
        list_how = how.fields.get(name, _PLAIN)
        original, changes = merged.get(name), patch.get(name)
        _check_order(changes, order, list_how, name)
        if name in patch and changes is None:
            merged.pop(name, None)
            continue
        if original is None and changes is None:
            continue
        result: list[Json] = (
            _merge_value(original, changes, list_how) if changes is not None else original or []
        )
        before = original if isinstance(original, list) else []
        merged[name] = _in_order(result, order, before=before, key=list_how.key or "")
    return names


def _check_order(changes: Json, order: Sequence[Any], how: Merge, name: str) -> None:
    known = [_identity(item, how.key or "") for item in order]
    for item in changes if isinstance(changes, list) else ():
        if isinstance(item, dict) and _DIRECTIVE in item:
            continue
        if _identity(item, how.key or "") not in known:
            raise PatchError(f"the order of {name} does not mention {item!r}, which the patch sets")


def _merge_list(original: list[Any], patch: list[Any], how: Merge) -> list[Any]:
    key = how.key or ""
    if not key:
        merged = list(dict.fromkeys([*original, *patch]))
        return _in_order(merged, patch, before=original, key=key)
    original, patch = _apply_element_directives(original, patch, key)
    merged = list(original)
    for item in patch:
        wanted = _identity(item, key)
        for index, existing in enumerate(merged):
            if _identity(existing, key) == wanted:
                merged[index] = _merge_object(existing, item, Merge(fields=how.fields))
                break
        else:
            merged.append(_without_directives(item))
    return _in_order(merged, patch, before=original, key=key)


def _apply_element_directives(
    original: list[Any], patch: list[Any], key: str
) -> tuple[list[Any], list[Any]]:
    plain = [item for item in patch if not (isinstance(item, dict) and _DIRECTIVE in item)]
    replace = False
    for item in patch:
        if not isinstance(item, dict):
            raise PatchError(f"an element of a list merged by {key!r} is an object, not {item!r}")
        match item.get(_DIRECTIVE):
            case None:
                pass
            case "delete":
                doomed = _identity(item, key)
                original = [kept for kept in original if _identity(kept, key) != doomed]
            case "replace":
                replace = True
            case unknown:
                raise PatchError(f"unknown {_DIRECTIVE} directive {unknown!r} in a list")
    return ([] if replace else original), plain


def _in_order(
    merged: list[Any], order: Sequence[Any], *, before: Sequence[Any], key: str
) -> list[Any]:
    """What the patch names in its order, what only the server knows in the server's order.

    Where the two meet, the order before the patch decides for elements that were there already.
    """
    wanted = [_identity(item, key) for item in order]
    known = [_identity(item, key) for item in before]
    patched = [item for item in merged if _identity(item, key) in wanted]
    others = [item for item in merged if _identity(item, key) not in wanted]
    patched.sort(key=lambda item: wanted.index(_identity(item, key)))
    result = []
    while others and patched:
        left, right = _identity(others[0], key), _identity(patched[0], key)
        both_known = left in known and right in known
        keeps_place = both_known and known.index(left) < known.index(right)
        result.append(others.pop(0) if keeps_place else patched.pop(0))
    return [*result, *patched, *others]


def _identity(item: Json, key: str) -> Json:
    if not key:
        return item
    if not isinstance(item, dict) or key not in item:
        raise PatchError(f"map: {item!r} does not contain declared merge key: {key}")
    return item[key]


def _without_directives(value: Json) -> Json:
    if isinstance(value, dict):
        return {
            name: _without_directives(item)
            for name, item in value.items()
            if not name.startswith("$") and item is not None
        }
    if isinstance(value, list):
        return [_without_directives(item) for item in value if not _is_directive(item)]
    return value


def _is_directive(item: Json) -> bool:
    return isinstance(item, dict) and _DIRECTIVE in item


def _as_list(value: Json, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise PatchError(f"{name} is a list, not {value!r}")
    return value
