"""Lines and events: what a broken one means is decided without a connection."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami.core.objects import Pod
from hami.errors import CodecError, GoneError, UnavailableError
from hami.kube.watching import (
    Added,
    Bookmark,
    Deleted,
    Event,
    Key,
    LineSplitter,
    Modified,
    Unreadable,
    decode_line,
)

DECODE = msgspec.json.Decoder(Pod).decode


def line(type_: str, **obj: Any) -> bytes:
    return json.dumps({"type": type_, "object": obj}).encode()


def meta(**fields: Any) -> dict[str, Any]:
    return {"name": "a", "namespace": "ns", "resourceVersion": "7", "uid": "u", **fields}


def read(text: bytes) -> tuple[Event[Pod], str]:
    return decode_line(text, DECODE)


@given(
    lines=st.lists(st.binary(max_size=40).filter(lambda b: b"\n" not in b)),
    cuts=st.lists(st.integers(min_value=0, max_value=500)),
)
def test_lines_come_out_whole_however_the_stream_is_cut(
    lines: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(text + b"\n" for text in lines)
    splitter = LineSplitter(max_bytes=100)

    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[i:j] for i, j in itertools.pairwise(edges)]
    met = [text for piece in pieces for text in splitter.feed(piece)]

    assert met == [text for text in lines if text and not text.isspace()]


@pytest.mark.parametrize("pieces", [[b"x" * 101], [b"x" * 60, b"x" * 41], [b"x" * 101 + b"\n"]])
def test_a_line_beyond_the_bound_is_refused_before_it_is_complete(pieces: list[bytes]) -> None:
    splitter = LineSplitter(max_bytes=100)

    with pytest.raises(CodecError, match="at most 100 bytes"):
        list(map(splitter.feed, pieces))


def test_each_type_of_event_is_told_with_its_version() -> None:
    pod = msgspec.convert({"metadata": meta()}, Pod)

    assert read(line("ADDED", metadata=meta())) == (Added(object=pod), "7")
    assert read(line("MODIFIED", metadata=meta())) == (Modified(object=pod), "7")
    gone = Deleted(key=Key("ns", "a"), resource_version="7")
    assert read(line("DELETED", metadata=meta())) == (gone, "7")
    bookmark = line("BOOKMARK", metadata={"resourceVersion": "9", "creationTimestamp": None})
    assert read(bookmark) == (Bookmark(resource_version="9"), "9")


def test_an_object_that_cannot_be_read_concerns_itself_alone() -> None:
    event, version = read(line("MODIFIED", metadata=meta(), spec={"containers": "many"}))

    assert isinstance(event, Unreadable)
    assert event.key == Key("ns", "a")
    assert "containers" in event.error
    assert version == "7"


def test_a_deletion_counts_even_where_the_object_cannot_be_read() -> None:
    event, _ = read(line("DELETED", metadata=meta(), spec=[]))

    assert event == Deleted(key=Key("ns", "a"), resource_version="7")


def test_an_expired_version_asks_for_a_new_list() -> None:
    with pytest.raises(GoneError):
        read(line("ERROR", kind="Status", code=410, reason="Expired", message="too old"))


@pytest.mark.parametrize("status", [{"code": 500, "reason": "InternalError"}, {}, {"code": "?"}])
def test_any_other_error_of_the_server_is_worth_another_try(status: dict[str, Any]) -> None:
    with pytest.raises(UnavailableError):
        read(line("ERROR", **status))


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[]",
        b"null",
        b'"ADDED"',
        b'{"type":"ADDED"}',
        b'{"type":7,"object":{}}',
        b"\xff\xfe\x00",
        line("ADDED"),
        line("ADDED", metadata={"name": "a"}),
        line("ADDED", metadata={"resourceVersion": "7"}),
        line("ADDED", metadata={"name": 7, "resourceVersion": "7"}),
        line("DELETED", metadata=[]),
        line("BOOKMARK", metadata={}),
        line("REMOVED", metadata=meta()),
        line("", metadata=meta()),
    ],
)
def test_a_line_that_names_nothing_ends_the_trust_in_the_stream(text: bytes) -> None:
    with pytest.raises(CodecError):
        read(text)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_raise_anything_else(text: bytes) -> None:
    with pytest.raises((CodecError, UnavailableError)):
        read(text)
