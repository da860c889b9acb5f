"""The loss along lines, one curve or band per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from landscape.plots.bands import plotly_band
from landscape.plots.checks import check_drawing, check_type
from landscape.plots.interactive import new_plotly, plain
from landscape.plots.planes import shared_direction
from landscape.plots.scale import LossScale, log_ticks, loss_scale
from landscape.plots.style import FULL, Look, PaperFigure, label, legend_columns, legend_height, looks_for, paper_style
from landscape.results.types import Array, Surface


@dataclass(frozen=True)
class _Band:
    x: Array
    middle: Array
    low: Array
    high: Array
    seeds: int


def lines(
    surfaces: Mapping[str, Surface | Sequence[Surface]],
    *,
    backend: str = "matplotlib",
    theme: str = "light",
    width: float = FULL,
    accuracy: bool | None = None,
    looks: Mapping[str, Look] | None = None,
) -> Any:
    """Draw losses along a line in one axis, and the accuracies in a second one.

    A band shows the range over seeds where a method has several surfaces (the curve is their mean), else one standard error of the loss
    on either side where the surface has it.

    Args:
        surfaces: by method, a surface with one axis, or one for each seed.
        backend: "matplotlib" or "plotly".
        theme: "light" or "dark".
        width: in inches, of the matplotlib figure.
        accuracy: draw the accuracies; by default where there are some.
        looks: colours by method, from `method_looks`, to agree with other figures.

    Returns:
        The matplotlib or plotly figure.

    Raises:
        TypeError: something that is no surface.
        ValueError: no surfaces, a surface with two axes, or seeds on different points.
    """
    check_drawing(backend, theme, width)
    if not isinstance(surfaces, Mapping):
        raise TypeError(f"surfaces must be a dictionary from names to Surface, such as {{'sgd': ...}}, got {type(surfaces).__name__}")
    if not surfaces:
        raise ValueError("surfaces is empty: give at least one Surface")
    runs = {str(name): _seeds(value, f"surfaces[{name!r}]") for name, value in surfaces.items()}
    losses = {name: _band([s.loss for s in of], [s.stderr for s in of], of[0].x) for name, of in runs.items()}
    accuracies = {name: _band([s.accuracy for s in of], [], of[0].x) for name, of in runs.items()}
    some = any(np.isfinite(band.middle).any() for band in accuracies.values())
    panels = [("loss", losses), ("accuracy", accuracies)] if (some if accuracy is None else accuracy) else [("loss", losses)]
    looks = looks_for(runs, looks)
    direction = shared_direction([s for of in runs.values() for s in of], 1)
    seeds = max(len(of) for of in runs.values())
    # the scale holds the curves and what the seeds reached; on a logarithmic axis a standard error may well reach down to nothing
    scale = loss_scale([a for band in losses.values() for a in ((band.low, band.middle, band.high) if band.seeds > 1 else (band.middle,))])
    banded = any((band.high > band.low).any() for band in losses.values())
    note = "" if not banded else f"band: range over {seeds} seeds" if seeds > 1 else "band: ± 1 standard error over examples"
    if backend == "plotly":
        return _plotly(panels, looks, theme, scale, direction)
    with paper_style(theme):
        texts = [label(name, 28) for name in runs]
        figure = PaperFigure(figsize=(width, (2.5 if len(panels) == 1 or width > 5 else 4.2) + legend_height(texts, width)), theme=theme)
        axes = figure.subplots(*((1, len(panels)) if width > 5 else (len(panels), 1)), squeeze=False).ravel()
        for ax, (kind, bands) in zip(axes, panels, strict=True):
            for name, band in bands.items():
                look = looks[name]
                shown = band.middle if kind == "accuracy" or not scale.log else np.where(band.middle > 0, band.middle, np.nan)
                few = len(band.x) <= 25
                ax.plot(
                    band.x,
                    shown,
                    look.dashes,
                    color=look.color,
                    marker=look.marker,
                    ms=2.5,
                    markevery=1 if few else max(1, len(band.x) // 10),
                    label=label(name, 28),
                )
                if (band.high > band.low).any():
                    low = np.maximum(band.low, scale.low * 1e-3) if kind == "loss" and scale.log else band.low
                    ax.fill_between(band.x, low, band.high, color=look.color, alpha=0.18, lw=0)
            ax.set_xlabel(direction)
            ax.grid(True)
            ax.locator_params(axis="x", nbins=5)
        if scale.log:
            log_ticks(axes[0], np.array([scale.low, scale.high]))
        axes[0].set_ylabel(scale.label)
        if np.isfinite(scale.lowest):
            margin = (scale.high / scale.low) ** 0.05 if scale.log else 1.0
            gap = 0.0 if scale.log else 0.05 * (scale.high - scale.low)
            axes[0].set_ylim(scale.low / margin - gap, scale.high * margin + gap)
            if scale.note:
                axes[0].set_title(scale.note, size=6)
        if not np.isfinite(scale.lowest):
            axes[0].text(0.5, 0.5, "no finite loss", transform=axes[0].transAxes, ha="center")
        if len(panels) == 2:
            axes[1].set_ylabel("accuracy")
        handles, _ = axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=legend_columns(texts, width), title=note or None)
    return figure


def _seeds(value: object, argument: str) -> list[Surface]:
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    if not given:
        raise ValueError(f"{argument} is empty: give one Surface for each seed")
    checked = [check_type(s, Surface, argument) for s in given]
    for surface in checked:
        if surface.y is not None:
            raise ValueError(f"{argument} has two axes: draw it with landscape.plots.contour, or compute it with y=None")
        if not np.array_equal(surface.x, checked[0].x):
            raise ValueError(f"{argument}: the surfaces of all seeds must have the same x")
    return checked


def _band(values: Sequence[Array], errors: Sequence[Array], x: Array) -> _Band:
    stacked = np.array([np.where(np.isfinite(v), v, np.nan) for v in values], dtype=float)
    some = np.isfinite(stacked).any(axis=0)
    middle, low, high = (np.full(stacked.shape[1], np.nan) for _ in range(3))
    middle[some], low[some], high[some] = np.nanmean(stacked[:, some], 0), np.nanmin(stacked[:, some], 0), np.nanmax(stacked[:, some], 0)
    if len(values) == 1 and len(errors) == 1:
        low, high = middle - errors[0], middle + errors[0]
    return _Band(x, middle, low, high, len(values))


def _plotly(panels: list[tuple[str, dict[str, _Band]]], looks: Mapping[str, Look], theme: str, scale: LossScale, direction: str) -> Any:
    import plotly.graph_objects as go

    figure = new_plotly(theme, columns=len(panels), horizontal_spacing=0.12)
    dash = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
    for column, (kind, bands) in enumerate(panels, start=1):
        for name, band in bands.items():
            look = looks[name]
            if (band.high > band.low).any():
                figure.add_traces(plotly_band(band.x, band.low, band.high, look.color, plain(name)), rows=1, cols=column)
            curve = go.Scatter(
                x=band.x,
                y=band.middle,
                name=plain(name),
                mode="lines",
                line={"color": look.color, "dash": dash[look.dashes]},
                showlegend=column == 1,
                legendgroup=plain(name),
                hovertemplate=f"x %{{x:.3g}}<br>{kind} %{{y:.5g}}<extra>{plain(name)}</extra>",
            )
            figure.add_trace(curve, row=1, col=column)
        figure.update_xaxes(title_text=plain(direction), row=1, col=column)
        figure.update_yaxes(title_text=scale.label if kind == "loss" else kind, row=1, col=column)
    if np.isfinite(scale.lowest):
        low, high = scale.height(np.array([scale.low, scale.high]))
        margin = 0.05 * (high - low)
        figure.update_yaxes(type="log" if scale.log else "linear", range=[low - margin, high + margin], row=1, col=1)
    return figure
