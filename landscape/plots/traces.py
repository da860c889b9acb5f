"""How well one gradient stands in for another while training: cosine and distance over steps, and by layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize

from landscape.plots.checks import check_drawing, check_type
from landscape.plots.interactive import new_plotly, plain
from landscape.plots.planes import edges
from landscape.plots.scale import log_ticks
from landscape.plots.style import FULL, MISSING, PALETTE, PaperFigure, fitting, label, number, paper_style
from landscape.results.types import Array, GradientTrace

_NAMES = {"cosine": "cosine of the gradients", "distance": "distance of the gradients"}


def traces(trace: GradientTrace, *, backend: str = "matplotlib", theme: str = "light", width: float = FULL, title: str = "") -> Any:
    """Draw cosine and distance of the gradients at x_t and at y_t over the steps, overall and, as heat maps, by layer.

    Args:
        trace: what was recorded while training.
        backend: "matplotlib" or "plotly".
        theme: "light" or "dark".
        width: in inches, of the matplotlib figure.
        title: above the picture.

    Returns:
        The matplotlib or plotly figure.
    """
    check_drawing(backend, theme, width)
    check_type(trace, GradientTrace, "trace")
    layers = len(trace.layers) if len(trace.step) and trace.layer_cosine.size else 0
    if backend == "plotly":
        return _plotly(trace, layers, theme, title)
    with paper_style(theme):
        beside = width > 4.5
        tall = min(4.5, max(1.0, 0.1 * layers)) if layers else 0.0
        heights = [1.5, tall] if tall else [1.5]
        if not beside:
            heights = [h for h in heights for _ in range(2)]
        figure = PaperFigure(figsize=(width, sum(heights) + 0.95 + (0.2 if title else 0)), theme=theme)
        axes = figure.subplots(len(heights), 2 if beside else 1, squeeze=False, height_ratios=heights, sharex=True).ravel()
        for ax, kind in zip(axes, _NAMES, strict=False):
            _curve(ax, trace, kind)
        for ax, kind in zip(axes[2:], _NAMES, strict=False):
            _heat(ax, trace, kind, theme, named=kind == "cosine" or not beside, tall=tall)
        for ax in axes[-2:] if beside else axes[-1:]:
            ax.set_xlabel("training step")
        handles, texts = axes[1].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=3)
        if title:
            figure.suptitle(fitting(title, width - 0.3))
        if not len(trace.step):
            for ax in axes:
                ax.text(0.5, 0.5, "no steps recorded", transform=ax.transAxes, ha="center", va="center")
    return figure


def _curve(ax: Axes, trace: GradientTrace, kind: str) -> None:
    few = "o" if len(trace.step) <= 25 else ""
    ax.plot(trace.step, getattr(trace, kind), color=PALETTE[0], marker=few, ms=2.5, label="‖∇f(x) − ∇f(y)‖")
    ax.set_ylabel(_NAMES[kind])
    ax.grid(True)
    if kind == "cosine":
        finite = trace.cosine[np.isfinite(trace.cosine)]
        low = float(finite.min()) if finite.size else 0.0
        ax.set_ylim(
            -1.05 if low < 0 else min(0.0, low) - 0.02 if low < 0.6 else low - max(0.1 * (1 - low), 1e-6), 1 + max(0.05 * (1 - low), 1e-6)
        )
        ax.axhline(1, color=PALETTE[7], lw=0.5, ls=":")
        return
    ax.plot(trace.step, trace.norm_x, color=PALETTE[5], lw=0.8, ls="--", label="‖∇f(x)‖")
    ax.plot(trace.step, trace.norm_y, color=PALETTE[2], lw=0.8, ls=":", label="‖∇f(y)‖")
    every = np.concatenate([trace.distance, trace.norm_x, trace.norm_y])
    every = every[np.isfinite(every)]
    if every.size and every.min() > 0 and every.max() / every.min() > 30:
        log_ticks(ax, every)
    elif every.size:
        ax.set_ylim(bottom=0, top=float(every.max()) * 1.08 or 1)
    ax.set_ylabel("gradient norm")


def _heat(ax: Axes, trace: GradientTrace, kind: str, theme: str, *, named: bool, tall: float) -> None:
    values = np.ma.masked_invalid(trace.layer_cosine.T if kind == "cosine" else trace.layer_distance.T)
    ax.set_facecolor(MISSING[theme])
    mesh = ax.pcolormesh(
        edges(trace.step.astype(float)),
        np.arange(len(trace.layers) + 1),
        values,
        norm=_norm(values, kind),
        cmap="cividis" if kind == "cosine" else "viridis",
        rasterized=True,
    )
    every = max(1, int(np.ceil(len(trace.layers) / (tall / 0.095))))
    shown = range(0, len(trace.layers), every)
    ax.set_yticks([i + 0.5 for i in shown], labels=[label(trace.layers[i], 24, end=True) for i in shown] if named else [])
    ax.invert_yaxis()
    if named:
        ax.set_ylabel("layer" if every == 1 else f"layer (1 of {every} named)")
    below = kind == "cosine" and bool((values < _lowest_cosine(values.compressed())).any())
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02, aspect=max(5.0, tall / 0.09), extend="min" if below else "neither")
    bar.set_label(_NAMES[kind].replace(" of the gradients", ""))
    bar.outline.set_linewidth(0.4)
    if isinstance(mesh.norm, LogNorm):
        bar.ax.yaxis.set_major_formatter(lambda value, _: number(value))


def _norm(values: Array, kind: str) -> Normalize:
    """Return the range of colours: cosines up to 1, distances on a logarithmic scale where they are positive."""
    finite = values.compressed()  # type: ignore[attr-defined]
    if kind == "cosine":
        return Normalize(_lowest_cosine(finite), 1.0)
    positive = finite[finite > 0]
    if not positive.size:
        return Normalize(0, 1)
    low, high = float(positive.min()), float(positive.max())
    return LogNorm(max(low, high * 1e-6), high if high > low else low * 1.1, clip=True)


def _lowest_cosine(finite: Array) -> float:
    """Return where the colours of cosines begin: the first steps, in which they are low, do not take the colours from all the others."""
    return min(float(np.quantile(finite, 0.02)), 0.999) if finite.size else 0.0


def _plotly(trace: GradientTrace, layers: int, theme: str, title: str) -> Any:
    import plotly.graph_objects as go

    rows = 2 if layers else 1
    figure = new_plotly(theme, rows=rows, columns=2, horizontal_spacing=0.2, vertical_spacing=0.14, shared_xaxes="all")
    for column, kind in enumerate(_NAMES, start=1):
        figure.add_trace(
            go.Scatter(x=trace.step, y=getattr(trace, kind), name=kind, line={"color": PALETTE[0]}, showlegend=False), row=1, col=column
        )
        figure.update_yaxes(title_text=_NAMES[kind], row=1, col=column)
        if layers:
            values = trace.layer_cosine.T if kind == "cosine" else trace.layer_distance.T
            log = kind == "distance" and bool((values > 0).any())
            # plotly's colours know no logarithm: colours are exponents, customdata the distances
            shown = np.log10(np.where(values > 0, values, np.nan)) if log else values
            bar = {
                "len": 0.45,
                "y": 0.0,
                "yanchor": "bottom",
                "x": 0.4 if column == 1 else 1.0,
                "thickness": 12,
                "title": {"text": f"log10 {kind}" if log else kind, "side": "right"},
            }
            figure.add_trace(
                go.Heatmap(
                    x=trace.step,
                    y=[plain(n, 30) for n in trace.layers],
                    z=shown,
                    customdata=values[..., None],
                    colorscale="Cividis" if kind == "cosine" else "Viridis",
                    colorbar=bar,
                    zmin=_lowest_cosine(values[np.isfinite(values)]) if kind == "cosine" else None,
                    zmax=1 if kind == "cosine" else None,
                    hovertemplate="step %{x}<br>%{y}<br>" + kind + " %{customdata[0]:.4g}<extra></extra>",
                ),
                row=2,
                col=column,
            )
            figure.update_yaxes(
                autorange="reversed", title_text="layer" if column == 1 else "", showticklabels=column == 1, row=2, col=column
            )
        figure.update_xaxes(title_text="training step", row=rows, col=column)
    figure.update_layout(height=280 + (max(240, 18 * layers) if layers else 0), title={"text": plain(title)} if title else None)
    return figure
