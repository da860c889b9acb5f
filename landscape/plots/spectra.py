"""Densities of Hessian spectra, with the outliers that lie apart from the bulk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from landscape.plots.checks import check_drawing, check_named, check_type
from landscape.plots.interactive import new_plotly, plain
from landscape.plots.style import COLUMN, INK, PALETTE, WIDE, Look, PaperFigure, fitting, looks_for, paper_style
from landscape.results.types import Array, Eigenpairs, SpectralDensity

_X, _Y = "eigenvalue of the Hessian", "density per unit of eigenvalue (log scale)"


def spectrum(
    density: SpectralDensity,
    *,
    eigen: Eigenpairs | None = None,
    backend: str = "matplotlib",
    theme: str = "light",
    width: float = COLUMN,
    title: str = "",
) -> Any:
    """Draw a spectral density on a logarithmic axis, with one standard error over probes as a band.

    Args:
        density: the density.
        eigen: eigenvalues to mark on the axis; by default the outliers where they are known, else the outermost Ritz values.
        backend: "matplotlib" or "plotly".
        theme: "light" or "dark".
        width: in inches, of the matplotlib figure.
        title: above the picture.

    Returns:
        The matplotlib or plotly figure.
    """
    check_type(density, SpectralDensity, "density")
    return _draw({title: density}, {title: eigen} if eigen is not None else {}, backend, theme, width, None)


def spectra(
    densities: Mapping[str, SpectralDensity],
    *,
    eigen: Mapping[str, Eigenpairs] | None = None,
    backend: str = "matplotlib",
    theme: str = "light",
    width: float = WIDE,
    looks: Mapping[str, Look] | None = None,
) -> Any:
    """Draw the spectral densities of several methods in one axis; arguments as for `spectrum`, by method.

    Returns:
        The matplotlib or plotly figure.
    """
    return _draw(check_named(densities, SpectralDensity, "densities"), dict(eigen or {}), backend, theme, width, looks)


def _floor(density: SpectralDensity) -> float:
    """Return the height below which a Gaussian's tail says nothing: a hundredth of the lightest outermost Ritz value's peak."""
    ends = np.concatenate([density.nodes.min(axis=1), density.nodes.max(axis=1)])
    peaks = np.interp(ends, density.grid, density.density)
    peaks = peaks[np.isfinite(peaks) & (peaks > 0)]
    top = float(np.nanmax(density.density))
    return max(float(peaks.min()) / 100 if peaks.size else 0.0, top * 1e-12)


def _marks(density: SpectralDensity, eigen: Eigenpairs | None) -> Array:
    """Return what to mark: the given eigenvalues, the outliers that are known, or the outermost Ritz values of the probes."""
    if eigen is not None:
        return eigen.values
    if density.outliers is not None:
        return density.outliers
    return np.concatenate([density.nodes.min(axis=1), density.nodes.max(axis=1)])


def _legend(densities: dict[str, SpectralDensity], eigen: dict[str, Eigenpairs]) -> str:
    """Say what the ticks and the triangles are."""
    ticks = {
        name: "eigenvalues" if name in eigen else "" if d.outliers is not None else "outermost Ritz values" for name, d in densities.items()
    }
    kinds = " or ".join(dict.fromkeys(kind for kind in ticks.values() if kind))
    parts = [f"ticks: {kinds}"] if kinds else []
    if any(d.outliers is not None for d in densities.values()):
        parts.append("triangles: outliers, of weight 1/n each")
    return "; ".join(parts)


def _draw(
    densities: dict[str, SpectralDensity],
    eigen: dict[str, Eigenpairs],
    backend: str,
    theme: str,
    width: float,
    looks: Mapping[str, Look] | None,
) -> Any:
    check_drawing(backend, theme, width)
    for name, pairs in eigen.items():
        check_type(pairs, Eigenpairs, f"eigen[{name!r}]")
    looks = looks_for(densities, looks) | ({"": Look(PALETTE[0], "o", "-")} if "" in densities else {})  # no name, no colour of its own
    finite = {name: d for name, d in densities.items() if d.grid.size and (np.isfinite(d.density) & (d.density > 0)).any()}
    floor = min((_floor(d) for d in finite.values()), default=1e-12)
    text = _legend(densities, eigen)
    if backend == "plotly":
        return _plotly(densities, eigen, looks, theme, floor)
    with paper_style(theme):
        several = len(densities) > 1
        rows, columns = (1, 1) if not several else (len(densities), 1) if len(densities) <= 4 or width < 5 else (-(-len(densities) // 2), 2)
        figure = PaperFigure(figsize=(width, rows * (0.85 if several else 1.7) + 0.7), theme=theme)
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for ax, (name, density) in zip(axes.T.flat, densities.items(), strict=False):
            _panel(ax, density, looks[name].color, floor, INK[theme], _marks(density, eigen.get(name)) if name in finite else np.array([]))
            if name:
                ax.set_title(fitting(name, width / columns - 0.75), loc="left" if several else "center")
        for ax in axes.T.flat[len(densities) :]:
            ax.set_visible(False)
            axes[-2, -1].tick_params(labelbottom=True)  # the last one that is seen in this column
        if finite:
            top = max(float(np.nanmax(d.density)) for d in finite.values())
            bottom = floor / (top / floor) ** 0.12
            axes[0, 0].set_ylim(bottom, top * 3)
            axes[0, 0].set_xlim(*_range(finite, eigen, bottom))
        figure.supxlabel(_X)
        figure.supylabel(_Y if several and rows > 1 else _Y.replace(" (", "\n("))
        bands = any((d.stderr > 0).any() for d in densities.values())
        figure.suptitle("; ".join(filter(None, [text, "band: ± 1 standard error" if bands else ""])), size=6)
    return figure


def _panel(ax: Axes, density: SpectralDensity, color: str, floor: float, ink: str, marks: Array) -> None:
    ax.set_yscale("log")
    ax.grid(True)
    if not density.grid.size or not (np.isfinite(density.density) & (density.density > 0)).any():
        ax.text(0.5, 0.5, "no density", transform=ax.transAxes, ha="center")
        return
    shown = np.maximum(density.density, floor * 1e-3)
    ax.plot(density.grid, shown, color=color, lw=1)
    ax.fill_between(density.grid, floor * 1e-3, shown, color=color, alpha=0.12, lw=0)
    error = np.where(np.isfinite(density.stderr), density.stderr, 0.0)
    ax.fill_between(density.grid, np.maximum(density.density - error, floor * 1e-3), density.density + error, color=color, alpha=0.25, lw=0)
    ax.plot(marks, np.full(len(marks), 0.05), "|", color=ink, ms=5, mew=0.8, transform=ax.get_xaxis_transform())
    if density.outliers is not None:
        peaks = np.interp(density.outliers, density.grid, density.density)
        ax.plot(density.outliers, 1.8 * np.maximum(peaks, floor), "v", color=ink, mfc="none", ms=3.5, mew=0.7)


def _range(densities: dict[str, SpectralDensity], eigen: dict[str, Eigenpairs], bottom: float) -> tuple[float, float]:
    """Return the range of eigenvalues that holds every mark, every Ritz value, and each bump down to the bottom of the axis."""
    places = [np.concatenate([d.nodes.ravel(), _marks(d, eigen.get(name)), d.grid[d.density > bottom]]) for name, d in densities.items()]
    found = np.concatenate(places)
    found = found[np.isfinite(found)]
    margin = max(0.015 * float(np.ptp(found)), max(d.sigma for d in densities.values()))
    return float(found.min()) - margin, float(found.max()) + margin


def _plotly(
    densities: dict[str, SpectralDensity], eigen: dict[str, Eigenpairs], looks: Mapping[str, Look], theme: str, floor: float
) -> Any:
    import plotly.graph_objects as go

    figure = new_plotly(theme)
    top = 1.0
    for name, density in densities.items():
        color = looks[name].color
        figure.add_trace(go.Scatter(x=density.grid, y=density.density, name=plain(name), mode="lines", line={"color": color, "width": 1.5}))
        if density.grid.size and np.isfinite(density.density).any():
            top = max(top, float(np.nanmax(density.density)))
            marks = _marks(density, eigen.get(name))
            figure.add_trace(
                go.Scatter(
                    x=marks,
                    y=np.full(len(marks), floor),
                    mode="markers",
                    marker={"symbol": "line-ns-open", "color": color, "size": 9},
                    showlegend=False,
                    hovertemplate="%{x:.6g}<extra></extra>",
                )
            )
            if density.outliers is not None:
                figure.add_trace(
                    go.Scatter(
                        x=density.outliers,
                        y=1.8 * np.maximum(np.interp(density.outliers, density.grid, density.density), floor),
                        mode="markers",
                        marker={"symbol": "triangle-down-open", "color": color, "size": 8},
                        name=plain(name),
                        showlegend=False,
                        hovertemplate="outlier %{x:.6g}<extra></extra>",
                    )
                )
    figure.update_xaxes(title_text=_X)
    figure.update_yaxes(title_text=_Y, type="log", range=[np.log10(floor) - 0.3, np.log10(top) + 0.5])
    return figure
