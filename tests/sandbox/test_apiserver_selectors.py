"""Label and field selectors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami.sandbox.apiserver import StatusError, selectors

KEYS = st.sampled_from(["tier", "app", "example.com/zone"])
VALUES = st.sampled_from(["web", "db", "1", "20", ""])
LABELS = st.dictionaries(KEYS, VALUES)


@pytest.mark.parametrize(
    ("text", "labels", "matches"),
    [
        ("", {}, True),
        ("tier=web", {"tier": "web"}, True),
        ("tier==web", {"tier": "db"}, False),
        ("tier=", {"tier": ""}, True),
        ("tier=", {}, False),
        ("tier!=web", {}, True),
        ("tier!=web", {"tier": "web"}, False),
        ("tier in (web, db)", {"tier": "db"}, True),
        ("tier in (web,db),app", {"tier": "db"}, False),
        ("tier notin (web)", {}, True),
        ("tier notin (web)", {"tier": "web"}, False),
        ("tier", {"tier": ""}, True),
        ("!tier", {"tier": ""}, False),
        ("! tier , app", {"app": "x"}, True),
        ("size>9", {"size": "10"}, True),
        ("size<9", {"size": "10"}, False),
        ("size>9", {"size": "large"}, False),
        ("example.com/zone=a,app=b", {"example.com/zone": "a", "app": "b"}, True),
    ],
)
def test_label_selector_selects_as_written(
    text: str, labels: dict[str, str], matches: bool
) -> None:
    assert selectors.matches_labels(selectors.parse_labels(text), labels) is matches


@pytest.mark.parametrize("text", ["=x", "a in b", "a in (b", "a=b=c", "a b", "a>x", "a,,b"])
def test_unreadable_label_selector_is_a_bad_request(text: str) -> None:
    with pytest.raises(StatusError) as caught:
        selectors.parse_labels(text)
    assert caught.value.code == 400


@given(key=KEYS, values=st.sets(VALUES, min_size=1), labels=LABELS)
def test_in_and_notin_are_each_others_opposite(
    key: str, values: set[str], labels: dict[str, str]
) -> None:
    listed = ",".join(sorted(values))
    chosen = selectors.matches_labels(selectors.parse_labels(f"{key} in ({listed})"), labels)
    spared = selectors.matches_labels(selectors.parse_labels(f"{key} notin ({listed})"), labels)
    assert chosen is not spared


@given(left=KEYS, right=KEYS, labels=LABELS)
def test_a_comma_means_and(left: str, right: str, labels: dict[str, str]) -> None:
    def matches(text: str) -> bool:
        return selectors.matches_labels(selectors.parse_labels(text), labels)

    assert matches(f"{left},!{right}") is (matches(left) and matches(f"!{right}"))


@given(labels=LABELS)
def test_match_labels_select_like_equalities(labels: dict[str, str]) -> None:
    text = ",".join(f"{key}={value}" for key, value in labels.items())
    from_object = selectors.from_object({"matchLabels": labels})

    assert set(from_object) == set(selectors.parse_labels(text))
    assert selectors.matches_labels(from_object, labels)


@pytest.mark.parametrize(
    "selector",
    [{"matchExpressions": [{"key": "a"}]}, {"matchLabels": 3}, {"matchExpressions": [3]}],
)
def test_object_that_is_no_label_selector_is_a_bad_request(selector: dict[str, object]) -> None:
    with pytest.raises(StatusError, match="not a label selector"):
        selectors.from_object(selector)


def test_field_selector_compares_and_unescapes() -> None:
    terms = selectors.parse_fields(
        r"spec.nodeName=n1,status.phase!=Failed,reason=a\,b",
        supported=["spec.nodeName", "status.phase", "reason"],
    )

    assert selectors.matches_fields(terms, {"spec.nodeName": "n1", "reason": "a,b"})
    assert not selectors.matches_fields(terms, {"spec.nodeName": "n2", "reason": "a,b"})


@pytest.mark.parametrize("text", ["spec.colour=red", "nothing"])
def test_field_selector_of_an_unknown_field_is_a_bad_request(text: str) -> None:
    with pytest.raises(StatusError):
        selectors.parse_fields(text, supported=[])
