"""Resource quantities as API servers write them back: in canonical form.

A pod that asks for ``nvidia.com/gpumem: 3000`` is served with ``3k``: clients have to read that.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

from hami.core.quantity import parse_quantity

_NANO: Final = 10**9
_BINARY: Final = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL: Final = {-9: "n", -6: "u", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P"}
_LARGEST_EXPONENT: Final = 18


def canonical(value: object) -> str:
    """The same quantity with the largest suffix that needs no fraction.

    The family of suffixes stays as written: powers of 1024, of 1000, or exponents. Raises
    QuantityError.
    """
    exact = parse_quantity(value)
    text = str(value)
    if text.endswith("i") and abs(exact) >= 1024:
        return _binary(math.ceil(exact))
    if "e" in text or (text[-1:] != "E" and "E" in text):
        amount, exponent = _scaled(exact)
        return f"{amount}e{exponent}" if exponent else str(amount)
    return canonical_value(exact)


def canonical_value(exact: Fraction) -> str:
    """A value in canonical form with a suffix of powers of 1000."""
    amount, exponent = _scaled(exact)
    return f"{amount}{_DECIMAL.get(exponent, 'E')}"


def _binary(amount: int) -> str:
    power = 0
    while amount % 1024 == 0 and power < len(_BINARY) - 1:
        amount //= 1024
        power += 1
    return f"{amount}{_BINARY[power]}"


def _scaled(exact: Fraction) -> tuple[int, int]:
    """The quantity as a whole number times a power of 1000, rounded up beyond 10**-9."""
    amount, exponent = math.ceil(exact * _NANO), -9
    if amount == 0:
        return 0, 0
    while amount % 1000 == 0 and exponent < _LARGEST_EXPONENT:
        amount //= 1000
        exponent += 3
    return amount, exponent
