"""What is illegible in a drawn figure, by the boxes of its texts as the renderer places them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from landscape.plots.style import PaperFigure, paper_style

SLACK = 0.5  # points: letters do not fill their boxes


@dataclass(frozen=True)
class Box:
    """The rectangle of a text, turned as the text is."""

    text: str
    corners: np.ndarray  # (4, 2), pixels, in order around
    axes: Axes | None
    clipped: bool  # drawn only inside its axes


def flaws(figure: PaperFigure) -> list[str]:
    """Return what a reader would complain about: texts off the page, on one another, or on another panel."""
    with paper_style(figure.theme):  # which ticks there are depends on the style, too
        figure.draw_without_rendering()
        boxes = _boxes(figure)
    assert boxes, "a figure without any text says nothing"
    slack = SLACK * figure.dpi / 72
    page = figure.bbox.padded(slack)
    found = [
        f"{box.text!r} is off the page" for box in boxes if not box.clipped and not all(page.contains(*corner) for corner in box.corners)
    ]
    for box in boxes:
        panel = box.axes.get_window_extent().padded(slack) if box.axes is not None else page
        if box.clipped and not all(panel.contains(*corner) for corner in box.corners):
            found.append(f"{box.text!r} is cut at the edge of its panel")
    for one, other in itertools.combinations(boxes, 2):
        # what the panel clips may be gone there, and lies on the colours of its own panel only
        if (one.axes is other.axes or not (one.clipped or other.clipped)) and _overlap(one.corners, other.corners, slack):
            found.append(f"{one.text!r} on {other.text!r}")
    panels = [(ax, _corners(ax.patch.get_window_extent())) for ax in figure.axes if ax.get_visible() and ax.name != "3d"]
    for box, (ax, panel) in itertools.product(boxes, panels):
        if box.axes is not ax and not box.clipped and _overlap(box.corners, panel, slack):
            found.append(f"{box.text!r} on a panel that it does not belong to")
    return found


def _boxes(figure: Figure) -> list[Box]:
    outside: set[int] = set()  # labels of ticks beyond the ends of their axis, which nobody draws
    for axis in figure.findobj(Axis):
        low, high = sorted(axis.get_view_interval())
        slack = 1e-9 * (high - low)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not low - slack <= tick.get_loc() <= high + slack:
                outside |= {id(tick.label1), id(tick.label2)}
    hidden = {id(child) for owner in figure.findobj(lambda a: not a.get_visible()) for child in owner.findobj()}
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = []
    for text in figure.findobj(Text):
        if id(text) in hidden or not text.get_text().strip() or id(text) in outside:
            continue
        clipped = text.get_clip_on() and text.get_clip_box() is not None  # it is on by default, and clips nothing without a box
        boxes.append(Box(text.get_text(), _text_corners(text, renderer), _owner(text), clipped))
    return boxes


def _owner(text: Text) -> Axes | None:
    axes: Artist | None = text.axes
    return axes if isinstance(axes, Axes) else None


def _text_corners(text: Text, renderer: object) -> np.ndarray:
    """Return the corners of a text: a turned rectangle has the centre of its upright hull."""
    hull, angle = text.get_window_extent(renderer), text.get_rotation()  # type: ignore[arg-type]
    if angle % 90 == 0:
        return _corners(hull)
    text.set_rotation(0)
    flat = text.get_window_extent(renderer)  # type: ignore[arg-type]
    text.set_rotation(angle)
    turn = np.deg2rad(angle)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    middle = np.array([(hull.x0 + hull.x1) / 2, (hull.y0 + hull.y1) / 2])
    half = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [flat.width / 2, flat.height / 2]
    return middle + half @ matrix


def _corners(box: Bbox) -> np.ndarray:
    return np.array([[box.x0, box.y0], [box.x1, box.y0], [box.x1, box.y1], [box.x0, box.y1]])


def _overlap(one: np.ndarray, other: np.ndarray, slack: float) -> bool:
    """Say whether two rectangles overlap by more than the slack, by the separating axes along their sides."""
    for corners in (one, other):
        for side in (corners[1] - corners[0], corners[2] - corners[1]):
            along = side / (np.hypot(*side) or 1.0)
            a, b = one @ along, other @ along
            if min(a.max(), b.max()) - max(a.min(), b.min()) <= slack:
                return False
    return True
