"""A region's files, spoilt: for whoever reads them and must not break."""

from __future__ import annotations

import ctypes

from hypothesis import strategies as st

from hami.nodeagent.region_layout import Control, Usage

CONTENT = {"control": ctypes.sizeof(Control), "usage": ctypes.sizeof(Usage)}


def mutations(size: int) -> st.SearchStrategy[list[tuple[int, bytes]]]:
    """Places and what is written there: anywhere, but the first kilobytes most of the time."""
    places = st.one_of(st.integers(0, 4096), st.integers(0, size))
    words = st.one_of(
        st.binary(min_size=1, max_size=64),
        st.sampled_from([b"\xff" * 8, bytes(8), (2**63).to_bytes(8, "little")]),
    )
    return st.lists(st.tuples(places, words), max_size=24)


def mutated(content: bytes, changes: list[tuple[int, bytes]], length: int | None) -> bytes:
    changed = bytearray(content)
    for place, word in changes:
        changed[place : place + len(word)] = word
    return bytes(changed[:length])
