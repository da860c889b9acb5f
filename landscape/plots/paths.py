"""Losses along paths: curves between minima with their barriers, and training trajectories over the surface of their plane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes

from landscape.plots.checks import check_drawing, check_named, check_plane, check_type
from landscape.plots.contours import contour
from landscape.plots.interactive import new_plotly, plain
from landscape.plots.scale import LossScale
from landscape.plots.style import COLUMN, INK, WIDE, Look, PaperFigure, label, legend_columns, legend_height, looks_for, paper_style
from landscape.results.numbers import with_error
from landscape.results.types import Array, LossPath, Surface


def path(one: LossPath, **options: Any) -> Any:
    """Draw the loss and the accuracy along one path; options as for `paths`."""
    return paths({check_type(one, LossPath, "path").name: one}, **options)


def paths(
    named: Mapping[str, LossPath],
    *,
    backend: str = "matplotlib",
    theme: str = "light",
    width: float = WIDE,
    accuracy: bool | None = None,
    looks: Mapping[str, Look] | None = None,
) -> Any:
    """Draw the losses along several paths in one axis, and the accuracies in a second one.

    A band is one standard error of the loss on either side. On a curve the chord between its ends is dotted, and an upright line shows the
    barrier: the largest height above it. Where batch norm had mixed running statistics on some curves and new ones on others, the legend
    says so: then their ends differ too. Training trajectories are drawn over their steps.

    Args:
        named: the paths by name, all of them curves or all trajectories.
        backend: "matplotlib" or "plotly".
        theme: "light" or "dark".
        width: in inches, of the matplotlib figure.
        accuracy: draw the accuracies; by default where there are some.
        looks: colours by name, from `method_looks`, to agree with other figures.

    Returns:
        The matplotlib or plotly figure.

    Raises:
        ValueError: curves and trajectories mixed.
    """
    check_drawing(backend, theme, width)
    of = check_named(named, LossPath, "paths")
    if len({p.t is None for p in of.values()}) > 1:
        raise ValueError("paths mix curves, which have t, and trajectories, which have steps: draw them in two figures")
    curves = next(iter(of.values())).t is not None
    axis = "place t on the path" if curves else "step of the training run"
    both = any(np.isfinite(p.accuracy).any() for p in of.values()) if accuracy is None else accuracy
    looks = looks_for(of, looks)
    different = len({p.curve.get("statistics") for p in of.values()}) > 1
    texts = {name: _with_barrier(name, p, statistics=different) for name, p in of.items()}
    if backend == "plotly":
        return _plotly(of, texts, looks, theme, axis, both)
    with paper_style(theme):
        extra = legend_height(texts.values(), width)
        figure = PaperFigure(figsize=(width, 2.5 + extra), theme=theme)
        axes = figure.subplots(1, 2 if both else 1, squeeze=False).ravel()
        for name, p in of.items():
            look, x = looks[name], _along(p)
            marker = {"marker": look.marker, "ms": 2.5, "markevery": max(1, len(x) // 12)}
            axes[0].plot(x, p.loss, look.dashes, color=look.color, label=texts[name], **marker)
            if np.isfinite(p.stderr).any():
                axes[0].fill_between(x, p.loss - p.stderr, p.loss + p.stderr, color=look.color, alpha=0.18, lw=0)
            if curves:
                _barrier(axes[0], p, look)
            if both:
                axes[1].plot(x, p.accuracy, look.dashes, color=look.color, **marker)
        for ax, what in zip(axes, ("loss", "accuracy"), strict=False):
            ax.set_xlabel(axis)
            ax.set_ylabel(what)
            ax.grid(True)
        if both:
            low, high = axes[1].get_ylim()
            axes[1].set_ylim(top=min(high, 1 + 0.05 * (1 - low)))  # no accuracy is above 1, however narrow the range
        if not any(np.isfinite(p.loss).any() for p in of.values()):
            axes[0].text(0.5, 0.5, "no finite loss", transform=axes[0].transAxes, ha="center")
        note = "band: ± 1 standard error over examples" if any(np.isfinite(p.stderr).any() for p in of.values()) else None
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=legend_columns(texts.values(), width), title=note
        )
    return figure


def trajectory(
    one: LossPath,
    surface: Surface,
    *,
    backend: str = "matplotlib",
    theme: str = "light",
    width: float = COLUMN,
    scale: LossScale | None = None,
    title: str = "",
) -> Any:
    """Draw a path over the surface of its plane: a dot for every step, some of them numbered.

    The path is the projection on the plane by least squares; the axes say which share of the variance of the steps they explain.

    Args:
        one: a path with coordinates.
        surface: the loss on the same plane.
        backend: "matplotlib" or "plotly".
        theme: "light" or "dark".
        width: in inches, of the matplotlib figure.
        scale: the range of losses, to share it with other figures.
        title: above the picture.

    Returns:
        The matplotlib or plotly figure.

    Raises:
        ValueError: the path has no coordinates on a plane, or was projected on another plane than the surface's.
    """
    p, plane = check_type(one, LossPath, "path"), check_plane(surface, "surface")
    if p.coordinates is None or p.coordinates.ndim != 2 or p.coordinates.shape[1] != 2:
        raise ValueError(f"path {p.name!r} has no coordinates on a plane: project it first, as landscape.loss_trajectory does")
    if not on_same_plane(p, plane):
        raise ValueError(f"path {p.name!r} was projected on another plane than that of surface {plane.name!r}")
    figure = contour(plane, backend=backend, theme=theme, width=width, scale=scale, trajectory=p.coordinates, title=title)
    numbers = [f"{v:g}" for v in _along(p)]
    if backend == "plotly":
        figure.for_each_trace(
            lambda trace: trace.update(text=numbers, hovertemplate="step %{text}<br>x %{x:.3g}<br>y %{y:.3g}<extra></extra>"),
            selector={"name": "trajectory"},
        )
        return figure
    ax = figure.axes[0]
    with paper_style(theme):
        x, y = p.coordinates.T
        ax.plot(x, y, "o", ms=2.6, mfc="#D55E00", mec="white", mew=0.4, zorder=4)
        for i in _numbered(ax, p.coordinates):
            text = ax.annotate(numbers[i], (x[i], y[i]), (3, 3), textcoords="offset points", size=5, color="white", zorder=6)
            text.set_path_effects([patheffects.withStroke(linewidth=1.2, foreground="#101010")])
    return figure


def on_same_plane(one: LossPath, surface: Surface) -> bool:
    """Say whether a path was projected on the plane of a surface, by the hashes of origin and directions."""
    keys = ("origin_sha256", "direction_sha256")
    plane = one.curve.get("plane")
    return isinstance(plane, dict) and all(plane.get(k) is not None and plane.get(k) == surface.plane.get(k) for k in keys)


def _along(p: LossPath) -> Array:
    return np.asarray(p.step if p.t is None else p.t, dtype=float)


def _with_barrier(name: str, p: LossPath, *, statistics: bool) -> str:
    said = {"interpolate": ", mixed statistics", "recompute": ", new statistics"}.get(p.curve.get("statistics", "")) if statistics else None
    if p.t is None or p.highest is None:
        return label(name, 28) + (said or "")
    return f"{label(name, 20)}{said or ''}: barrier {with_error(p.barrier, p.barrier_stderr)}"


def _barrier(ax: Axes, p: LossPath, look: Look) -> None:
    assert p.t is not None
    ends = p.loss[[0, -1]]
    if not np.isfinite(ends).all():
        return
    ax.plot([0, 1], ends, ":", color=look.color, lw=0.8)
    if p.highest is not None and p.barrier > 0:
        t = p.t[p.highest]
        chord = (1 - t) * ends[0] + t * ends[1]
        ax.plot([t, t], [chord, p.loss[p.highest]], color=look.color, lw=0.8, marker="_", ms=5, mew=0.8)


def _numbered(ax: Axes, coordinates: Array) -> list[int]:
    """Return the steps that get a number: the first, the last, and those far enough from every number before."""
    extent = max(np.ptp(ax.get_xlim()), np.ptp(ax.get_ylim()))
    chosen = [0, len(coordinates) - 1]
    for i in range(1, len(coordinates) - 1):
        if all(np.hypot(*(coordinates[i] - coordinates[j])) > 0.12 * extent for j in chosen):
            chosen.append(i)
    return sorted(set(chosen))


def _plotly(of: Mapping[str, LossPath], texts: Mapping[str, str], looks: Mapping[str, Look], theme: str, axis: str, both: bool) -> Any:
    import plotly.graph_objects as go

    figure = new_plotly(theme, columns=2 if both else 1, horizontal_spacing=0.12)
    dash = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
    for name, p in of.items():
        look, x = looks[name], _along(p)
        line = {"color": look.color, "dash": dash[look.dashes]}
        error = np.where(np.isfinite(p.stderr), p.stderr, 0.0)
        for column, (what, values) in enumerate((("loss", p.loss), ("accuracy", p.accuracy))[: 2 if both else 1], start=1):
            trace = go.Scatter(
                x=x,
                y=values,
                error_y={"type": "data", "array": error, "thickness": 0.8} if what == "loss" and error.any() else None,
                mode="lines+markers",
                line=line,
                marker={"size": 4},
                name=plain(texts[name], 60),
                legendgroup=plain(name),
                showlegend=column == 1,
                hovertemplate=f"%{{x:.3g}}<br>{what} %{{y:.5g}}<extra>{plain(name)}</extra>",
            )
            figure.add_trace(trace, row=1, col=column)
        if p.t is not None and np.isfinite(p.loss[[0, -1]]).all():
            chord = {"color": INK[theme], "dash": "dot", "width": 1}
            figure.add_trace(
                go.Scatter(x=[0, 1], y=p.loss[[0, -1]], mode="lines", line=chord, showlegend=False, hoverinfo="skip"), row=1, col=1
            )
    for column, what in enumerate(("loss", "accuracy")[: 2 if both else 1], start=1):
        figure.update_xaxes(title_text=axis, row=1, col=column)
        figure.update_yaxes(title_text=what, row=1, col=column)
    return figure
