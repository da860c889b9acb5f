"""Arguments checked at the door, in one voice: the name, the value, what is allowed."""

import math
from collections.abc import Iterable, Sequence
from numbers import Real

from torch import Tensor


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


def flag(name: str, value: bool) -> bool:
    """Return `value` if it is True or False.

    Raises:
        TypeError: It is something else, such as a text, all of which but one count as true.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


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


def chosen_parameters(only: Iterable[Tensor], known: Sequence[Tensor]) -> set[Tensor]:
    """Return the parameters in `only`.

    Raises:
        TypeError: It is no list of tensors.
        ValueError: It is empty, or a tensor in it is none of the `known` parameters.
    """
    tensors = None if isinstance(only, Tensor) or not isinstance(only, Iterable) else list(only)
    if tensors is None or not all(isinstance(t, Tensor) for t in tensors):
        raise TypeError(f"only must be a list of parameters, not {repr(only)[:80]}")
    if not tensors:
        raise ValueError("only is empty: give the parameters to perturb, or leave it out")
    ours = set(known)
    foreign = sum(t not in ours for t in tensors)
    if foreign:
        raise ValueError(f"only: {foreign} of these {len(tensors)} tensors are no parameters of the base optimizer")
    return set(tensors)
