"""Handshakes, user lists and labels."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.core import codec
from hami.errors import CodecError
from tests.support.strategies import any_text

ASKED = datetime(2026, 8, 21, 7, 15, 4, tzinfo=UTC)


def test_golden_handshake_question_is_written_and_read() -> None:
    assert codec.encode_handshake_request(ASKED) == "Requesting_2026-08-21 07:15:04"
    assert codec.decode_handshake_request("Requesting_2026-08-21 07:15:04") == ASKED


def test_handshake_question_is_written_in_utc() -> None:
    there = ASKED.astimezone(timezone(timedelta(hours=-7)))

    assert codec.encode_handshake_request(there) == "Requesting_2026-08-21 07:15:04"


def test_golden_handshake_report_is_no_open_question() -> None:
    report = codec.encode_handshake_report(ASKED)

    assert report == "Reported_2026-08-21 07:15:04"
    assert codec.decode_handshake_request(report) is None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("Reported_2026-08-21 07:15:31.10 +0000 UTC", id="a_report_in_another_layout"),
        pytest.param("Reported 2026-08-21 07:15:31", id="a_report_of_an_old_agent"),
        pytest.param("Deleted_2026-08-21 07:15:04", id="a_deletion_of_an_old_controller"),
    ],
)
def test_other_handshake_values_are_no_open_question(text: str) -> None:
    assert codec.decode_handshake_request(text) is None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("Requesting", id="no_time"),
        pytest.param("Requesting_", id="an_empty_time"),
        pytest.param("Requesting_soon", id="a_word"),
        pytest.param("Requesting_2026-13-01 00:00:00", id="a_thirteenth_month"),
        pytest.param("Requesting_2026-08-21T07:15:04Z", id="another_layout"),
        pytest.param("Reported_Requesting_2026-08-21 07:15:04", id="a_word_before_the_time"),
    ],
)
def test_handshake_question_without_a_readable_time_is_refused(text: str) -> None:
    with pytest.raises(CodecError, match="expected Requesting_<time>"):
        codec.decode_handshake_request(text)


@forall(when=st.datetimes(min_value=datetime(1000, 1, 1)))
def test_handshake_time_survives_to_the_second(when: datetime) -> None:
    asked = when.replace(tzinfo=UTC)

    read = codec.decode_handshake_request(codec.encode_handshake_request(asked))

    assert read == asked.replace(microsecond=0)


@forall(text=any_text | any_text.map("Requesting_{}".format))
def test_any_handshake_is_read_or_refused_as_malformed(text: str) -> None:
    try:
        asked = codec.decode_handshake_request(text)
    except CodecError:
        return

    assert asked is None or asked.tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(None, (), id="an_absent_list_is_empty"),
        pytest.param("", (), id="a_blank_list_is_empty"),
        pytest.param(" , ,", (), id="empty_members_are_dropped"),
        pytest.param("a100, v100", ("a100", "v100"), id="members_are_trimmed"),
        pytest.param("GPU-B,GPU-a", ("GPU-B", "GPU-a"), id="order_and_case_stay"),
    ],
)
def test_user_lists_are_split_and_trimmed(text: str | None, expected: tuple[str, ...]) -> None:
    assert codec.split_list(text) == expected


def test_node_label_is_left_out_where_the_name_is_too_long() -> None:
    assert codec.node_label("n" * 63) == {"hami.io/vgpu-node": "n" * 63}
    assert codec.node_label("n" * 64) == {}
