"""Strings by number, so that columns can hold them: vendors, models and modes.

Numbers are given as words come and never change; who has many words that nobody uses any more
starts a new set.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class Words:
    """Strings by number, so that columns can hold them."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._words: list[str] = []

    def __len__(self) -> int:
        return len(self._words)

    def knows(self, word: str) -> bool:
        """Whether the word has a number."""
        return word in self._numbers

    def __copy__(self) -> Words:
        twin = Words()
        twin._numbers, twin._words = dict(self._numbers), list(self._words)
        return twin

    def number(self, word: str) -> int:
        """The word's number, a new one if it was never seen."""
        found = self._numbers.get(word)
        if found is None:
            found = self._numbers[word] = len(self._words)
            self._words.append(word)
        return found

    def word(self, number: int) -> str:
        """The word of a number."""
        return self._words[number]

    def matching(self, accept: Sequence[str], *, inside: bool = False) -> npt.NDArray[np.bool_]:
        """For each number, whether its upper-cased word contains one of the (upper-cased) texts.

        With ``inside`` it is the other way round: whether the word is contained in one of them.
        """
        return np.array(
            [
                any((word in text) if inside else (text in word.upper()) for text in accept)
                for word in self._words
            ],
            np.bool_,
        )
