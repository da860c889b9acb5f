"""Checks of what is handed to a plot; the messages say what to pass instead."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any, TypeVar

from landscape.plots.style import INK
from landscape.results.types import Surface

T = TypeVar("T")
BACKENDS = ("matplotlib", "plotly")


def check_drawing(backend: str, theme: str, width: float) -> None:
    """Check the arguments that every figure has.

    Raises:
        ValueError: an unknown backend or theme, or a width that is no width.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    if theme not in INK:
        raise ValueError(f"theme must be one of {tuple(INK)}, got {theme!r}")
    if isinstance(width, bool) or not isinstance(width, numbers.Real) or not 1 <= float(width) <= 40:
        raise ValueError(f"width must be between 1 and 40 inches, such as 3.25, 5.5 or 6.75, got {width!r}")


def check_type(value: object, expected: type[T], argument: str) -> T:
    """Return the value if it has the type.

    Raises:
        TypeError: it has another one.
    """
    if not isinstance(value, expected):
        raise TypeError(f"{argument} must be a landscape.results {expected.__name__}, got {type(value).__name__}")
    return value


def check_named(values: object, expected: type[T], argument: str) -> dict[str, T]:
    """Return the mapping from names to results as a dictionary.

    Raises:
        TypeError: no mapping, or a value of another type.
        ValueError: nothing in it.
    """
    if not isinstance(values, Mapping):
        raise TypeError(
            f"{argument} must be a dictionary from names to {expected.__name__}, such as {{'sgd': ...}}, got {type(values).__name__}"
        )
    if not values:
        raise ValueError(f"{argument} is empty: give at least one {expected.__name__}")
    return {str(name): check_type(value, expected, f"{argument}[{name!r}]") for name, value in values.items()}


def check_plane(surface: Any, argument: str) -> Surface:
    """Return a two-dimensional surface.

    Raises:
        ValueError: the surface is a line, or its axes do not fit the loss.
    """
    checked = check_type(surface, Surface, argument)
    if checked.y is None:
        raise ValueError(f"{argument} is a loss along a line (its y is None): draw it with landscape.plots.lines")
    if checked.loss.shape != (len(checked.y), len(checked.x)) or checked.loss.size == 0:
        raise ValueError(f"{argument}.loss must have shape (len(y), len(x)) = {(len(checked.y), len(checked.x))}, got {checked.loss.shape}")
    return checked
