"""What accuracy costs: test accuracy against seconds of training, and when each method reaches a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from landscape.plots.bands import plotly_band
from landscape.plots.checks import check_drawing, check_type
from landscape.plots.epochs import say_if_empty
from landscape.plots.interactive import new_plotly, plain
from landscape.plots.style import COLUMN, INK, Look, PaperFigure, fitting, legend_columns, legend_height, looks_for, paper_style
from landscape.results.types import Array, TrainingHistory

_Y = "test accuracy"
_UNITS = ((2 * 86400.0, 86400.0, "d"), (2 * 3600.0, 3600.0, "h"), (600.0, 60.0, "min"), (0.0, 1.0, "s"))


@dataclass(frozen=True)
class _Curve:
    seconds: Array  # (epochs,) mean over seeds
    middle: Array  # (epochs,) mean over seeds
    low: Array
    high: Array
    seeds: int


def speed(
    histories: Mapping[str, TrainingHistory | Sequence[TrainingHistory]],
    *,
    target: float | None = None,
    backend: str = "matplotlib",
    theme: str = "light",
    width: float = COLUMN,
    looks: Mapping[str, Look] | None = None,
) -> Any:
    """Draw the test accuracy over the seconds since training began.

    Where a method has several seeds the curve is their mean, of accuracy and of seconds at the end of each epoch, and the band the range
    of their accuracies.

    Args:
        histories: by method, one history or one for each seed.
        target: an accuracy; the legend says after how many seconds the curve first reaches it, by straight lines between epochs.
        backend: "matplotlib" or "plotly".
        theme: "light" or "dark".
        width: in inches, of the matplotlib figure.
        looks: colours by method, from `method_looks`, to agree with other figures.

    Returns:
        The matplotlib or plotly figure.

    Raises:
        TypeError: something that is no history.
        ValueError: nothing to draw, a target outside of 0 ... 1, or seeds with different epochs.
    """
    check_drawing(backend, theme, width)
    if target is not None and not 0 < target <= 1:
        raise ValueError(f"target must be an accuracy above 0 and at most 1, got {target!r}")
    if not isinstance(histories, Mapping):
        raise TypeError(
            f"histories must be a dictionary from names to TrainingHistory, such as {{'sgd': ...}}, got {type(histories).__name__}"
        )
    if not histories:
        raise ValueError("histories is empty: give at least one TrainingHistory")
    curves = {str(name): _curve(value, f"histories[{name!r}]") for name, value in histories.items()}
    looks = looks_for(curves, looks)
    longest = max((float(c.seconds.max()) for c in curves.values() if len(c.seconds)), default=0.0)
    _, per, unit = next(row for row in _UNITS if longest >= row[0])
    texts = {name: fitting(name, min(1.9, width - 1.7), 7) + _reached(curve, target, per, unit) for name, curve in curves.items()}
    xlabel = f"training time ({unit})"
    seeds = max(curve.seeds for curve in curves.values())
    if backend == "plotly":
        return _plotly(curves, texts, looks, theme, target, per, xlabel)
    with paper_style(theme):
        note = f"band: range over {seeds} seeds" if seeds > 1 else ""
        figure = PaperFigure(figsize=(width, (2.45 if note else 2.3) + legend_height(texts.values(), width)), theme=theme)
        ax = figure.subplots()
        for name, curve in curves.items():
            look, x = looks[name], curve.seconds / per
            ax.plot(
                x, curve.middle, look.dashes, color=look.color, marker=look.marker, ms=2.5, markevery=max(1, len(x) // 8), label=texts[name]
            )
            if curve.seeds > 1:
                ax.fill_between(x, curve.low, curve.high, color=look.color, alpha=0.18, lw=0)
        if target is not None:
            ax.axhline(target, color=INK[theme], lw=0.6, ls=":")
        ax.set_xlim(left=0)
        ax.set_xlabel(xlabel)
        ax.set_ylabel(_Y)
        ax.grid(True)
        say_if_empty(ax, [curve.seconds for curve in curves.values()])
        figure.legend(loc="outside lower center", ncols=legend_columns(texts.values(), width), title=note or None)
    return figure


def reached_by_all(histories: Mapping[str, Sequence[TrainingHistory]]) -> float | None:
    """Return a target for `speed`: the largest accuracy, in whole percent, that every method reaches in the mean of its seeds.

    Args:
        histories: by method, those of its seeds.

    Returns:
        The accuracy, or None where there is none above zero to compare, or fewer than two methods.
    """
    if len(histories) < 2 or any(len({tuple(h.epoch) for h in of}) > 1 for of in histories.values()):
        return None
    best = [curve.middle[np.isfinite(curve.middle)] for curve in (_curve(list(of), "histories") for of in histories.values())]
    least = min((float(b.max()) for b in best), default=0.0) if all(b.size for b in best) else 0.0
    target = float(np.floor(100 * least + 1e-9)) / 100
    return target if 0 < target <= 1 else None


def _curve(value: object, argument: str) -> _Curve:
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    if not given:
        raise ValueError(f"{argument} is empty: give one TrainingHistory for each seed")
    seeds = [check_type(one, TrainingHistory, argument) for one in given]
    if not all(np.array_equal(one.epoch, seeds[0].epoch) for one in seeds):
        raise ValueError(f"{argument}: the histories of all seeds must have the same epochs")
    every = np.array([np.where(np.isfinite(one.test_accuracy), one.test_accuracy, np.nan) for one in seeds], dtype=float)
    seconds = np.mean([one.seconds for one in seeds], axis=0)
    return _Curve(seconds, every.mean(0), every.min(0), every.max(0), len(seeds))


def _reached(curve: _Curve, target: float | None, per: float, unit: str) -> str:
    """Return in words when the curve first reaches the target."""
    if target is None:
        return ""
    above = np.flatnonzero(curve.middle >= target)
    if not above.size:
        return f": not {target:g}"
    last = int(above[0])
    at = curve.seconds[last]
    if last and np.isfinite(curve.middle[last - 1]):
        at = np.interp(target, curve.middle[last - 1 : last + 1], curve.seconds[last - 1 : last + 1])
    return f": {target:g} in {at / per:.3g} {unit}"


def _plotly(
    curves: Mapping[str, _Curve],
    texts: Mapping[str, str],
    looks: Mapping[str, Look],
    theme: str,
    target: float | None,
    per: float,
    xlabel: str,
) -> Any:
    import plotly.graph_objects as go

    figure = new_plotly(theme)
    for name, curve in curves.items():
        color, x = looks[name].color, curve.seconds / per
        if curve.seeds > 1:
            figure.add_traces(plotly_band(x, curve.low, curve.high, color, plain(name)))
        hover = f"{xlabel} %{{x:.4g}}<br>{_Y} %{{y:.4f}}<extra>{plain(name)}</extra>"
        figure.add_trace(
            go.Scatter(
                x=x, y=curve.middle, name=plain(texts[name], 60), legendgroup=plain(name), line={"color": color}, hovertemplate=hover
            )
        )
    if target is not None:
        figure.add_hline(target, line={"dash": "dot", "width": 1, "color": INK[theme]})
    figure.update_xaxes(title_text=xlabel, rangemode="tozero")
    figure.update_yaxes(title_text=_Y)
    return figure
