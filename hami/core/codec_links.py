"""The node annotation with the scores of the links between a node's devices.

What cannot be read is refused as a whole; the caller keeps the node's devices and goes on without
scores, for they only say what is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from hami.core import wire
from hami.core.codec import MAX_DEVICES
from hami.core.quantity import MAX_INT32
from hami.core.wire import bounded, shown
from hami.errors import CodecError

PairScores = dict[str, dict[str, int]]
"""Of each device to each other, by UUID; a score may be negative."""


class _WireScores(msgspec.Struct, frozen=True):
    uuid: str
    score: dict[str, int] = {}


_INNER: Final[wire.Inner] = {}


def encode_pair_scores(scores: Mapping[str, Mapping[str, int]]) -> str:
    """The scores in the given order."""
    return wire.encode([_WireScores(uuid=u, score=dict(links)) for u, links in scores.items()])


def decode_pair_scores(text: str) -> PairScores:
    """The scores of each device to each other.

    Raises:
        CodecError: The text is no JSON array of devices with scores, lists more than
            ``MAX_DEVICES`` or one twice, or has a score beyond 32 bits.
    """
    try:
        tree = msgspec.json.decode(text)
        if tree is None:
            return {}
        if not isinstance(tree, list):
            raise CodecError(f"expected a JSON array of scores, met {type(tree).__name__}")
        bounded(len(tree), "number of devices", highest=MAX_DEVICES)
        rows = [msgspec.convert(wire.spell(row, _WireScores, _INNER), _WireScores) for row in tree]
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        raise CodecError(f"pair scores: {error}") from error
    scores: PairScores = {}
    for row in rows:
        if not row.uuid or row.uuid in scores:
            raise CodecError(f"expected every uuid once, met {shown(row.uuid)} again or empty")
        bounded(len(row.score), "number of scores", highest=MAX_DEVICES)
        for score in row.score.values():
            bounded(abs(score), "size of a score", highest=MAX_INT32)
        scores[row.uuid] = row.score
    return scores
