"""Sharpness against the generalisation gap: does the one go with the other, and could so few points tell?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from landscape.correlation import RankCorrelation, kendall_tau
from landscape.plots.checks import check_drawing
from landscape.plots.interactive import new_plotly, plain
from landscape.plots.scale import log_ticks
from landscape.plots.style import COLUMN, INK, Look, PaperFigure, label, legend_columns, legend_height, looks_for, paper_style
from landscape.results.types import Eigenpairs, Result, Sharpness, TraceEstimate, TrainingHistory

Measured = float | tuple[float, float]
"""A number, or a number and its standard error."""
GAPS = {"loss": "test loss − training loss", "accuracy": "training accuracy − test accuracy"}


class _Point(NamedTuple):
    x: float
    x_error: float
    y: float
    y_error: float


def generalization(
    measures: Mapping[str, Result | Measured | Sequence[Result | Measured]],
    gaps: Mapping[str, TrainingHistory | Measured | Sequence[TrainingHistory | Measured]],
    *,
    of: str = "loss",
    xlabel: str = "",
    backend: str = "matplotlib",
    theme: str = "light",
    width: float = COLUMN,
    looks: Mapping[str, Look] | None = None,
) -> Any:
    """Draw one dot for each trained network: what was measured at its minimum across, its generalisation gap upwards.

    Error bars are one standard error, of an eigenvalue its residual. The line above says Kendall's rank correlation over all the dots, with
    its 95 % interval and p-value (`landscape.correlation.kendall_tau`).

    Args:
        measures: by method, a `Sharpness`, `Eigenpairs` (the largest value counts) or `TraceEstimate`, or a number with or without its
            standard error as a tuple; one of them, or a list with one for each seed.
        gaps: by method, in the same order: a history (its last epoch counts), or a number with or without its standard error.
        of: the gap of "loss" or of "accuracy".
        xlabel: what was measured; by default as the results say.
        backend: "matplotlib" or "plotly".
        theme: "light" or "dark".
        width: in inches, of the matplotlib figure.
        looks: colours by method, from `method_looks`, to agree with other figures.

    Returns:
        The matplotlib or plotly figure.

    Raises:
        ValueError: nothing to draw, methods or seeds without a counterpart, or an unknown gap.
    """
    check_drawing(backend, theme, width)
    if of not in GAPS:
        raise ValueError(f"of must be one of {tuple(GAPS)}, got {of!r}")
    if not measures or set(measures) != set(gaps):
        raise ValueError(f"measures and gaps must be of the same methods, at least one, got {list(measures)} and {list(gaps)}")
    points = {str(name): _points(measures[name], gaps[name], of, str(name)) for name in measures}
    looks = looks_for(points, looks)
    every = np.array([point for of_method in points.values() for point in of_method])
    found = kendall_tau(every[:, 0], every[:, 2])
    across, up = xlabel or _name([m for value in measures.values() for m in _listed(value)]), f"generalisation gap\n({GAPS[of]})"
    x = every[np.isfinite(every[:, 0]), 0]
    log = bool(x.size and x.min() > 0 and x.max() / x.min() > 10)
    if backend == "plotly":
        return _plotly(points, found, looks, theme, across, up, log)
    with paper_style(theme):
        texts = [label(name, 28) for name in points]
        figure = PaperFigure(figsize=(width, 2.6 + legend_height(texts, width)), theme=theme)
        ax = figure.subplots()
        for (name, of_method), text in zip(points.items(), texts, strict=True):
            look, (px, ex, py, ey) = looks[name], np.array(of_method).T
            ax.errorbar(
                px, py, np.nan_to_num(ey), np.nan_to_num(ex), ls="none", marker=look.marker, ms=3.5, mew=0, color=look.color,
                elinewidth=0.6, capsize=1.2, label=text,
            )  # fmt: skip
        ax.locator_params(nbins=5)
        if log:
            log_ticks(ax, x, axis="x")
        ax.axhline(0, color=INK[theme], lw=0.5, ls=":")
        ax.set_xlabel(label(across, 48))
        ax.set_ylabel(up)
        ax.grid(True)
        ax.set_title(str(found), size=6)
        note = None
        if (every[:, [1, 3]] > 0).any():
            residual = all(isinstance(m, Eigenpairs) for value in measures.values() for m in _listed(value))
            note = "bars: residual across, standard error upwards" if residual else "bars: ± 1 standard error"
        figure.legend(loc="outside lower center", ncols=legend_columns(texts, width), title=note)
    return figure


def _listed(value: Any) -> list[Any]:
    """Return what there is of each seed; a tuple is a number with its error."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, tuple | str) else [value]


