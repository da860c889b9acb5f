"""A printed value and error must contain what was found."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landscape.results.numbers import with_error


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (2.2134, 0.0117, "2.213 ± 0.012"),
        (0.5786172, 7e-07, "0.578617 ± 0.000001"),
        (80.2143, 3e-4, "80.2143 ± 0.0003"),
        (104.66, 2.4, "104.7 ± 2.4"),
        (12345678.0, 400000.0, "(1.235 ± 0.040)e+07"),
        (0.0, 0.0, "0 ± 0"),
        (0.0, 5e-324, "0 ± 0"),
        (1.5, math.nan, "1.5"),
        (math.nan, 1.0, "–"),
        (None, None, "–"),
    ],
)
def test_hand_written_cases(value: float, error: float, shown: str) -> None:
    assert with_error(value, error) == shown


@given(st.floats(-1e12, 1e12), st.floats(0, 1e9))
def test_what_is_printed_contains_the_value(value: float, error: float) -> None:
    text = with_error(value, error)
    power = float(f"1{match[0]}") if (match := re.search(r"e[+-]\d+$", text)) else 1.0
    shown, bar = (float(part) * power for part in re.sub(r"\)e.*|\(", "", text).split(" ± "))
    assert bar >= error * (1 - 1e-9) or error < 1e-290
    # The value itself is rounded to half a unit of the last digit of its error.
    assert abs(shown - value) <= 0.5 * max(bar, 1e-5 * abs(value)) + 1e-9 * abs(value) + 1e-290
    assert bar <= 1.2 * error + 2e-5 * abs(value) + 1e-290
