from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machineplane.quantities import BadQuantity, byte_count, millicores, parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), ("1", 1), ("+1", 1), ("-1", -1), (".5", Fraction(1, 2)), ("1.", 1), ("100m", Fraction(1, 10)),
        ("1Ki", 1024), ("1.5Gi", 3 * 2**29), ("1k", 1000), ("1e3", 1000), ("1E3", 1000), ("1E", 10**18),
        ("5e-1", Fraction(1, 2)), ("1n", Fraction(1, 10**9)), ("1u", Fraction(1, 10**6)), (2, 2), (0.5, Fraction(1, 2)),
        ("7Ei", 7 * 2**60),
    ],
)  # fmt: skip
def test_values(text, value):
    assert parse_quantity(text) == value


@pytest.mark.parametrize(
    "text",
    ["", " 1", "1 ", "1 Gi", "Gi", "1gi", "1K", "1ki", "0x10", "1e", "1e1.5", "1m5", "--1", "1_000", "inf", "nan", "١",
     "1e9999", "9" * 65, "8Ei", "1\n", True, None, []],
)  # fmt: skip
def test_what_is_no_quantity(text):
    with pytest.raises(BadQuantity):
        parse_quantity(text)


@given(st.integers(0, 10**15), st.sampled_from(["n", "u", "m", "", "k", "Ki", "e-2", "E1"]))
def test_rounding_is_up_and_by_less_than_one(number, suffix):
    exact = parse_quantity(f"{number}{suffix}")
    assert 0 <= byte_count(f"{number}{suffix}") - exact < 1
    assert 0 <= millicores(f"{number}{suffix}") - exact * 1000 < 1


@given(
    st.text(max_size=12)
    | st.from_regex(r"[+-]?[0-9.]{1,4}[eEinumkKMGTP]{0,2}[-+]?[0-9]{0,3}", fullmatch=True)
)
def test_any_text_is_a_value_or_refused(text):
    with suppress(BadQuantity):
        assert isinstance(parse_quantity(text), Fraction)


def test_negative_amounts_cannot_be_reserved():
    with pytest.raises(BadQuantity):
        millicores("-1")
