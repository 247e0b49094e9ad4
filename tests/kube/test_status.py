"""What the server says becomes the error that tells a caller what to do."""

from __future__ import annotations

import json

import pytest

from hami.errors import (
    ConflictError,
    GoneError,
    KubeError,
    NotFoundError,
    ThrottledError,
    UnavailableError,
)
from hami.kube.status import error_from, parse_status


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (400, KubeError),
        (403, KubeError),
        (404, NotFoundError),
        (409, ConflictError),
        (410, GoneError),
        (422, KubeError),
        (429, ThrottledError),
        (500, UnavailableError),
        (503, UnavailableError),
        (504, UnavailableError),
    ],
)
def test_each_status_has_its_error(code: int, expected: type[KubeError]) -> None:
    body = json.dumps({"kind": "Status", "code": code, "reason": "R", "message": "why"}).encode()

    error = error_from(parse_status(body), code=code, what="GET /x")

    assert type(error) is expected
    assert error.status == code
    assert "GET /x" in str(error)
    assert "why" in str(error)


def test_a_failed_test_of_a_json_patch_is_a_conflict() -> None:
    status = parse_status(b'{"reason":"Invalid","message":"test failed","details":{}}')

    assert isinstance(error_from(status, code=422, what="w", testing=True), ConflictError)
    assert not isinstance(error_from(status, code=422, what="w"), ConflictError)


def test_an_invalid_field_in_a_json_patch_is_no_conflict() -> None:
    status = parse_status(b'{"details":{"causes":[{"field":"metadata.labels"}]}}')

    error = error_from(status, code=422, what="w", testing=True)

    assert type(error) is KubeError


def test_another_life_of_the_object_is_a_conflict() -> None:
    status = parse_status(b'{"details":{"causes":[{"field":"metadata.uid"}]}}')

    assert isinstance(error_from(status, code=422, what="w"), ConflictError)


@pytest.mark.parametrize(
    ("header", "body", "expected"),
    [
        ("7", b"{}", 7.0),
        (None, b'{"details":{"retryAfterSeconds":3}}', 3.0),
        ("0", b'{"details":{"retryAfterSeconds":3}}', 0.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", b"{}", None),
        ("-5", b"{}", None),
        ("inf", b"{}", None),
        ("nan", b"{}", None),
        (None, b"{}", None),
    ],
    ids=["header", "status", "header wins", "date", "negative", "endless", "no number", "absent"],
)
def test_retry_after_is_read_where_it_makes_sense(
    header: str | None, body: bytes, expected: float | None
) -> None:
    error = error_from(parse_status(body), code=429, what="w", retry_after=header)

    assert isinstance(error, ThrottledError)
    assert error.retry_after_seconds == expected


@pytest.mark.parametrize(
    "body",
    [b"<html>Bad Gateway</html>", b"", b"[]", b'{"code":"x"}', b"\xff\xfe" * 5000],
    ids=["html", "empty", "list", "wrong type", "not text"],
)
def test_a_body_that_is_no_status_is_quoted_and_bounded(body: bytes) -> None:
    error = error_from(parse_status(body), code=502, what="GET /x")

    assert isinstance(error, UnavailableError)
    assert len(str(error)) < 1000