def _points(measures: Any, gaps: Any, of: str, name: str) -> list[_Point]:
    xs, ys = _listed(measures), _listed(gaps)
    if not xs or len(xs) != len(ys):
        raise ValueError(f"{name!r} has {len(xs)} measures and {len(ys)} gaps: give one of each for every seed, at least one")
    return [_Point(*_measured(x, f"measures[{name!r}]"), *_gap(y, of, f"gaps[{name!r}]")) for x, y in zip(xs, ys, strict=True)]


def _measured(value: Any, argument: str) -> tuple[float, float]:
    """Return a number and its standard error, NaN where it has none."""
    if isinstance(value, Sharpness | TraceEstimate):
        return value.value, value.stderr
    if isinstance(value, Eigenpairs):
        if not len(value.values):
            return math.nan, math.nan
        at = int(np.argmax(value.values))
        return float(value.values[at]), float(value.residuals[at])
    if isinstance(value, tuple) and len(value) == 2:
        return float(value[0]), float(value[1])
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return float(value), math.nan
    raise TypeError(f"{argument} must be a result, a number or (number, standard error), got {type(value).__name__}")


def _gap(value: Any, of: str, argument: str) -> tuple[float, float]:
    if not isinstance(value, TrainingHistory):
        return _measured(value, argument)
    if not len(value.epoch):
        return math.nan, math.nan
    if of == "loss":
        return float(value.test_loss[-1] - value.train_loss[-1]), math.nan
    return float(value.train_accuracy[-1] - value.test_accuracy[-1]), math.nan


def _name(measures: list[Any]) -> str:
    """Return what the measures are, where they are all of one kind."""
    kinds: dict[str, None] = {}
    for measure in measures:
        if isinstance(measure, Sharpness):
            kinds[f"{measure.measure.replace('_', ' ').replace('m sharp', 'm-sharp')} (ρ = {measure.rho:g}, m = {measure.m})"] = None
        elif isinstance(measure, Eigenpairs):
            kinds["largest eigenvalue of the Hessian"] = None
        elif isinstance(measure, TraceEstimate):
            kinds["trace of the Hessian"] = None
    return next(iter(kinds)) if len(kinds) == 1 else "sharpness"


def _plotly(
    points: Mapping[str, list[_Point]], found: RankCorrelation, looks: Mapping[str, Look], theme: str, across: str, up: str, log: bool
) -> Any:
    import plotly.graph_objects as go

    figure = new_plotly(theme, titles=[str(found)])
    figure.layout.annotations[0].text = str(found)  # whole: a title of a panel is shortened
    for name, of_method in points.items():
        x, ex, y, ey = np.array(of_method).T
        bars = [{"type": "data", "array": np.nan_to_num(error), "thickness": 1} for error in (ex, ey)]
        marker = {"color": looks[name].color, "size": 8}
        hover = f"%{{x:.5g}}<br>gap %{{y:.5g}}<extra>{plain(name)}</extra>"
        figure.add_trace(
            go.Scatter(x=x, y=y, error_x=bars[0], error_y=bars[1], mode="markers", marker=marker, name=plain(name), hovertemplate=hover)
        )
    figure.update_xaxes(title_text=plain(across, 80), type="log" if log else "linear")
    figure.update_yaxes(title_text=up.replace("\n", "<br>"))
    return figure
