"""Sharpness against the number of examples per shard, with standard errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from landscape.plots.checks import check_drawing, check_type
from landscape.plots.interactive import new_plotly, plain
from landscape.plots.scale import log_ticks
from landscape.plots.style import WIDE, Look, PaperFigure, label, legend_columns, legend_height, looks_for, paper_style
from landscape.results.types import Sharpness


def sharpness(
    measures: Mapping[str, Mapping[int, Sharpness]],
    *,
    backend: str = "matplotlib",
    theme: str = "light",
    width: float = WIDE,
    looks: Mapping[str, Look] | None = None,
) -> Any:
    """Draw the sharpness of each method over m, with one standard error on either side.

    Args:
        measures: by method, the sharpness by m.
        backend: "matplotlib" or "plotly".
        theme: "light" or "dark".
        width: in inches, of the matplotlib figure.
        looks: colours by method, from `method_looks`, to agree with other figures.

    Returns:
        The matplotlib or plotly figure.

    Raises:
        TypeError: no dictionary of dictionaries of `Sharpness`.
        ValueError: nothing to draw.
    """
    check_drawing(backend, theme, width)
    if not isinstance(measures, Mapping) or not all(isinstance(of, Mapping) for of in measures.values()):
        raise TypeError("measures must be a dictionary from names to dictionaries from m to Sharpness, such as {'sgd': {1: ..., 128: ...}}")
    if not any(measures.values()):
        raise ValueError("measures is empty: give at least one Sharpness")
    named = {
        str(name): [check_type(of[m], Sharpness, f"measures[{name!r}][{m!r}]") for m in sorted(of)] for name, of in measures.items() if of
    }
    every = [s for of in named.values() for s in of]
    looks = looks_for(named, looks)
    rhos, kinds = sorted({s.rho for s in every}), sorted({s.measure for s in every})
    at = f"ρ = {rhos[0]:g}" if len(rhos) == 1 else "several ρ"
    kind = "m-sharpness" if kinds == ["m_sharpness"] else label(kinds[0].replace("_", " "), 24) if len(kinds) == 1 else "sharpness"
    ylabel, xlabel = f"{kind}\n(loss increase at {at})", "m, examples per shard"
    values = np.array([s.value for s in every], dtype=float)
    finite = values[np.isfinite(values)]
    log = bool(finite.size and finite.min() > 0 and finite.max() / finite.min() > 30)
    sizes = sorted({s.m for s in every})
    if backend == "plotly":
        import plotly.graph_objects as go

        interactive = new_plotly(theme)
        for name, of in named.items():
            interactive.add_trace(
                go.Scatter(
                    x=[s.m for s in of],
                    y=[s.value for s in of],
                    error_y={"type": "data", "array": [_error(s) for s in of]},
                    name=plain(name),
                    mode="lines+markers",
                    line={"color": looks[name].color},
                    hovertemplate="m %{x}: %{y:.5g}",
                )
            )
        interactive.update_xaxes(title_text=xlabel, type="log", tickvals=sizes)
        interactive.update_yaxes(title_text=plain(ylabel, 80), type="log" if log else "linear")
        return interactive
    with paper_style(theme):
        texts = [label(name, 28) for name in named]
        figure = PaperFigure(figsize=(width, 2.5 + legend_height(texts, width)), theme=theme)
        ax = figure.subplots()
        ax.set_xscale("log", base=2)
        for i, (name, of) in enumerate(named.items()):
            aside = 2 ** (0.12 * (i - (len(named) - 1) / 2))  # methods beside each other, so that no bar hides another
            look = looks[name]
            ax.errorbar(
                [s.m * aside for s in of],
                [s.value for s in of],
                [_error(s) for s in of],
                color=look.color,
                marker=look.marker,
                ls=look.dashes,
                lw=0.9,
                elinewidth=0.8,
                label=label(name, 28),
            )
        if log:
            log_ticks(ax, finite)
        elif finite.size and finite.min() >= 0:
            ax.set_ylim(bottom=0)
        ax.set_xticks(sizes, labels=[str(m) for m in sizes])
        ax.minorticks_off()
        if len(sizes) == 1:
            ax.set_xlim(sizes[0] / 2, sizes[0] * 2)
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
        ax.grid(True, axis="y")
        figure.legend(loc="outside lower center", ncols=legend_columns(texts, width), title="bars: ± 1 standard error over shards")
    return figure


def _error(measure: Sharpness) -> float:
    return measure.stderr if np.isfinite(measure.stderr) else 0.0
