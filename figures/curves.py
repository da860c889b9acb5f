"""Panels of curves with error bars over seeds, for figures that compare settings, and where figures go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import NullLocator

from landscape import plots
from landscape.plots.scale import log_ticks
from landscape.plots.style import FULL, Look, PaperFigure, label, legend_columns, legend_height, looks_for, number, paper_style

OUT = Path(__file__).parent / "out"
RESULTS = Path(__file__).parents[1] / "analyses" / "results"


@dataclass(frozen=True)
class Panel:
    """One pair of axes: curves of (x, values), and values that do not depend on x; the values of a setting are (seeds, points)."""

    x: str
    y: str
    curves: Mapping[str, tuple[Sequence[float], Any]]
    levels: Mapping[str, Sequence[float]] = field(default_factory=dict)  # (seeds,), drawn across the panel
    log_x: bool = False
    log_y: bool = False
    title: str = ""
    ticks: Sequence[float] | None = None


def mean_and_error(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard error over seeds (the first axis); an error of zero for one seed."""
    values = np.asarray(values, dtype=float)
    error = values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.zeros(values.shape[1:])
    return values.mean(0), error


def draw(
    panels: Sequence[Panel],
    *,
    width: float = FULL,
    tall: float = 2.1,
    note: str = "",
    looks: Mapping[str, Look] | None = None,
) -> Any:
    """Draw the panels side by side with one legend; a bar or band is one standard error over seeds on either side."""
    names = list(dict.fromkeys(name for panel in panels for name in (*panel.curves, *panel.levels)))
    looks = looks_for(names, looks)
    with paper_style("light"):
        texts = [label(name, 34) for name in names]
        figure = PaperFigure(figsize=(width, tall + (0.35 if note else 0.2) + legend_height(texts, width)))
        for ax, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            _panel(ax, panel, looks)
        found = {text: handle for ax in figure.axes for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(
            [found[text] for text in texts], texts, loc="outside lower center", ncols=legend_columns(texts, width), title=note or None
        )
    return figure


def _panel(ax: Any, panel: Panel, looks: Mapping[str, Look]) -> None:
    if panel.log_x:
        ax.set_xscale("log")
    means = []
    for name, values in panel.levels.items():
        middle, error = mean_and_error(values)
        ax.axhline(middle, color=looks[name].color, ls="--", lw=1, label=label(name, 34))
        ax.axhspan(middle - error, middle + error, color=looks[name].color, alpha=0.15, lw=0)
        means.append(middle)
    for name, (x, values) in panel.curves.items():
        middle, error = mean_and_error(values)
        look = looks[name]
        if len(middle) > 20:
            ax.plot(x, middle, ls=look.dashes, color=look.color, label=label(name, 34))
            ax.fill_between(x, middle - error, middle + error, color=look.color, alpha=0.18, lw=0)
        else:
            ax.errorbar(x, middle, error, color=look.color, marker=look.marker, ls=look.dashes, lw=1, elinewidth=0.8, label=label(name, 34))
        means.extend(middle)
    if panel.log_y:
        log_ticks(ax, np.array(means))
    if panel.ticks is not None:
        ax.set_xticks(panel.ticks, labels=[number(v) for v in panel.ticks])
        ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel=panel.x, ylabel=panel.y, title=panel.title)
    ax.grid(True)


def save(figure: Any, stem: str) -> None:
    """Write a figure into figures/out, matplotlib's as PDF and PNG, plotly's as HTML, and print the paths."""
    for path in plots.save(figure, OUT / stem):
        print(path.relative_to(OUT.parents[1]))
