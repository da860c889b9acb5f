"""The largest eigenvalues of several methods side by side, with their residuals as error bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from landscape.plots.checks import check_drawing, check_named
from landscape.plots.interactive import new_plotly, plain
from landscape.plots.style import INK, WIDE, Look, PaperFigure, label, legend_columns, legend_height, looks_for, paper_style
from landscape.results.types import Eigenpairs


def eigenvalues(
    eigen: Mapping[str, Eigenpairs],
    *,
    backend: str = "matplotlib",
    theme: str = "light",
    width: float = WIDE,
    k: int = 5,
    looks: Mapping[str, Look] | None = None,
) -> Any:
    """Draw the `k` largest eigenvalues of each method; an eigenvalue lies within the residual, the error bar, of its estimate.

    Args:
        eigen: eigenpairs by method.
        backend: "matplotlib" or "plotly".
        theme: "light" or "dark".
        width: in inches, of the matplotlib figure.
        k: how many of each method.
        looks: colours by method, from `method_looks`, to agree with other figures.

    Returns:
        The matplotlib or plotly figure.

    Raises:
        ValueError: `k` is less than 1.
    """
    check_drawing(backend, theme, width)
    named = check_named(eigen, Eigenpairs, "eigen")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be an integer of at least 1, got {k!r}")
    looks = looks_for(named, looks)
    shown = {name: e.values[:k] for name, e in named.items()}
    errors = {name: np.where(np.isfinite(e.residuals[:k]), e.residuals[:k], 0.0) for name, e in named.items()}
    texts = {name: label(name, 28) + ("" if e.converged else " (not converged)") for name, e in named.items()}
    most = max((len(v) for v in shown.values()), default=0)
    axis, ylabel = "rank by magnitude", "eigenvalue ± residual"
    if backend == "plotly":
        import plotly.graph_objects as go

        interactive = new_plotly(theme)
        for name, values in shown.items():
            interactive.add_trace(
                go.Bar(
                    x=np.arange(1, len(values) + 1),
                    y=values,
                    error_y={"type": "data", "array": errors[name], "color": INK[theme]},
                    name=plain(texts[name], 60),
                    marker={"color": looks[name].color},
                    hovertemplate="%{y:.6g}",
                )
            )
        interactive.update_layout(barmode="group")
        interactive.update_xaxes(title_text=axis, dtick=1)
        interactive.update_yaxes(title_text=ylabel)
        return interactive
    with paper_style(theme):
        figure = PaperFigure(figsize=(width, 2.4 + legend_height(texts.values(), width)), theme=theme)
        ax = figure.subplots()
        bar = 0.8 / len(named)
        for i, (name, values) in enumerate(shown.items()):
            x = np.arange(1, len(values) + 1) + (i - (len(named) - 1) / 2) * bar
            hatch = "" if named[name].converged else "////"
            ax.bar(x, values, bar * 0.92, color=looks[name].color, hatch=hatch, label=texts[name])
            ax.errorbar(x, values, errors[name], fmt="none", ecolor=INK[theme], elinewidth=0.7, capsize=max(1.0, min(2.5, bar * 12)))
        ax.axhline(0, color=INK[theme], lw=0.6)
        ax.set_xticks(range(1, most + 1))
        ax.set_xlabel(axis)
        ax.set_ylabel(ylabel)
        ax.grid(True, axis="y")
        figure.legend(loc="outside lower center", ncols=legend_columns(texts.values(), width))
    return figure
