"""Curvature over training: the largest eigenvalues of the Hessian and its trace, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from landscape.plots.epochs import check_epochs, epoch_axis, say_if_empty
from landscape.plots.interactive import new_plotly, plain
from landscape.plots.style import FULL, Look, PaperFigure, label, legend_columns, legend_height, paper_style
from landscape.results.types import CurvatureTrace

_LAMBDA, _TRACE, _AXIS = "largest eigenvalues ± residual", "trace ± standard error", "epoch"


def curvature(
    traces: Mapping[str, CurvatureTrace],
    *,
    backend: str = "matplotlib",
    theme: str = "light",
    width: float = FULL,
    looks: Mapping[str, Look] | None = None,
) -> Any:
    """Draw the largest eigenvalues (the first as a line with its residual as band, others thin) and the trace over epochs.

    Args:
        traces: by method.
        backend: "matplotlib" or "plotly".
        theme: "light" or "dark".
        width: in inches, of the matplotlib figure.
        looks: colours by method, from `method_looks`, to agree with other figures.

    Returns:
        The matplotlib or plotly figure.
    """
    named, looks = check_epochs(traces, CurvatureTrace, "traces", looks, backend=backend, theme=theme, width=width)
    with_trace = any(np.isfinite(t.trace).any() for t in named.values())
    if backend == "plotly":
        return _plotly(named, looks, theme, with_trace)
    with paper_style(theme):
        texts = [label(name, 28) for name in named]
        columns = 1 + (with_trace and width > 4)
        rows = 1 + with_trace if columns == 1 else 1
        figure = PaperFigure(figsize=(width, 2.2 * rows + 0.2 + legend_height(texts, width)), theme=theme)
        axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
        for (name, trace), text in zip(named.items(), texts, strict=True):
            look = looks[name]
            style = {"color": look.color, "marker": look.marker, "ms": 3}
            top, band = trace.values[:, 0], np.nan_to_num(trace.residuals[:, 0])
            axes[0].plot(trace.epoch, top, lw=1.2, label=text, **style)
            axes[0].fill_between(trace.epoch, top - band, top + band, color=look.color, alpha=0.2, lw=0)
            for other in trace.values.T[1:]:
                axes[0].plot(trace.epoch, other, lw=0.5, color=look.color, alpha=0.6)
            if with_trace:
                axes[1].errorbar(trace.epoch, trace.trace, trace.trace_stderr, lw=1.2, elinewidth=0.7, capsize=1.5, **style)
        for ax, text in zip(axes, (_LAMBDA, _TRACE), strict=False):
            ax.set_ylabel(text)
            ax.set_xlabel(_AXIS)
            epoch_axis(ax)
            ax.grid(True)
        say_if_empty(axes[0], [t.epoch for t in named.values()])
        figure.legend(loc="outside lower center", ncols=legend_columns(texts, width))
    return figure


def _plotly(named: dict[str, CurvatureTrace], looks: Mapping[str, Look], theme: str, with_trace: bool) -> Any:
    import plotly.graph_objects as go

    figure = new_plotly(theme, rows=1, columns=1 + with_trace, horizontal_spacing=0.1)
    for name, trace in named.items():
        line = {"color": looks[name].color, "width": 1.5}
        drawn = [(_LAMBDA, trace.values[:, 0], trace.residuals[:, 0]), (_TRACE, trace.trace, trace.trace_stderr)][: 1 + with_trace]
        for column, (_, y, error) in enumerate(drawn, start=1):
            bars = {"type": "data", "array": np.nan_to_num(error), "thickness": 1}
            shown = {"name": plain(name), "legendgroup": plain(name), "showlegend": column == 1}
            figure.add_trace(go.Scatter(x=trace.epoch, y=y, error_y=bars, mode="lines+markers", line=line, **shown), row=1, col=column)
    for column, text in enumerate((_LAMBDA, _TRACE)[: 1 + with_trace], start=1):
        figure.update_xaxes(title_text=_AXIS, row=1, col=column)
        figure.update_yaxes(title_text=text, row=1, col=column)
    return figure
