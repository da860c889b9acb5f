"""How fast the gradient vanishes: its squared norm over iterations, on logarithmic axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from landscape.plots.bands import plotly_band
from landscape.plots.checks import check_drawing, check_type
from landscape.plots.interactive import new_plotly, plain
from landscape.plots.style import FULL, INK, Look, PaperFigure, fitting, label, legend_columns, legend_height, looks_for, paper_style
from landscape.results.types import Array, GradientTrace

_X, _Y = "iteration t", "‖∇f(x)‖²"
_KNOWN = "closed form at the last t"
_WINDOWS = 60
_Curve = tuple[Array, Array]  # t (w,) and, for each seed, the squared norm (seeds, w)


def descent(
    panels: Mapping[str, Mapping[str, Sequence[GradientTrace]]],
    *,
    limits: Mapping[str, Mapping[str, float]] | None = None,
    backend: str = "matplotlib",
    theme: str = "light",
    width: float = FULL,
    looks: Mapping[str, Look] | None = None,
) -> Any:
    """Draw ||grad f(x_t)||^2 over t, from t = 1 on, one panel for each setting.

    A curve shows means over windows of t whose width is proportional to t, so that cycles of a few steps do not fill the picture; it is
    the mean over seeds, and a band their range.

    Args:
        panels: by title, and by method: the traces of its seeds, on the same steps.
        limits: by title and method: a value known otherwise, marked at the right end.
        backend: "matplotlib" or "plotly".
        theme: "light" or "dark".
        width: in inches, of the matplotlib figure.
        looks: colours by method, from `method_looks`, to agree with other figures.

    Returns:
        The matplotlib or plotly figure.

    Raises:
        ValueError: nothing to draw, or seeds on different steps.
    """
    check_drawing(backend, theme, width)
    if not panels or not all(of and all(len(seeds) for seeds in of.values()) for of in panels.values()):
        raise ValueError("panels must hold, for each title, at least one method with at least one GradientTrace")
    curves = {title: {name: _curve(of, f"panels[{title!r}][{name!r}]") for name, of in runs.items()} for title, runs in panels.items()}
    names = list(dict.fromkeys(name for of in curves.values() for name in of))
    looks, limits = looks_for(names, looks), limits or {}
    if backend == "plotly":
        return _plotly(curves, limits, looks, theme)
    with paper_style(theme):
        key = [Line2D([], [], color=looks[name].color, label=label(name, 28)) for name in names]
        if limits:
            key.append(Line2D([], [], color=INK[theme], marker="<", ms=3.5, mew=0, lw=0, label=_KNOWN))
        texts = [str(entry.get_label()) for entry in key]
        seeds = max(len(values) for of in curves.values() for _, values in of.values())
        note = f"band: range over {seeds} seeds" if seeds > 1 else ""
        figure = PaperFigure(figsize=(width, (2.55 if note else 2.4) + legend_height(texts, width)), theme=theme)
        axes = figure.subplots(1, len(curves), sharex=True, sharey=True, squeeze=False)[0]
        for ax, (title, of) in zip(axes, curves.items(), strict=True):
            for name, (t, values) in of.items():
                color = looks[name].color
                ax.plot(t, values.mean(0), color=color)
                if len(values) > 1:
                    ax.fill_between(t, values.min(0), values.max(0), color=color, alpha=0.2, lw=0)
                if name in limits.get(title, {}):
                    ax.plot(t[-1] * 1.4, limits[title][name], "<", ms=3.5, mew=0, color=color)
            ax.set(xscale="log", yscale="log", xlabel=_X, title=fitting(title, (width - 0.5) / len(curves) - 0.1))
            ax.grid(True)
        axes[0].set_ylabel(_Y)
        figure.legend(handles=key, loc="outside lower center", ncols=legend_columns(texts, width), title=note or None)
    return figure


def _curve(traces: Sequence[GradientTrace], argument: str) -> _Curve:
    steps = check_type(traces[0], GradientTrace, argument).step
    if not all(np.array_equal(check_type(trace, GradientTrace, argument).step, steps) for trace in traces):
        raise ValueError(f"{argument}: the traces of all seeds must have the same steps")
    if not len(steps) or steps[-1] < 1:
        raise ValueError(f"{argument}: a trace needs steps t of at least 1 to be drawn over log t")
    first = int(np.searchsorted(steps, 1))
    t = steps[first:].astype(float)
    starts = np.unique(np.searchsorted(t, np.geomspace(t[0], t[-1] + 1, _WINDOWS + 1)))
    starts = starts[starts < len(t)]
    counts = np.diff(np.append(starts, len(t)))
    squares = np.array([trace.norm_x[first:] ** 2 for trace in traces])
    return np.add.reduceat(t, starts) / counts, np.add.reduceat(squares, starts, axis=1) / counts


def _plotly(
    curves: Mapping[str, Mapping[str, _Curve]], limits: Mapping[str, Mapping[str, float]], looks: Mapping[str, Look], theme: str
) -> Any:
    import plotly.graph_objects as go

    figure = new_plotly(theme, columns=len(curves), titles=list(curves), shared_yaxes=True, horizontal_spacing=0.03)
    known: set[str] = set()
    for column, (title, of) in enumerate(curves.items(), start=1):
        for name, (t, values) in of.items():
            color, of_name = looks[name].color, {"legendgroup": plain(name)}
            place = {"row": 1, "col": column}
            if len(values) > 1:
                figure.add_traces(plotly_band(t, values.min(0), values.max(0), color, plain(name)), rows=1, cols=column)
            figure.add_trace(
                go.Scatter(
                    x=t, y=values.mean(0), name=plain(name), mode="lines", line={"color": color}, showlegend=name not in known, **of_name,
                    hovertemplate=f"t ≈ %{{x:.4g}}<br>{_Y} %{{y:.4g}}<extra>{plain(name)}</extra>",
                ),
                **place,
            )  # fmt: skip
            known.add(name)
            if name in limits.get(title, {}):
                figure.add_trace(
                    go.Scatter(
                        x=[t[-1] * 1.4], y=[limits[title][name]], mode="markers", showlegend=False, **of_name,
                        marker={"symbol": "triangle-left", "color": color, "size": 9},
                        hovertemplate=f"{_KNOWN}: %{{y:.4g}}<extra>{plain(name)}</extra>",
                    ),
                    **place,
                )  # fmt: skip
        figure.update_xaxes(title_text=_X, type="log", dtick=1, row=1, col=column)
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    figure.update_yaxes(title_text=_Y, row=1, col=1)
    return figure
