from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami.errors import CodecError
from hami.nodeagent import claims
from hami.nodeagent.claims import Claim

texts = st.text(max_size=40)


def make_claim(uid: str = "uid-1") -> Claim:
    return Claim(
        ids=("GPU-a-0",),
        uid=uid,
        namespace="team",
        pod="train-0",
        container="main",
        index=0,
        init=False,
        devices=("GPU-a",),
    )


@given(
    st.builds(
        Claim,
        ids=st.lists(texts, max_size=4).map(tuple),
        uid=texts,
        namespace=texts,
        pod=texts,
        container=texts,
        index=st.integers(0, 100),
        init=st.booleans(),
        devices=st.lists(texts, max_size=4).map(tuple),
        library=texts,
        created_ns=st.integers(0, 2**62),
    )
)
def test_claim_survives_a_restart(tmp_path_factory: pytest.TempPathFactory, claim: Claim) -> None:
    directory = tmp_path_factory.getbasetemp()

    claims.write(directory, claim)

    assert claims.read(directory) == claim


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="no file"),
        pytest.param(b"", id="empty file"),
        pytest.param(b'{"version":1,"ids":["x"],', id="half a file"),
        pytest.param(b"[]", id="another shape"),
        pytest.param(b'{"version":1}', id="fields missing"),
        pytest.param(b" " * claims.MAX_BYTES + b"{}", id="too large"),
    ],
)
def test_unreadable_claim_is_an_error_that_names_the_file(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / claims.FILE).write_bytes(content)

    with pytest.raises(CodecError, match=str(tmp_path / claims.FILE)):
        claims.read(tmp_path)


def test_claim_of_another_version_is_refused(tmp_path: Path) -> None:
    claims.write(tmp_path, make_claim())
    path = tmp_path / claims.FILE
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2'))

    with pytest.raises(CodecError, match="expected version 1, met 2"):
        claims.read(tmp_path)
