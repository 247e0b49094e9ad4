"""Quantities are read exactly, as the Kubernetes API writes them, or refused by name."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami.core.quantity import MAX_INT32, parse_quantity, parse_whole
from hami.errors import CodecError, QuantityError

SUFFIXES = {
    "n": Fraction(10) ** -9, "u": Fraction(10) ** -6, "m": Fraction(10) ** -3, "": Fraction(1),
    "k": Fraction(10) ** 3, "M": Fraction(10) ** 6, "G": Fraction(10) ** 9,
    "T": Fraction(10) ** 12, "P": Fraction(10) ** 15, "E": Fraction(10) ** 18,
    "Ki": Fraction(1024), "Mi": Fraction(1024) ** 2, "Gi": Fraction(1024) ** 3,
    "Ti": Fraction(1024) ** 4, "Pi": Fraction(1024) ** 5, "Ei": Fraction(1024) ** 6,
}  # fmt: skip

digits = st.text("0123456789", min_size=1, max_size=20)
signs = st.sampled_from(["", "+", "-"])


def decimal(sign: str, whole: str, part: str) -> Fraction:
    value = Fraction(int(whole or "0")) + Fraction(int(part or "0"), 10 ** len(part))
    return -value if sign == "-" else value


@given(sign=signs, whole=digits, part=st.just("") | digits, suffix=st.sampled_from([*SUFFIXES]))
def test_number_with_suffix_is_that_multiple(sign: str, whole: str, part: str, suffix: str) -> None:
    text = f"{sign}{whole}{'.' if part else ''}{part}{suffix}"

    assert parse_quantity(text) == decimal(sign, whole, part) * SUFFIXES[suffix]


@given(sign=signs, whole=digits, exponent=st.integers(-99, 99), letter=st.sampled_from("eE"))
def test_number_with_exponent_is_that_power_of_ten(
    sign: str, whole: str, exponent: int, letter: str
) -> None:
    text = f"{sign}{whole}{letter}{exponent}"

    assert parse_quantity(text) == decimal(sign, whole, "") * Fraction(10) ** exponent


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("1.", Fraction(1), id="a_trailing_point_is_allowed"),
        pytest.param(".5", Fraction(1, 2), id="a_leading_point_is_allowed"),
        pytest.param("-.5", Fraction(-1, 2), id="a_sign_may_stand_before_it"),
        pytest.param("1E", Fraction(10**18), id="a_lone_capital_e_is_exa"),
        pytest.param("1E2", Fraction(100), id="a_capital_e_with_digits_is_an_exponent"),
        pytest.param(3, Fraction(3), id="integers_are_taken_as_they_are"),
        pytest.param(1.5, Fraction(3, 2), id="floats_are_read_as_they_print"),
        pytest.param(0.1, Fraction(1, 10), id="floats_do_not_bring_their_binary_rest"),
        pytest.param(1e21, Fraction(10**21), id="floats_may_print_an_exponent"),
    ],
)
def test_less_common_spellings_are_read(value: object, expected: Fraction) -> None:
    assert parse_quantity(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("", id="nothing"),
        pytest.param("abc", id="a_word"),
        pytest.param(".", id="a_point_alone"),
        pytest.param("1e", id="an_exponent_without_digits"),
        pytest.param("1e100", id="an_exponent_beyond_reason"),
        pytest.param("1i", id="half_a_suffix"),
        pytest.param("1ki", id="a_suffix_in_the_wrong_case"),
        pytest.param("1K", id="kilo_in_the_wrong_case"),
        pytest.param("1 Gi", id="a_space_inside"),
        pytest.param(" 1", id="a_space_before"),
        pytest.param("1\n", id="a_line_end"),
        pytest.param("0x10", id="hexadecimal"),
        pytest.param("1_000", id="python_underscores"),
        pytest.param("٣", id="digits_of_another_script"),
        pytest.param("--1", id="two_signs"),
        pytest.param("1,5", id="a_comma"),
        pytest.param("9" * 31, id="too_many_digits"),
        pytest.param("9" * 1_000_000, id="a_megabyte_of_digits"),
        pytest.param(10**5000, id="an_integer_python_does_not_print"),
        pytest.param(float("nan"), id="not_a_number"),
        pytest.param(float("inf"), id="infinity"),
        pytest.param(True, id="a_truth_value"),
        pytest.param(None, id="null"),
        pytest.param(["1"], id="a_list"),
    ],
)
def test_what_is_no_quantity_is_refused_in_few_words(value: object) -> None:
    with pytest.raises(QuantityError, match="expected a quantity") as caught:
        parse_quantity(value)

    assert len(str(caught.value)) < 200


@given(value=st.text(st.characters()) | st.floats() | st.integers() | st.none())
def test_any_value_is_read_or_refused_as_malformed(value: object) -> None:
    try:
        result = parse_quantity(value)
    except CodecError:
        return

    assert isinstance(result, Fraction)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("0", 0, id="zero"),
        pytest.param("3k", 3000, id="a_suffix"),
        pytest.param("1500m", None, id="a_fraction_in_thousandths"),
        pytest.param("2000m", 2, id="thousandths_that_make_a_whole"),
        pytest.param("1.0", 1, id="a_fraction_of_zero"),
        pytest.param("0.5", None, id="a_half"),
        pytest.param("-1", None, id="a_negative_number"),
        pytest.param(str(MAX_INT32), MAX_INT32, id="the_largest"),
        pytest.param(str(MAX_INT32 + 1), None, id="one_more_than_the_largest"),
        pytest.param("1e99", None, id="a_huge_number"),
    ],
)
def test_whole_numbers_must_be_whole_and_in_range(text: str, expected: int | None) -> None:
    if expected is not None:
        assert parse_whole(text) == expected
        return

    with pytest.raises(QuantityError, match=r"expected (a whole number|0 to 2147483647), met"):
        parse_whole(text)


def test_range_of_a_whole_number_is_the_callers() -> None:
    assert parse_whole("100", minimum=1, maximum=100) == 100
    with pytest.raises(QuantityError, match="expected 1 to 100, met '101'"):
        parse_whole("101", minimum=1, maximum=100)
