"""Where the losses are written on contours: on straight stretches, whole inside the panel, and on nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.contour import ContourSet
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import text_to_path

from landscape.plots.style import number
from landscape.results.types import Array

SIZE = 5.0
"""Points."""
GAP = 2.0
"""Points between a label and the line that goes on."""
BEND = 0.9
"""The least ratio of chord to length under a label: on sharper bends it would stand across the line."""


def write_levels(
    ax: Axes,
    drawn: ContourSet,
    levels: Sequence[float] | Array,
    inks: Sequence[str],
    least: float,
    taken: Iterable[tuple[float, float]] = (),
) -> None:
    """Write its level into every line that is long enough and has a place for it.

    Matplotlib's own `clabel` looks at the line only, and puts labels across the edge of the panel and on marks.

    Args:
        ax: the panel, with its final position and limits.
        drawn: the contours.
        levels: of these contours, in their order.
        inks: the colour of each level.
        least: extent, in units of the axes, that a line must have: a label on a smaller one would hide it.
        taken: places of marks that no label may cover.
    """
    ax.apply_aspect()  # else lengths on the paper are not known before the figure is drawn
    point = ax.get_figure(root=True).dpi / 72  # type: ignore[union-attr]  # in pixels
    occupied = [(*ax.transData.transform(place), 6 * point) for place in taken]
    paths = []
    for level, ink, path in zip(levels, inks, drawn.get_paths(), strict=True):
        text = number(level)
        wide, high = (side * point for side in _extent(text))
        pieces: list[Array] = []
        for line in _lines(path):
            on_paper = ax.transData.transform(line)
            found = None
            if np.ptp(line, axis=0).max() > least:
                stretches = _stretches(on_paper, wide + 2 * GAP * point)
                found = next((s for s in stretches if _free(s[1], s[2], wide, high, ax, point, occupied)), None)
            if found is None:
                pieces.append(line)
                continue
            start, middle, along = found
            occupied.append((*middle, 0.6 * wide))
            angle = (np.rad2deg(np.arctan2(along[1], along[0])) + 90) % 180 - 90  # never upside down
            x, y = ax.transData.inverted().transform(middle)
            ax.text(x, y, text, size=SIZE, color=ink, rotation=angle, ha="center", va="center", clip_on=True)
            pieces += [ax.transData.inverted().transform(p) for p in _without(on_paper, start, wide + 2 * GAP * point)]
        paths.append(Path.make_compound_path(*(Path(piece) for piece in pieces)) if pieces else path)
    drawn.set_paths(paths)


def _lines(path: Path) -> list[Array]:
    """Return the lines of a path, the first point again at the end of those that are closed; `to_polygons` would leave points out."""
    if path.codes is None:
        return [np.asarray(path.vertices)]
    starts = np.flatnonzero(path.codes == Path.MOVETO)
    lines = []
    for points, codes in zip(np.split(np.asarray(path.vertices), starts[1:]), np.split(path.codes, starts[1:]), strict=True):
        lines.append(np.concatenate([points[:-1], points[:1]]) if codes[-1] == Path.CLOSEPOLY else points)
    return lines


def _free(
    middle: Array, along: Array, wide: float, high: float, ax: Axes, point: float, occupied: Sequence[tuple[float, float, float]]
) -> bool:
    """Tell whether a label there lies whole inside the panel and apart from all that is taken."""
    across = np.array([-along[1], along[0]])
    corners = middle + np.array([[i * wide, j * high] for i in (-0.5, 0.5) for j in (-0.5, 0.5)]) @ np.array([along, across])
    low, high_corner = np.array(ax.bbox.min) + point, np.array(ax.bbox.max) - point
    if (corners < low).any() or (corners > high_corner).any():
        return False
    return all(np.hypot(middle[0] - x, middle[1] - y) > reach + 0.6 * wide for x, y, reach in occupied)


def _extent(text: str) -> tuple[float, float]:
    """Return width and height of a text in points."""
    font = FontProperties(family="DejaVu Sans", size=SIZE)
    wide, high, _ = text_to_path.get_text_width_height_descent(text, font, ismath="$" in text)
    return float(wide), float(high)


def _lengths(line: Array) -> Array:
    """Return how far along the line each of its points is."""
    return np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])


def _closed(line: Array) -> bool:
    return len(line) > 2 and bool(np.allclose(line[0], line[-1]))


def _at(line: Array, places: Array) -> Array:
    """Return the points at these lengths along the line; those on a closed line go on beyond its end."""
    at = _lengths(line)
    if _closed(line):
        places = places % at[-1]
    return np.stack([np.interp(places, at, column) for column in line.T], axis=1)


def _stretches(line: Array, length: float) -> Iterator[tuple[float, Array, Array]]:
    """Yield begin, middle and direction of the stretches of a line that have a length, the straightest first."""
    whole = _lengths(line)[-1]
    if whole < 2 * length:
        return
    starts = np.linspace(0, whole if _closed(line) else whole - length, int(4 * whole / length) + 2)
    begin, middle, end = (_at(line, starts + s) for s in (0.0, length / 2, length))
    chord = end - begin
    straight = np.hypot(*chord.T) / length
    for i in np.argsort(-straight.round(3), kind="stable"):
        if straight[i] < BEND:
            return
        yield float(starts[i]), middle[i], chord[i] / np.hypot(*chord[i])


def _without(line: Array, start: float, length: float) -> list[Array]:
    """Return what is left of a line without a stretch."""
    at, end = _lengths(line), start + length
    first, last = _at(line, np.array([start])), _at(line, np.array([end]))
    if _closed(line):
        twice = np.concatenate([at[:-1], at[:-1] + at[-1], at[:-1] + 2 * at[-1]])
        rest = np.concatenate([line[:-1]] * 3)[(twice > end) & (twice < start + at[-1])]
        return [np.concatenate([last, rest, first])]
    return [np.concatenate([line[at < start], first]), np.concatenate([last, line[at > end]])]
