"""Scores of links: the worked example, round trips, and hostile text."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.core.codec_links import PairScores, decode_pair_scores, encode_pair_scores
from hami.core.quantity import MAX_INT32
from hami.errors import CodecError
from tests.support.strategies import any_text

GOLDEN = (
    '[{"uuid":"GPU-a","score":{"GPU-b":50,"GPU-c":1820}},'
    '{"uuid":"GPU-b","score":{"GPU-a":50,"GPU-c":10}},'
    '{"uuid":"GPU-c","score":{"GPU-a":1820,"GPU-b":10}}]'
)


def test_golden_scores() -> None:
    scores = {
        "GPU-a": {"GPU-b": 50, "GPU-c": 1820},
        "GPU-b": {"GPU-a": 50, "GPU-c": 10},
        "GPU-c": {"GPU-a": 1820, "GPU-b": 10},
    }

    assert encode_pair_scores(scores) == GOLDEN
    assert decode_pair_scores(GOLDEN) == scores


def test_a_device_alone_has_no_scores() -> None:
    assert encode_pair_scores({"GPU-a": {}}) == '[{"uuid":"GPU-a","score":{}}]'
    assert decode_pair_scores('[{"uuid":"GPU-a","score":{}}]') == {"GPU-a": {}}


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("null", {}),
        ("[]", {}),
        ('[{"UUID":"GPU-a","Score":{"gpu-B":-5},"colour":[]}]', {"GPU-a": {"gpu-B": -5}}),
        ('[{"uuid":"GPU-a"}]', {"GPU-a": {}}),
        ('[{"uuid":"GPU-a","score":null}]', {"GPU-a": {}}),
    ],
)
def test_readers_are_tolerant_where_hami_is(text: str, scores: PairScores) -> None:
    assert decode_pair_scores(text) == scores


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        pytest.param("", "pair scores", id="empty"),
        pytest.param("{}", "expected a JSON array", id="no_array"),
        pytest.param("[", "pair scores", id="no_json"),
        pytest.param("[null]", "pair scores", id="null_for_one"),
        pytest.param("[" * 5000, "pair scores", id="deep"),
        pytest.param("[{}]", "pair scores", id="no_uuid"),
        pytest.param('[{"uuid":""}]', "every uuid once", id="an_empty_uuid"),
        pytest.param('[{"uuid":"a"},{"uuid":"a"}]', "every uuid once", id="one_twice"),
        pytest.param('[{"uuid":"a","score":[1]}]', "pair scores", id="a_list_of_scores"),
        pytest.param('[{"uuid":"a","score":{"b":"1"}}]', "pair scores", id="text_for_a_score"),
        pytest.param('[{"uuid":"a","score":{"b":2147483648}}]', "size of a score", id="too_large"),
        pytest.param('[{"uuid":"a","score":{"b":-1e300}}]', "score", id="far_too_large"),
        pytest.param("[" + "{}," * 128 + "{}]", "number of devices", id="too_many_devices"),
        pytest.param(
            '[{"uuid":"a","score":{' + ",".join(f'"{i}":1' for i in range(129)) + "}}]",
            "number of scores",
            id="too_many_scores",
        ),
    ],
)
def test_what_is_no_score_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(CodecError, match=complaint):
        decode_pair_scores(text)


uuids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=10)


@forall(
    scores=st.dictionaries(
        uuids, st.dictionaries(uuids, st.integers(-MAX_INT32, MAX_INT32), max_size=4), max_size=4
    )
)
def test_what_is_written_is_read_back(scores: PairScores) -> None:
    assert decode_pair_scores(encode_pair_scores(scores)) == scores


@forall(text=any_text)
def test_hostile_text_is_read_or_refused(text: str) -> None:
    with suppress(CodecError):
        decode_pair_scores(text)
