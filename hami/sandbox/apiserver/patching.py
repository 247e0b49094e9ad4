"""JSON patch (RFC 6902) and JSON merge patch (RFC 7386).

Pure functions on decoded JSON; a patch that does not fit raises PatchError. The strategic merge
patch has its own module, since it needs to know the types it merges.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from hami.errors import SandboxError

MAX_OPERATIONS: Final = 10_000
_INDEX: Final = re.compile(r"0|[1-9][0-9]*")
_MISSING: Final = object()

Json = Any
"""Any decoded JSON value."""


class PatchError(SandboxError):
    """The patch is malformed or does not fit the document."""


def apply_json_patch(document: Json, operations: Json) -> Json:
    """The document after the operations in order, all of them or PatchError.

    The document given may be changed on the way. As in kube-apiserver, ``test`` for null also
    holds where there is no such member.
    """
    if not isinstance(operations, list):
        raise PatchError("a JSON patch is a list of operations")
    if len(operations) > MAX_OPERATIONS:
        raise PatchError(f"the patch has {len(operations)} operations, at most {MAX_OPERATIONS}")
    for operation in operations:
        document = _apply_operation(document, operation)
    return document


def apply_merge_patch(document: Json, patch: Json) -> Json:
    """The document with the patch merged into it: null deletes, lists are replaced."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(document) if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = apply_merge_patch(merged.get(name), value)
    return merged


def equal(left: Json, right: Json) -> bool:
    """Whether two JSON values are the same; unlike in Python, true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def _apply_operation(document: Json, operation: Json) -> Json:
    if not isinstance(operation, dict) or not isinstance(operation.get("path"), str):
        raise PatchError(f"not a JSON patch operation: {operation!r}")
    apply = _OPERATIONS.get(str(operation.get("op")))
    if apply is None:
        raise PatchError(f"unknown JSON patch operation: {operation.get('op')!r}")
    return apply(document, operation)


def _add(document: Json, operation: Mapping[str, Any]) -> Json:
    return _insert(document, operation["path"], copy.deepcopy(_value(operation)))


def _remove(document: Json, operation: Mapping[str, Any]) -> Json:
    parent, last = _parent(document, operation["path"])
    _lookup(parent, last, operation["path"])
    del parent[_position(parent, last) if isinstance(parent, list) else last]
    return document


def _replace(document: Json, operation: Mapping[str, Any]) -> Json:
    value = copy.deepcopy(_value(operation))
    if not operation["path"]:
        return value
    parent, last = _parent(document, operation["path"])
    _lookup(parent, last, operation["path"])
    parent[_position(parent, last) if isinstance(parent, list) else last] = value
    return document


def _move(document: Json, operation: Mapping[str, Any]) -> Json:
    source = _source(operation)
    if operation["path"].startswith(f"{source}/"):
        raise PatchError(f"cannot move {source} into itself")
    value = _find(document, source)
    return _insert(_remove(document, {"path": source}), operation["path"], value)


def _copy(document: Json, operation: Mapping[str, Any]) -> Json:
    return _insert(document, operation["path"], copy.deepcopy(_find(document, _source(operation))))


def _test(document: Json, operation: Mapping[str, Any]) -> Json:
    expected = _value(operation)
    try:
        met = _find(document, operation["path"])
    except PatchError:
        met = None
        if expected is not None:
            raise
    if not equal(met, expected):
        raise PatchError(f"test of {operation['path']} failed: expected {expected!r}, met {met!r}")
    return document


_OPERATIONS: Final[Mapping[str, Callable[[Any, Mapping[str, Any]], Any]]] = {
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "move": _move,
    "copy": _copy,
    "test": _test,
}


def _value(operation: Mapping[str, Any]) -> Json:
    value = operation.get("value", _MISSING)
    if value is _MISSING:
        raise PatchError(f"{operation['op']} of {operation['path']} has no value")
    return value


def _source(operation: Mapping[str, Any]) -> str:
    source = operation.get("from")
    if not isinstance(source, str):
        raise PatchError(f"{operation['op']} to {operation['path']} has no from")
    return source


def _insert(document: Json, path: str, value: Json) -> Json:
    if not path:
        return value
    parent, last = _parent(document, path)
    if isinstance(parent, dict):
        parent[last] = value
        return document
    position = len(parent) if last == "-" else _position(parent, last, beyond=1)
    parent.insert(position, value)
    return document


def _find(document: Json, path: str) -> Json:
    for part in _parts(path):
        document = _lookup(document, part, path)
    return document


def _parent(document: Json, path: str) -> tuple[Any, str]:
    parts = _parts(path)
    if not parts:
        raise PatchError("the whole document cannot be removed")
    for part in parts[:-1]:
        document = _lookup(document, part, path)
    if not isinstance(document, dict | list):
        raise PatchError(f"there is no {path}: its parent is no object and no list")
    return document, parts[-1]


def _lookup(parent: Json, part: str, path: str) -> Json:
    if isinstance(parent, dict) and part in parent:
        return parent[part]
    if isinstance(parent, list):
        return parent[_position(parent, part)]
    raise PatchError(f"there is no {path}: {part!r} is missing")


def _position(items: list[Any], part: str, *, beyond: int = 0) -> int:
    if not _INDEX.fullmatch(part) or int(part) >= len(items) + beyond:
        raise PatchError(f"index {part!r} is not one of a list of {len(items)}")
    return int(part)


def _parts(path: str) -> list[str]:
    if not path:
        return []
    if not path.startswith("/"):
        raise PatchError(f"not a JSON pointer: {path!r}")
    return [part.replace("~1", "/").replace("~0", "~") for part in path[1:].split("/")]
