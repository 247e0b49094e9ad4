"""What all codecs share: JSON as HAMi's components write and read it, and the words of complaints.

Their readers match keys in any letter case and ignore keys they do not know; their writers escape
what HTML would mistake. Whoever reads here raises CodecError, with what was met cut short.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from hami.core.quantity import MAX_INT32
from hami.errors import CodecError

Shape = type[msgspec.Struct]
Inner = Mapping[Shape, Mapping[str, Shape]]
"""Of each shape, the keys whose value (or whose list's items) have a shape of their own."""


def encode(value: object) -> str:
    """Compact JSON with ``<``, ``>`` and ``&`` escaped."""
    text = msgspec.json.encode(value).decode()
    for character, escape in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(character, escape)
    return text


def spell(value: object, shape: Shape, inner: Inner) -> Any:  # noqa: ANN401 - raw JSON
    """The object with its keys in the spelling of ``shape``, without others; null is absent.

    Readers match keys in any letter case, so this stands before the strict conversion.
    """
    if not isinstance(value, dict):
        return value
    names = _spellings(shape)
    shapes = inner.get(shape, {})
    spelled: dict[str, object] = {}
    for key, item in value.items():
        name = names.get(key.lower())
        if name is None or item is None:
            continue
        if name not in shapes:
            spelled[name] = item
        elif isinstance(item, list):
            spelled[name] = [spell(each, shapes[name], inner) for each in item]
        else:
            spelled[name] = spell(item, shapes[name], inner)
    return spelled


@cache
def _spellings(shape: Shape) -> dict[str, str]:
    """Each key of ``shape`` by its lower-cased form; once a shape, for msgspec tells it slowly."""
    return {f.encode_name.lower(): f.encode_name for f in msgspec.structs.fields(shape)}


def bounded(number: int, what: str, *, highest: int = MAX_INT32) -> int:
    """The number, where it is from 0 to the highest.

    Raises:
        CodecError: It is not; the message begins with ``what``.
    """
    if not 0 <= number <= highest:
        raise CodecError(f"{what}: expected 0 to {highest}, met {number}")
    return number


def shown(text: str) -> str:
    """The text for a message, cut: annotations may be long."""
    return repr(text) if len(text) <= 60 else f"{text[:57]!r}..."
