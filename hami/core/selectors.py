"""Label selectors, in the API's syntax: ``a=b,c!=d,e in (x,y),f notin (z),g,!h``.

For the choice of nodes that a site makes in its settings, and in objects' own form for the pods
that a disruption budget covers. All requirements must hold; as in the API, ``!=`` and ``notin``
hold where the label is missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hami.core.objects import LabelSelector, LabelSelectorRequirement
from hami.errors import CodecError

_KEY: Final = r"(?P<key>(?:[a-zA-Z0-9.-]{1,253}/)?[a-zA-Z0-9](?:[-_.a-zA-Z0-9]{0,61}[a-zA-Z0-9])?)"
_WORD: Final = r"[-_.a-zA-Z0-9]{0,63}"
_FORMS: Final = (
    re.compile(rf"{_KEY}\s*(?P<op>==?|!=)\s*(?P<values>{_WORD})", re.ASCII),
    re.compile(rf"{_KEY}\s+(?P<op>in|notin)\s*\((?P<values>[^()]*)\)", re.ASCII),
    re.compile(rf"(?P<op>!?)\s*{_KEY}(?P<values>)", re.ASCII),
)
_PARTS: Final = re.compile(r",(?![^(]*\))")
"""A comma that is not between parentheses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One label: among ``values``, or there at all where these are None; or just not that."""

    key: str
    values: frozenset[str] | None
    wanted: bool

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether the labels meet it."""
        value = labels.get(self.key)
        among = value is not None and (self.values is None or value in self.values)
        return among is self.wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Requirements that must all hold; without any, everything is selected."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str] | None) -> bool:
        """Whether an object with these labels is selected."""
        return all(requirement.holds(labels or {}) for requirement in self.requirements)


EVERYTHING: Final = Selector()


def parse(text: str) -> Selector:
    """The selector that the text means.

    Raises:
        CodecError: It is none; the message shows the part that is not understood.
    """
    if not text.strip():
        return EVERYTHING
    return Selector(requirements=tuple(_requirement(part) for part in _PARTS.split(text)))


def of_object(selector: LabelSelector) -> Selector:
    """The selector that stands in an object.

    Raises:
        CodecError: It has an operator that is none.
    """
    exact = tuple(
        Requirement(key=key, values=frozenset({value}), wanted=True)
        for key, value in (selector.match_labels or {}).items()
    )
    return Selector(requirements=exact + tuple(map(_expression, selector.match_expressions or ())))


def _expression(expression: LabelSelectorRequirement) -> Requirement:
    key, values = expression.key, frozenset(expression.values or ())
    match expression.operator:
        case "In" | "NotIn" as operator:
            return Requirement(key=key, values=values, wanted=operator == "In")
        case "Exists" | "DoesNotExist" as operator:
            return Requirement(key=key, values=None, wanted=operator == "Exists")
        case other:
            raise CodecError(
                f"label selector: expected In, NotIn, Exists or DoesNotExist, met {other[:60]!r}"
            )


def _requirement(text: str) -> Requirement:
    match = next((m for form in _FORMS if (m := form.fullmatch(text.strip()))), None)
    if match is None:
        raise CodecError(f"expected a label selector such as a=b,c in (d,e), met {text[:60]!r}")
    operator = match["op"]
    if operator in {"", "!"}:
        return Requirement(key=match["key"], values=None, wanted=operator == "")
    values = frozenset(value.strip() for value in match["values"].split(","))
    return Requirement(key=match["key"], values=values, wanted=operator in {"=", "==", "in"})
