"""Label selectors mean what they mean to the API server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami.core import selectors
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
