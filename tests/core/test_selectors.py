"""Label selectors mean what they mean to the API server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami.core import selectors
from hami.core.objects import LabelSelector, LabelSelectorRequirement
from hami.errors import CodecError
from tests.support.strategies import any_text

LABELS = {"pool": "gpu", "zone": "a", "example.com/tier": ""}


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("", True),
        ("pool=gpu", True),
        (" pool == gpu , zone=a ", True),
        ("pool=cpu", False),
        ("pool!=cpu", True),
        ("pool!=gpu", False),
        ("missing!=x", True),
        ("pool in (cpu, gpu),zone", True),
        ("pool in (cpu,tpu)", False),
        ("zone notin (b,c)", True),
        ("missing notin (b)", True),
        ("zone notin (a)", False),
        ("example.com/tier", True),
        ("example.com/tier=", True),
        ("!zone", False),
        ("!missing", True),
        ("pool=gpu,!zone", False),
    ],
)
def test_selector_matches(text: str, selected: bool) -> None:
    assert selectors.parse(text).matches(LABELS) is selected


def test_object_without_labels_is_selected_by_what_must_not_be() -> None:
    assert selectors.parse("!a,b!=c").matches(None)
    assert not selectors.parse("a").matches(None)


@pytest.mark.parametrize(
    "text", ["=", "a=b=c", "a in b", "a in (b", "a,,b", "a=b c", "in (a)", "-a", "a:b", "a>1"]
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(CodecError, match="label selector"):
        selectors.parse(text)


@given(any_text | st.text(alphabet="ab=!(), innotin", max_size=300))
def test_any_text_is_a_selector_or_refused(text: str) -> None:
    try:
        selectors.parse(text).matches(LABELS)
    except CodecError:
        return


@pytest.mark.parametrize(
    ("operator", "values", "selected"),
    [
        ("In", ["gpu", "cpu"], True),
        ("In", ["cpu"], False),
        ("NotIn", ["cpu"], True),
        ("NotIn", ["gpu"], False),
        ("Exists", None, True),
        ("DoesNotExist", None, False),
    ],
)
def test_selector_of_an_object_means_the_same(
    operator: str, values: list[str] | None, selected: bool
) -> None:
    expression = LabelSelectorRequirement(key="pool", operator=operator, values=values)
    selector = LabelSelector(match_labels={"zone": "a"}, match_expressions=[expression])

    assert selectors.of_object(selector).matches(LABELS) is selected
    assert not selectors.of_object(selector).matches({"pool": "gpu", "zone": "b"})
    assert selectors.of_object(LabelSelector()).matches(None)


def test_unknown_operator_is_refused() -> None:
    expression = LabelSelectorRequirement(key="a", operator="Near", values=["b"])
    with pytest.raises(CodecError, match="'Near'"):
        selectors.of_object(LabelSelector(match_expressions=[expression]))
