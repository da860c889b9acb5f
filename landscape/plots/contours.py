"""Contours of the loss on planes: one plane, or several side by side on one scale."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from landscape.plots.checks import check_drawing, check_named, check_plane
from landscape.plots.contour_labels import write_levels
from landscape.plots.interactive import colorbar, hover, new_plotly, plain
from landscape.plots.planes import direction, edges, has_centre, lowest_point, same_axes, shared_direction
from landscape.plots.scale import LossScale, draw_colorbar, loss_scale
from landscape.plots.style import COLUMN, FULL, INK, MISSING, PaperFigure, fitting, grid_shape, label, legend_columns, number, paper_style
from landscape.results.types import Array, Surface

_DARK = "#101010"  # on the colours of the plane, which no theme changes


def contour(
    surface: Surface,
    *,
    backend: str = "matplotlib",
    theme: str = "light",
    width: float = COLUMN,
    scale: LossScale | None = None,
    filled: bool = True,
    trajectory: Array | None = None,
    title: str = "",
) -> Any:
    """Draw the contours of a loss on a plane, at levels spaced logarithmically; the centre and the lowest point are marked.

    Args:
        surface: a surface with two axes.
        backend: "matplotlib" or "plotly" (with the values under the pointer).
        theme: "light" or "dark".
        width: in inches, of the matplotlib figure.
        scale: the range of losses, to share it with other figures; from this surface by default.
        filled: colour the plane as well.
        trajectory: (steps, 2) coordinates of a path to draw on the plane.
        title: above the picture.

    Returns:
        The matplotlib or plotly figure.
    """
    return _draw({title: check_plane(surface, "surface")}, backend, theme, width, scale, filled, {title: trajectory})


def contours(
    surfaces: Mapping[str, Surface],
    *,
    backend: str = "matplotlib",
    theme: str = "light",
    width: float = FULL,
    scale: LossScale | None = None,
    filled: bool = True,
    trajectories: Mapping[str, Array] | None = None,
) -> Any:
    """Draw the contours of several losses side by side, all on one scale; arguments as for `contour`.

    Returns:
        The matplotlib or plotly figure.
    """
    named = check_named(surfaces, Surface, "surfaces")
    for name, surface in named.items():
        check_plane(surface, f"surfaces[{name!r}]")
    return _draw(named, backend, theme, width, scale, filled, dict(trajectories or {}))


def _draw(
    surfaces: dict[str, Surface],
    backend: str,
    theme: str,
    width: float,
    scale: LossScale | None,
    filled: bool,
    trajectories: Mapping[str, Array | None],
) -> Any:
    check_drawing(backend, theme, width)
    for name, path in trajectories.items():
        if path is not None and (np.ndim(path) != 2 or np.shape(path)[1] != 2):
            raise ValueError(f"trajectory of {name!r} must have shape (steps, 2), got {np.shape(path)}")
    scale = scale or loss_scale(s.loss for s in surfaces.values())
    if backend == "plotly":
        return _plotly(surfaces, theme, scale, filled, trajectories)
    with paper_style(theme):
        return _paper(surfaces, theme, width, scale, filled, trajectories)


def _paper(
    surfaces: dict[str, Surface], theme: str, width: float, scale: LossScale, filled: bool, trajectories: Mapping[str, Array | None]
) -> PaperFigure:
    """Draw with matplotlib; the panels are placed by hand, in inches, since they keep the aspect of the plane."""
    every = list(surfaces.values())
    key = _key(every, scale, theme, any(t is not None for t in trajectories.values()))
    rows, columns = grid_shape(len(surfaces), width)
    bar = filled and bool(np.isfinite(scale.lowest))
    shared = same_axes(every)
    right = (0.98 if scale.note else 0.82) if bar else 0.12
    beside, ticks = shared_direction(every, 2), max(map(_tick_width, every))
    gap_x, gap_y = (0.24, 0.3) if shared else (ticks + 0.16, 0.42)
    key_columns = legend_columns([str(entry.get_label()) for entry in key], width)
    top, bottom = 0.24 if any(surfaces) else 0.08, 0.42 + 0.16 * int(np.ceil(len(key) / key_columns))

    def panel(left: float) -> tuple[float, float]:
        wide = (width - left - right - gap_x * (columns - 1)) / columns
        return wide, wide * min(2.0, max(0.4, _aspect(every[0]) or 1.0))

    left = 0.26 + ticks
    wide, tall = panel(left)
    if 0.065 * len(beside) > rows * tall + (rows - 1) * gap_y and " (" in beside:
        beside, left = beside.replace(" (", "\n("), left + 0.13
        wide, tall = panel(left)
    height = top + rows * tall + (rows - 1) * gap_y + bottom
    figure = PaperFigure(figsize=(width, height), theme=theme, layout=None)
    for i, (name, surface) in enumerate(surfaces.items()):
        row, column = divmod(i, columns)
        corner = (left + column * (wide + gap_x), height - top - row * (tall + gap_y) - tall)
        ax = figure.add_axes((corner[0] / width, corner[1] / height, wide / width, tall / height))
        ax.set_title(fitting(name, wide + gap_x - 0.1) if name else "")
        _panel(ax, surface, scale, filled, theme, small=wide < 1.9, trajectory=trajectories.get(name))
        ax.tick_params(labelleft=column == 0 or not shared, labelbottom=i + columns >= len(surfaces) or not shared)
    middle = (left + (width - right)) / 2 / width
    for ax in figure.axes if shared else ():
        _turn_inwards(ax)
    figure.text(middle, (bottom - 0.2) / height, shared_direction(every, 1), ha="center", va="top", size=8)
    figure.text(
        0.04 / width, (bottom + height - top) / 2 / height, beside, rotation=90, va="center", ha="left", multialignment="center", size=8
    )
    if bar:
        reach = min(rows * tall + (rows - 1) * gap_y, 3.0)
        cax = figure.add_axes(
            ((width - right + 0.12) / width, ((bottom + height - top) - reach) / 2 / height, 0.09 / width, reach / height)
        )
        draw_colorbar(figure, cax, scale)
    figure.legend(handles=key, loc="lower center", ncols=key_columns, bbox_to_anchor=(0.5, 0.02 / height))
    return figure


def _tick_width(surface: Surface) -> float:
    """Return how many inches the tick labels of the y axis take."""
    assert surface.y is not None
    texts = [number(v) for v in MaxNLocator(5).tick_values(*surface.y[[0, -1]])]
    return min(0.7, 0.047 * max(len(re.sub(r"[$^{}]", "", text.replace(r"\cdot", "·"))) for text in texts))


def _turn_inwards(ax: Axes) -> None:
    """Align the outermost tick labels with the edges of the panel, so that those of neighbours do not meet."""
    low, high = ax.get_xlim()
    ax.set_xticks([tick for tick in ax.get_xticks() if low <= tick <= high])
    for place, text in zip(ax.get_xticks(), ax.get_xticklabels(), strict=False):  # there are none where labels are off
        position = (place - low) / (high - low)
        text.set_horizontalalignment("left" if position < 0.05 else "right" if position > 0.95 else "center")


def _aspect(surface: Surface) -> float | None:
    """Return height over width of the plane in its own units where a picture can keep it."""
    if surface.y is None or len(surface.x) < 2 or len(surface.y) < 2:
        return None
    ratio = float(np.ptp(surface.y) / np.ptp(surface.x))
    return ratio if 0.25 <= ratio <= 4 else None


def _panel(ax: Axes, surface: Surface, scale: LossScale, filled: bool, theme: str, *, small: bool, trajectory: Array | None) -> None:
    assert surface.y is not None
    loss = np.ma.masked_invalid(scale.clip(surface.loss))
    x_edges, y_edges = edges(surface.x), edges(surface.y)
    grid = len(surface.x) > 1 and len(surface.y) > 1
    ax.set_xlim(tuple((surface.x if grid else x_edges)[[0, -1]]))
    ax.set_ylim(tuple((surface.y if grid else y_edges)[[0, -1]]))
    if _aspect(surface):
        ax.set_aspect("equal")
    ax.locator_params(nbins=3 if small else 5)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda value, _: number(value))  # no power of ten aside, where it meets other text
    if loss.count() < loss.size:
        absent = np.ma.masked_equal(~np.isfinite(surface.loss), False)
        ax.pcolormesh(x_edges, y_edges, absent, cmap=ListedColormap([MISSING[theme]]))
        if filled and grid:
            ax.set_facecolor(MISSING[theme])
    if not loss.count():
        ax.text(0.5, 0.5, "no finite loss", transform=ax.transAxes, ha="center", va="center")
        return
    varied = grid and float(np.ptp(loss.compressed())) > 0
    norm = scale.norm()
    if filled and varied:
        bands = ax.contourf(surface.x, surface.y, loss, levels=scale.fills(), norm=norm, antialiased=False)
        bands.set_rasterized(True)  # else viewers of PDF and SVG show seams between the bands
    elif filled:
        ax.pcolormesh(x_edges, y_edges, loss, norm=norm)
    levels = scale.levels(10 if small else 12)
    levels = levels[(levels > loss.min()) & (levels < loss.max())]
    if varied and len(levels):
        inks = [_DARK if norm(v) > 0.6 else "#ffffff" for v in levels] if filled else [INK[theme]] * len(levels)
        drawn = ax.contour(surface.x, surface.y, loss, levels=levels, colors=inks, alpha=0.8, linewidths=0.5)
        steps = np.asarray(trajectory, dtype=float) if trajectory is not None else np.empty((0, 2))
        taken = [(0.0, 0.0), *map(tuple, steps[np.isfinite(steps).all(axis=1)])]
        write_levels(ax, drawn, levels, inks, (0.45 if small else 0.3) * float(np.ptp(surface.x)), taken)
    if trajectory is not None:
        path = np.asarray(trajectory, dtype=float)
        ax.plot(path[:, 0], path[:, 1], **_PATH)
    marks = surface.plane.get("marks") if isinstance(surface.plane, dict) else None
    for name, place in (marks or {}).items():
        if len(place) == 2:
            ax.annotate(label(name, 12), place, (4, 4), textcoords="offset points", size=7, color="white", path_effects=_OUTLINE, zorder=6)
            ax.plot(*place, marker="o", ms=2.5, color="white", path_effects=_OUTLINE, zorder=6)
    if has_centre(surface):
        ax.plot(0, 0, **_CENTRE | {"ms": 5.0 if small else 7.0})
    lowest = lowest_point(surface)
    if lowest:
        ax.plot(lowest[0], lowest[1], **_LOWEST | {"ms": 4.0 if small else 5.5}, clip_on=False, zorder=5)


_PATH: dict[str, Any] = {"color": "#D55E00", "lw": 1.0, "path_effects": [patheffects.withStroke(linewidth=1.8, foreground="white")]}
_OUTLINE = [patheffects.withStroke(linewidth=1.6, foreground=_DARK)]
_CENTRE: dict[str, Any] = {
    "marker": "o",
    "mfc": "none",
    "mec": "white",
    "mew": 0.8,
    "ls": "none",
    "path_effects": [patheffects.withStroke(linewidth=1.6, foreground=_DARK)],
}
_LOWEST: dict[str, Any] = {"marker": "*", "mfc": "#E69F00", "mec": _DARK, "mew": 0.3, "ls": "none"}


def _key(surfaces: list[Surface], scale: LossScale, theme: str, trajectory: bool) -> list[Any]:
    """Return legend entries for what is drawn."""
    key: list[Any] = []
    if any(has_centre(s) for s in surfaces):
        key.append(Line2D([], [], **_CENTRE, ms=5.5, label="trained weights (0, 0)"))
    if np.isfinite(scale.lowest):
        low = f": {number(lowest[2])}" if len(surfaces) == 1 and (lowest := lowest_point(surfaces[0])) else ""
        key.append(Line2D([], [], **_LOWEST, ms=5, label=f"lowest point of the grid{low}"))
    if trajectory:
        key.append(Line2D([], [], **_PATH, label="trajectory"))
    if any(not np.isfinite(s.loss).all() for s in surfaces):
        key.append(Patch(facecolor=MISSING[theme], label="no finite loss"))
    return key


def _plotly(surfaces: dict[str, Surface], theme: str, scale: LossScale, filled: bool, trajectories: Mapping[str, Array | None]) -> Any:
    """Colours and levels are heights of the scale (log10); customdata holds the losses as they were measured."""
    import plotly.graph_objects as go

    rows, columns = grid_shape(len(surfaces), FULL)
    figure = new_plotly(
        theme, rows=rows, columns=columns, titles=list(surfaces) if any(surfaces) else None, horizontal_spacing=0.06, vertical_spacing=0.16
    )
    low, high = scale.height(np.array([scale.low, scale.high]))
    step = (high - low) / 16
    for i, (name, surface) in enumerate(surfaces.items()):
        place = {"row": i // columns + 1, "col": i % columns + 1}
        values, said = hover(surface)
        figure.add_trace(
            go.Contour(
                x=surface.x,
                y=surface.y,
                z=scale.height(surface.loss),
                customdata=values,
                name=plain(name),
                zmin=low,
                zmax=high,
                colorscale="Viridis",
                showscale=i == 0,
                colorbar=colorbar(scale, theme, logarithm=scale.log),
                contours={"start": low + step, "end": high - step, "size": step, "coloring": "heatmap" if filled else "lines"},
                line={"width": 0.6, "color": "rgba(255,255,255,0.6)"} if filled else {"width": 1.2},
                hovertemplate=f"x %{{x:.3g}}<br>y %{{y:.3g}}<br>{said}<extra></extra>",
            ),
            **place,
        )
        path = trajectories.get(name)
        marks = (
            [("trajectory", np.asarray(path, dtype=float)[:, 0], np.asarray(path, dtype=float)[:, 1], "lines+markers")]
            if path is not None
            else []
        )
        marks += [("trained weights", np.zeros(1), np.zeros(1), "circle-open")] if has_centre(surface) else []
        lowest = lowest_point(surface)
        marks += [("lowest point of the grid", np.array([lowest[0]]), np.array([lowest[1]]), "star")] if lowest else []
        for text, x, y, symbol in marks:
            line = symbol == "lines+markers"
            marker = (
                {"color": "#D55E00", "size": 4}
                if line
                else {
                    "symbol": symbol,
                    "size": 11,
                    "color": "#E69F00" if symbol == "star" else "#D55E00",
                    "line": {"width": 2 if symbol != "star" else 0.5},
                }
            )
            figure.add_trace(
                go.Scatter(x=x, y=y, mode=symbol if line else "markers", name=text, legendgroup=text, showlegend=i == 0, marker=marker),
                **place,
            )
        figure.update_xaxes(title_text=plain(direction(surface, 1)), constrain="domain", showgrid=False, **place)
        figure.update_yaxes(title_text=plain(direction(surface, 2)) if place["col"] == 1 else "", showgrid=False, **place)
        if _aspect(surface):
            index = "" if i == 0 else str(i + 1)
            figure.update_yaxes(scaleanchor=f"x{index}", scaleratio=1, constrain="domain", **place)
    figure.update_layout(height=rows * 340 + 110)
    return figure
