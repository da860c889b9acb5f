"""What figures of quantities over training share: the checks at their head, their axis of epochs, and what they say without any."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any, TypeVar

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from landscape.plots.checks import check_drawing, check_named
from landscape.plots.style import Look, looks_for

T = TypeVar("T")


def check_epochs(
    values: Mapping[str, T], expected: type[T], argument: str, looks: Mapping[str, Look] | None, **drawing: Any
) -> tuple[dict[str, T], dict[str, Look]]:
    """Return the results by method with the looks of all methods, once the arguments of the drawing are checked."""
    check_drawing(**drawing)
    named = check_named(values, expected, argument)
    return named, looks_for(named, looks)


def epoch_axis(ax: Axes) -> None:
    """Put ticks at whole epochs only."""
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))


def say_if_empty(ax: Axes, records: list[Sized], text: str = "no epochs") -> None:
    """Say in the axes that there is nothing to draw, where that is so."""
    if not any(map(len, records)):
        ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center")
