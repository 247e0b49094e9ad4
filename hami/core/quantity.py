"""Kubernetes resource quantities, exactly.

Grammar and suffixes as in the Kubernetes API (``1``, ``500m``, ``1.5Gi``, ``2e3``). Values are kept
as exact fractions, so that no rounding decides whether a pod fits. Input: text or numbers written
by users; nothing is trusted.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final, NewType, TypeGuard

from hami.errors import QuantityError

MiB = NewType("MiB", int)
"""Device memory in units of 2**20 bytes, the unit of every annotation."""
Percent = NewType("Percent", int)
"""Hundredths of one device's compute; above 100 only in sums and on scaled devices."""

MAX_INT32: Final = 2**31 - 1
"""The annotations' integers are 32 bits wide."""
BYTES_PER_MIB: Final = 2**20

_SUFFIXES: Final = {
    "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": Fraction(1),
    "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12),
    "P": Fraction(10**15), "E": Fraction(10**18),
    "Ki": Fraction(2**10), "Mi": Fraction(2**20), "Gi": Fraction(2**30), "Ti": Fraction(2**40),
    "Pi": Fraction(2**50), "Ei": Fraction(2**60),
}  # fmt: skip
_NUMBER: Final = re.compile(
    r"(?P<number>[+-]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30}))"
    r"(?:(?P<suffix>[numkMGTPE]|[KMGTPE]i)|[eE](?P<exponent>[+-]?\d{1,2}))?",
    re.ASCII,
)


def parse_quantity(value: object) -> Fraction:
    """The exact value of a Kubernetes quantity.

    Raises:
        QuantityError: It is not a quantity.
    """
    match = None
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        match = _NUMBER.fullmatch(_text(value))
    if match is None:
        raise QuantityError(f"expected a quantity such as 1 or 500m, met {_shown(value)}")
    number = Fraction(match["number"].rstrip("."))
    if match["exponent"] is not None:
        return number * Fraction(10) ** int(match["exponent"])
    return number * _SUFFIXES[match["suffix"] or ""]


def parse_whole(value: object, *, minimum: int = 0, maximum: int = MAX_INT32) -> int:
    """The value of a quantity that must be a whole number in ``[minimum, maximum]``.

    Raises:
        QuantityError: It is no quantity, has a fraction or is out of range.
    """
    exact = int(value) if _is_plain(value) else parse_quantity(value)
    if exact.denominator != 1:
        raise QuantityError(f"expected a whole number, met {_shown(value)}")
    if not minimum <= exact <= maximum:
        raise QuantityError(f"expected {minimum} to {maximum}, met {_shown(value)}")
    return int(exact)


def _is_plain(value: object) -> TypeGuard[str]:
    """Whether the value is digits alone, as nearly all are: they need no fraction."""
    return isinstance(value, str) and len(value) <= 30 and value.isascii() and value.isdigit()


def _text(value: object) -> str:
    """The value as text; Python writes no integer of thousands of digits in decimal."""
    if isinstance(value, int) and value.bit_length() > 128:
        return hex(value)
    return str(value)


def _shown(value: object) -> str:
    """The value for a message, cut: users may write megabytes."""
    text = repr(value[:60]) if isinstance(value, str) else _text(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
