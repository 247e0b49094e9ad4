"""The protobuf bodies of kubectl's own commands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami.sandbox.apiserver import StatusError
from hami.sandbox.apiserver.protobuf import decode_protobuf


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return bytes((number << 3, value))
    return bytes((number << 3 | 2, len(value))) + value


def envelope(kind: str, *fields: bytes) -> bytes:
    type_meta = field(1, field(1, b"v1") + field(2, kind.encode()))
    return b"k8s\x00" + type_meta + field(2, b"".join(fields))


def test_quota_is_read_with_its_quantities() -> None:
    metadata = field(1, field(1, b"q") + field(11, field(1, b"a") + field(2, b"b")))
    hard = field(1, field(1, b"pods") + field(2, field(1, b"10")))

    decoded = decode_protobuf(envelope("ResourceQuota", metadata, field(2, hard)))

    assert decoded == {
        "kind": "ResourceQuota",
        "apiVersion": "v1",
        "metadata": {"name": "q", "labels": {"a": "b"}},
        "spec": {"hard": {"pods": "10"}},
    }


def test_delete_options_are_read() -> None:
    preconditions = field(2, field(1, b"u1"))

    decoded = decode_protobuf(envelope("DeleteOptions", field(1, 0), preconditions))

    assert decoded == {"gracePeriodSeconds": 0, "preconditions": {"uid": "u1"}}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", 400),
        (b"{}", 400),
        (envelope("Pod"), 501),
        (envelope("Namespace", field(9, b"x")), 400),
        (envelope("Namespace", field(1, 7)), 400),
        (envelope("Namespace", b"\x0a\x7f"), 400),
        (envelope("Namespace", b"\x09" + b"\x00" * 8), 400),
        (envelope("Namespace", b"\x80" * 12), 400),
        (envelope("ConfigMap", field(1, field(1, b"\xff"))), 400),
    ],
)
def test_what_cannot_be_read_is_refused_rather_than_dropped(body: bytes, code: int) -> None:
    with pytest.raises(StatusError) as caught:
        decode_protobuf(body)
    assert caught.value.code == code


@given(
    kind=st.sampled_from(["Namespace", "ResourceQuota", "PodDisruptionBudget", "Eviction", "Role"]),
    raw=st.binary(max_size=60),
)
def test_arbitrary_bytes_are_read_or_refused(kind: str, raw: bytes) -> None:
    refused = None
    try:
        decoded = decode_protobuf(envelope(kind, raw))
    except StatusError as error:
        refused = error.code
    else:
        assert decoded["kind"] == kind
    assert refused in (None, 400)
