"""Label and field selectors, compiled once and matched often.

Owns both grammars, that of query strings and that of ``LabelSelector`` objects. Input comes from
clients; what cannot be read raises StatusError(400).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hami.sandbox.apiserver import answers

_KEY = r"[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?"
_TERM = re.compile(
    rf"""\s*(?:
        (?P<absent>!)\s*(?P<absent_key>{_KEY})
      | (?P<set_key>{_KEY})\s+(?P<set_operator>in|notin)\s*\((?P<values>[^()]*)\)
      | (?P<key>{_KEY})\s*(?:(?P<operator>==|!=|=|>|<)\s*(?P<value>[A-Za-z0-9._-]*))?
    )\s*(?:,|$)""",
    re.VERBOSE,
)
_FIELD_TERM = re.compile(r"(?P<path>[^=!]+?)\s*(?P<operator>==|!=|=)(?P<value>.*)", re.DOTALL)


class Operator(StrEnum):
    """How a requirement compares, in the words of ``matchExpressions``."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"
    GREATER = "Gt"
    LESS = "Lt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One condition on one label."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def is_met_by(self, labels: Mapping[str, str]) -> bool:
        """Whether the labels satisfy it; an absent label satisfies ``NotIn``."""
        value = labels.get(self.key)
        match self.operator:
            case Operator.IN:
                return value is not None and value in self.values
            case Operator.NOT_IN:
                return value is None or value not in self.values
            case Operator.EXISTS:
                return value is not None
            case Operator.DOES_NOT_EXIST:
                return value is None
        return value is not None and self._compares(value)

    def _compares(self, value: str) -> bool:
        try:
            met, bound = int(value), int(next(iter(self.values)))
        except ValueError:
            return False
        return met > bound if self.operator is Operator.GREATER else met < bound


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldTerm:
    """One condition on one field."""

    path: str
    value: str
    equal: bool = True


def matches_labels(requirements: Iterable[Requirement], labels: Mapping[str, str]) -> bool:
    """Whether every requirement is met; no requirements match everything."""
    return all(requirement.is_met_by(labels) for requirement in requirements)


def matches_fields(terms: Iterable[FieldTerm], fields: Mapping[str, str]) -> bool:
    """Whether every term holds; an absent field counts as the empty string."""
    return all((fields.get(term.path, "") == term.value) is term.equal for term in terms)


def parse_labels(text: str) -> tuple[Requirement, ...]:
    """The requirements of a ``labelSelector`` query; raises StatusError(400)."""
    requirements = []
    position = 0
    while position < len(text):
        term = _TERM.match(text, position)
        if term is None:
            raise answers.bad_request(f"unable to parse requirement: {text[position:]!r}")
        requirements.append(_requirement(term))
        position = term.end()
    return tuple(requirements)


def parse_fields(text: str, *, supported: Iterable[str]) -> tuple[FieldTerm, ...]:
    """The terms of a ``fieldSelector`` query; raises StatusError(400) for an unknown field."""
    known = {"metadata.name", "metadata.namespace", *supported}
    terms = []
    for part in filter(None, re.split(r"(?<!\\),", text)):
        match = _FIELD_TERM.fullmatch(part.strip())
        if match is None:
            raise answers.bad_request(f"invalid selector: {part!r}; can't understand it")
        if match["path"] not in known:
            raise answers.bad_request(f"field label not supported: {match['path']}")
        value = re.sub(r"\\([\\,=])", r"\1", match["value"])
        terms.append(FieldTerm(path=match["path"], value=value, equal=match["operator"] != "!="))
    return tuple(terms)


def from_object(selector: Mapping[str, Any] | None) -> tuple[Requirement, ...]:
    """The requirements of a ``LabelSelector`` object; raises StatusError(400)."""
    selector = selector or {}
    try:
        equalities = [
            Requirement(key=key, operator=Operator.IN, values=frozenset((value,)))
            for key, value in (selector.get("matchLabels") or {}).items()
        ]
        expressions = [
            Requirement(
                key=expression["key"],
                operator=Operator(expression["operator"]),
                values=frozenset(expression.get("values") or ()),
            )
            for expression in selector.get("matchExpressions") or ()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise answers.bad_request(f"not a label selector: {selector!r}") from error
    return (*equalities, *expressions)


def _requirement(term: re.Match[str]) -> Requirement:
    if term["absent"]:
        return Requirement(key=term["absent_key"], operator=Operator.DOES_NOT_EXIST)
    if term["set_operator"]:
        operator = Operator.IN if term["set_operator"] == "in" else Operator.NOT_IN
        values = frozenset(value.strip() for value in term["values"].split(","))
        return Requirement(key=term["set_key"], operator=operator, values=values)
    if term["operator"] is None:
        return Requirement(key=term["key"], operator=Operator.EXISTS)
    comparison = {
        "!=": Operator.NOT_IN,
        ">": Operator.GREATER,
        "<": Operator.LESS,
    }.get(term["operator"], Operator.IN)
    if comparison in (Operator.GREATER, Operator.LESS) and not term["value"].lstrip("-").isdigit():
        raise answers.bad_request(
            f"for 'Gt', 'Lt' operators, the value must be an integer: {term['value']!r}"
        )
    return Requirement(key=term["key"], operator=comparison, values=frozenset((term["value"],)))
