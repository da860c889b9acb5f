"""The loss over planes as heights: matplotlib for paper, plotly for turning around."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from landscape.plots.checks import check_drawing, check_named, check_plane
from landscape.plots.interactive import colorbar, hover, new_plotly, plain
from landscape.plots.planes import direction, shared_direction
from landscape.plots.scale import LossScale, draw_colorbar, loss_scale
from landscape.plots.style import COLUMN, FULL, INK, MISSING, PaperFigure, fitting, grid_shape, paper_style
from landscape.results.types import Surface

VIEW = (32.0, -58.0)
"""Elevation and azimuth, in degrees."""


def surface3d(
    surface: Surface,
    *,
    backend: str = "matplotlib",
    theme: str = "light",
    width: float = COLUMN,
    scale: LossScale | None = None,
    view: tuple[float, float] = VIEW,
    title: str = "",
) -> Any:
    """Draw the loss over a plane as a surface, on a logarithmic scale where no loss is negative.

    Args:
        surface: a surface with two axes.
        backend: "matplotlib", or "plotly", which turns under the pointer and holds the losses as they were measured.
        theme: "light" or "dark".
        width: in inches, of the matplotlib figure.
        scale: the range of losses, to share it with other figures; from this surface by default.
        view: elevation and azimuth in degrees, of the matplotlib figure.
        title: above the picture.

    Returns:
        The matplotlib or plotly figure.
    """
    return _draw({title: check_plane(surface, "surface")}, backend, theme, width, scale, view)


def surfaces3d(
    surfaces: Mapping[str, Surface],
    *,
    backend: str = "matplotlib",
    theme: str = "light",
    width: float = FULL,
    scale: LossScale | None = None,
    view: tuple[float, float] = VIEW,
) -> Any:
    """Draw several losses side by side on one scale; the plotly scenes turn together once saved. Arguments as for `surface3d`.

    Returns:
        The matplotlib or plotly figure.
    """
    named = check_named(surfaces, Surface, "surfaces")
    for name, surface in named.items():
        check_plane(surface, f"surfaces[{name!r}]")
    return _draw(named, backend, theme, width, scale, view)


def _draw(surfaces: dict[str, Surface], backend: str, theme: str, width: float, scale: LossScale | None, view: tuple[float, float]) -> Any:
    check_drawing(backend, theme, width)
    scale = scale or loss_scale(s.loss for s in surfaces.values())
    if backend == "plotly":
        return _plotly(surfaces, theme, scale)
    rows, columns = grid_shape(len(surfaces), width)
    with paper_style(theme):
        bar_width = 0.95 if scale.note else 0.8
        panel = (width - bar_width) / columns
        tall = 0.86 * panel
        top = (0.22 if rows == 1 else 0.3) if any(surfaces) else 0.02
        height = rows * (tall + top) + (0.36 if width < 5 else 0.24)
        figure = PaperFigure(figsize=(width, height), theme=theme, layout=None)
        every = list(surfaces.values())
        for i, (name, surface) in enumerate(surfaces.items()):
            row, column = divmod(i, columns)
            # placed by hand: no layout engine of matplotlib knows how far the labels of 3-D axes reach
            bottom = height - (row + 1) * (tall + top)
            box = (column * panel / width, bottom / height, panel / width, tall / height)
            ax: Any = figure.add_axes(box, projection="3d")
            if name:
                x = (column + 0.5) * panel / width
                figure.text(x, (bottom + tall + 0.06) / height, fitting(name, panel - 0.1), ha="center", va="bottom", size=8)
            _panel(ax, surface, scale, theme, view, panel)
        key = f"x: {shared_direction(every, 1)}    y: {shared_direction(every, 2)}"
        gap = "\n" if width < 5 else "    "
        figure.text(0.06 / width, 0.05 / height, key.replace("    ", gap), size=6, va="bottom")
        if np.isfinite(scale.lowest):
            reach = min(0.62, 2.2 / height)
            cax = figure.add_axes(((width - bar_width + 0.13) / width, 0.52 - reach / 2, 0.09 / width, reach))
            draw_colorbar(figure, cax, scale)
    return figure


def _panel(ax: Any, surface: Surface, scale: LossScale, theme: str, view: tuple[float, float], panel: float) -> None:
    assert surface.y is not None
    height = scale.height(surface.loss)
    low, high = scale.height(np.array([scale.low, scale.high]))
    ax.view_init(*view)
    ax.set_zlim(low, high)
    if len(surface.x) > 1 and len(surface.y) > 1:
        ax.set_xlim(*surface.x[[0, -1]])
        ax.set_ylim(*surface.y[[0, -1]])
    ax.set_box_aspect((1, 1, 0.72), zoom=1.0)
    ax.set_facecolor("none")
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_pane_color((0, 0, 0, 0))
        axis._axinfo["grid"] |= {"color": MISSING[theme], "linewidth": 0.4}
    small = panel < 2
    ax.tick_params(labelsize=5 if small else 6, pad=-4 if small else -3, length=0)
    ax.locator_params(axis="x", nbins=3)
    ax.locator_params(axis="y", nbins=3)
    ax.tick_params(axis="z", pad=-2 if small else -1)
    levels, texts = scale.ticks(4 if small else 6)
    ax.set_zticks(scale.height(levels), labels=texts)
    ax.set_xlabel("x", labelpad=-11 if small else -9, size=7)
    ax.set_ylabel("y", labelpad=-11 if small else -9, size=7)
    if not np.isfinite(height).any():
        ax.text2D(0.5, 0.5, "no finite loss", transform=ax.transAxes, ha="center")
        return
    if min(height.shape) < 2:
        x, y = np.broadcast_arrays(surface.x[None, :], surface.y[:, None])
        ax.plot(x.ravel(), y.ravel(), height.ravel(), color="#440154", marker="o", ms=2)
        return
    ax.plot_surface(
        *np.meshgrid(surface.x, surface.y),
        height,
        rcount=101,
        ccount=101,
        facecolors=_colors(height, low, high),
        shade=False,
        linewidth=0.4,
        antialiased=True,
        rasterized=True,
    )


def _colors(height: Any, low: float, high: float) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](np.ma.masked_invalid((height - low) / (high - low)))


def heights(surface: Surface, scale: LossScale) -> dict[str, Any]:
    """Return what plotly needs to know of one surface: its losses as they were measured, their colours, and what the pointer says."""
    values, said = hover(surface)
    along = [plain(direction(surface, axis)) for axis in (1, 2)]
    return {
        "x": surface.x,
        "y": surface.y,
        "z": surface.loss,
        "surfacecolor": np.asarray(scale.height(surface.loss), np.float32),
        "customdata": values,
        "hovertemplate": f"{along[0]} %{{x:.3g}}<br>{along[1]} %{{y:.3g}}<br>{said}<extra></extra>",
    }


def _plotly(surfaces: dict[str, Surface], theme: str, scale: LossScale) -> Any:
    """Heights are the losses as they were measured, on an axis that shows the range of the scale."""
    import plotly.graph_objects as go

    columns = 1 if len(surfaces) == 1 else 2 if len(surfaces) <= 4 else 3  # narrower scenes would cut their axis titles off
    rows = -(-len(surfaces) // columns)
    figure = new_plotly(
        theme,
        rows=rows,
        columns=columns,
        titles=list(surfaces) if any(surfaces) else None,
        specs=[[{"type": "scene"}] * columns] * rows,
        horizontal_spacing=0.01,
        vertical_spacing=0.06,
    )
    low, high = scale.height(np.array([scale.low, scale.high]))
    levels, _ = scale.ticks(6)
    line = {
        "gridcolor": MISSING[theme],
        "backgroundcolor": "rgba(0,0,0,0)",
        "color": INK[theme],
        "zerolinecolor": MISSING[theme],
        "nticks": 5,
        "tickfont": {"size": 10},
    }
    for i, (name, surface) in enumerate(surfaces.items()):
        place = {"row": i // columns + 1, "col": i % columns + 1}
        along = [plain(direction(surface, axis)) for axis in (1, 2)]
        trace = go.Surface(
            cmin=low,
            cmax=high,
            colorscale="Viridis",
            name=plain(name),
            showscale=i == 0,
            colorbar=colorbar(scale, theme, logarithm=scale.log) | {"len": 0.7},
            lighting={"ambient": 0.75, "diffuse": 0.5, "specular": 0.05},
        )
        figure.add_trace(trace.update(heights(surface, scale)), **place)
        figure.update_scenes(
            xaxis=line | {"title": {"text": along[0].split(" (")[0], "font": {"size": 12}}},
            yaxis=line | {"title": {"text": along[1].split(" (")[0], "font": {"size": 12}}},
            zaxis=line
            | {
                "title": {"text": "loss", "font": {"size": 12}},
                "range": [low, high],
                "tickvals": list(levels),
                "ticktext": [f"{v:.3g}" for v in levels],
            }
            | ({"type": "log"} if scale.log else {}),
            aspectmode="manual",
            aspectratio={"x": 1, "y": 1, "z": 0.8},
            camera={"eye": {"x": 1.35, "y": -1.55, "z": 0.95}, "center": {"x": 0, "y": 0, "z": -0.12}},
            **place,
        )
    figure.update_layout(height=rows * 420 + 60, margin={"l": 0, "r": 0, "t": 40 if any(surfaces) else 8, "b": 8})
    return figure
