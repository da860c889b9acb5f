"""Every measure of sharpness, models side by side; what ascents reached step by step; SAM's loss gap over the radius."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from landscape.plots.checks import check_drawing, check_type
from landscape.plots.scale import log_ticks
from landscape.plots.style import (
    COLUMN,
    FULL,
    WIDE,
    Look,
    PaperFigure,
    fitting,
    grid_shape,
    label,
    legend_columns,
    legend_height,
    looks_for,
    number,
    paper_style,
)
from landscape.results.schema import sharpness_name
from landscape.results.types import Sharpness

Models = Mapping[str, Sequence[Sharpness]]


def measures(results: Models, *, theme: str = "light", width: float = FULL, looks: Mapping[str, Look] | None = None) -> PaperFigure:
    """Draw the table of all measures: a panel for each measure and setting, in it the models side by side with one standard error.

    Every panel has a scale of its own, as measures have units of their own. Of several radii of the SAM gap the middle one is shown;
    `sam_gaps` draws all.

    Args:
        results: by model.
        theme: "light" or "dark".
        width: of the figure, in inches.
        looks: colours by model, from `method_looks`, to agree with other figures.

    Returns:
        The figure.
    """
    named, looks = _checked(results, looks, theme, width, lambda r: True, "a Sharpness")
    panels: dict[str, dict[str, Sharpness]] = {}
    for name, of in named.items():
        for result in [r for r in of if r.measure != "sam_gap"] + _middle([r for r in of if r.measure == "sam_gap"]):
            panels.setdefault(sharpness_name(result), {})[name] = result
    rows, columns = grid_shape(len(panels), width)
    with paper_style(theme):
        texts = [label(name, 28) for name in named]
        figure = PaperFigure(figsize=(width, 1.45 * rows + 0.35 + legend_height(texts, width)), theme=theme)
        axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        for ax, by_model in zip(axes, panels.values(), strict=False):
            for i, name in enumerate(named):
                if name in by_model:
                    look, result = looks[name], by_model[name]
                    bar: dict[str, Any] = dict(
                        color=look.color, marker=look.marker, ms=4, ls="", elinewidth=0.9, capsize=2, label=label(name, 28)
                    )
                    ax.errorbar([i], [result.value], [_error(result)], **bar)
            first = next(iter(by_model.values()))
            ax.set_title(f"{fitting(_kind(first), width / columns - 0.2, 7.0)}\n{_setting(first)}", fontsize=7)
            ax.set_xlim(-0.6, len(named) - 0.4)
            ax.set_xticks([])
            _from_zero(ax, [r.value for r in by_model.values()], [_error(r) for r in by_model.values()])
            ax.grid(True, axis="y")
        _legend(figure, list(axes[: len(panels)]), texts, width, "bars: ± 1 standard error, over shards, pieces or draws")
    return figure


def ascents(results: Models, *, theme: str = "light", width: float = WIDE, looks: Mapping[str, Look] | None = None) -> PaperFigure:
    """Draw what every ascent of several steps had reached after each step: one that still rises at its end has found too little.

    Args:
        results: by model; those without `steps` are left out.
        theme: "light" or "dark".
        width: of the figure, in inches.
        looks: colours by model, from `method_looks`, to agree with other figures.

    Returns:
        The figure; the bar at the end of a line is one standard error.
    """
    named, looks = _checked(results, looks, theme, width, lambda r: r.steps is not None, "a Sharpness with steps, such as worst_case gives")
    panels: dict[str, dict[str, Sharpness]] = {}
    for name, of in named.items():
        for result in of:
            panels.setdefault(sharpness_name(result), {})[name] = result
    rows, columns = grid_shape(len(panels), width * 0.6)
    with paper_style(theme):
        texts = [label(name, 28) for name in named]
        figure = PaperFigure(figsize=(width, 1.9 * rows + 0.45 + legend_height(texts, width)), theme=theme)
        axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        for ax, by_model in zip(axes, panels.values(), strict=False):
            for i, (name, result) in enumerate(by_model.items()):
                look, steps = looks[name], np.asarray(result.steps)
                line: dict[str, Any] = dict(color=look.color, ls=look.dashes, lw=1.0)
                ax.plot(np.arange(1, len(steps) + 1), steps, marker=look.marker, ms=2.5, label=label(name, 28), **line)
                aside = len(steps) * (1 + 0.02 * i)  # beside each other, so that no bar hides another
                ax.errorbar([aside], [steps[-1]], [_error(result)], color=look.color, elinewidth=0.8, capsize=2)
            first = next(iter(by_model.values()))
            ax.set_title(f"{fitting(_kind(first), width / columns - 0.3, 7.0)}\n{_setting(first)}", fontsize=7)
            ax.set_xlabel("step of the ascent")
            ax.set_ylabel("sharpness (%)" if first.measure == "keskar" else "largest loss increase")
            ax.set_ylim(bottom=0) if all(np.nanmin(np.asarray(r.steps)) >= 0 for r in by_model.values()) else None
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.grid(True)
        _legend(figure, list(axes[: len(panels)]), texts, width, "bar at the end: ± 1 standard error over shards")
    return figure


def sam_gaps(results: Models, *, theme: str = "light", width: float = COLUMN, looks: Mapping[str, Look] | None = None) -> PaperFigure:
    """Draw SAM's loss gap L(w + eps) - L(w) over the radius rho, with one standard error.

    Args:
        results: by model; of other measures than `sam_gap` none is drawn.
        theme: "light" or "dark".
        width: of the figure, in inches.
        looks: colours by model, from `method_looks`, to agree with other figures.

    Returns:
        The figure; both axes are logarithmic where all values are positive.
    """
    named, looks = _checked(results, looks, theme, width, lambda r: r.measure == "sam_gap", "a Sharpness that sam_gap gives")
    every = [r for of in named.values() for r in of]
    with paper_style(theme):
        texts = [label(name, 28) for name in named]
        figure = PaperFigure(figsize=(width, 2.5 + legend_height(texts, width)), theme=theme)
        ax = figure.subplots()
        for name, of in named.items():
            look, of = looks[name], sorted(of, key=lambda r: r.rho)
            line: dict[str, Any] = dict(
                color=look.color, marker=look.marker, ls=look.dashes, lw=0.9, elinewidth=0.8, capsize=1.5, label=label(name, 28)
            )
            ax.errorbar([r.rho for r in of], [r.value for r in of], [_error(r) for r in of], **line)
        radii, values = np.array([r.rho for r in every]), np.array([r.value for r in every])
        if radii.min() > 0:
            log_ticks(ax, radii, "x")
        # A bar that reaches zero has no place on a logarithmic axis.
        if min(r.value - _error(r) for r in every) > 0:
            log_ticks(ax, values)
        ax.set_xlabel("radius ρ of the climb")
        ax.set_ylabel("SAM gap (loss increase)")
        ax.grid(True)
        figure.legend(loc="outside lower center", ncols=legend_columns(texts, width), title="bars: ± 1 standard error over pieces")
    return figure


def _checked(
    results: Models, looks: Mapping[str, Look] | None, theme: str, width: float, wanted: Any, what: str
) -> tuple[dict[str, list[Sharpness]], dict[str, Look]]:
    check_drawing("matplotlib", theme, width)
    if not isinstance(results, Mapping) or any(isinstance(of, Sharpness) for of in results.values()):
        raise TypeError("results must be a dictionary from names to lists of Sharpness, such as {'sgd': [...], 'sam': [...]}")
    named = {
        str(name): [r for i, r in enumerate(of) if wanted(check_type(r, Sharpness, f"results[{name!r}][{i}]"))]
        for name, of in results.items()
    }
    named = {name: of for name, of in named.items() if of}
    if not named:
        raise ValueError(f"results is empty: give at least {what}")
    return named, looks_for(named, looks)


def _middle(gaps: list[Sharpness]) -> list[Sharpness]:
    gaps = sorted(gaps, key=lambda r: r.rho)
    return gaps[(len(gaps) - 1) // 2 : (len(gaps) + 1) // 2] if len(gaps) % 2 else gaps[len(gaps) // 2 : len(gaps) // 2 + 1]


def _setting(result: Sharpness) -> str:
    """Return rho, m and p as far as they say something."""
    parts = [f"ρ = {result.rho:g}"] if result.rho else []
    parts += [f"m = {result.m}"]
    parts += [f"p = {'∞' if math.isinf(result.p) else f'{result.p:g}'}"] if result.p != 2 else []
    parts += ["adaptive"] if result.measure == "average_case" and result.settings.get("adaptive") else []
    return ", ".join(parts)


def _kind(result: Sharpness) -> str:
    return result.measure.replace("m_sharpness", "m-sharpness").replace("_", " ")


def _error(result: Sharpness) -> float:
    return result.stderr if math.isfinite(result.stderr) else 0.0


def _from_zero(ax: Axes, values: Sequence[float], errors: Sequence[float]) -> None:
    """Let the axis begin at zero, so that lengths can be compared, and write few round numbers."""
    ends = [end for v, e in zip(values, errors, strict=True) for end in (v - e, v + e) if math.isfinite(end)]
    if not ends:
        ax.text(0.5, 0.5, "no finite value", transform=ax.transAxes, ha="center", va="center", fontsize=6)
    low, high = min([*ends, 0.0]), max([*ends, 0.0])
    room = 0.12 * (high - low or 1.0)
    ax.set_ylim(low - (room if low < 0 else 0), high + (room if high > 0 or low == high else 0))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_formatter(lambda value, _: number(value) if value else "0")


def _legend(figure: PaperFigure, axes: Sequence[Axes], texts: Sequence[str], width: float, title: str) -> None:
    """Write one legend for all panels."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, text in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(text, handle)
    chosen = [handles[text] for text in texts if text in handles]
    figure.legend(chosen, [t for t in texts if t in handles], loc="outside lower center", ncols=legend_columns(texts, width), title=title)
