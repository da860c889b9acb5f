"""Arguments checked at the door, in one voice: the name, the value, what is allowed."""

import math
from numbers import Real


def in_range(name: str, value: float, low: float, high: float, *, closed_left: bool = True, closed_right: bool = False) -> float:
    """Return `value` as a float if it lies in the interval.

    Raises:
        TypeError: It is no number.
        ValueError: It lies outside, or is nan.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    number = float(value)
    inside = (low <= number if closed_left else low < number) and (number <= high if closed_right else number < high)
    if not inside:  # nan is inside of nothing
        left, right = ("[" if closed_left else "("), ("]" if closed_right else ")")
        bounds = f"in {left}{low:g}, {high:g}{right}" if math.isfinite(low) else "finite"
        raise ValueError(f"{name} must be {bounds}, not {value!r}")
    return number


def whole(name: str, value: int, low: int) -> int:
    """Return `value` if it is a whole number of at least `low`.

    Raises:
        TypeError: It is no int.
        ValueError: It is smaller.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, not {value}")
    return value
