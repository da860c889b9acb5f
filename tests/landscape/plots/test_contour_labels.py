"""Labels of contours, on lines that run across the edges and around the centre of a plane."""

import dataclasses

import numpy as np
import pytest
from conftest import Ripple
from legibility import flaws
from matplotlib.collections import Collection
from matplotlib.contour import ContourSet

from landscape import plots


@pytest.mark.parametrize("turn", range(4))
def test_labels_lie_whole_in_the_panel_off_all_marks_in_gaps_of_their_lines(turn: int, flat: Ripple) -> None:
    plane = flat.surface(13, 13)
    x, y = np.meshgrid(plane.x, plane.y)
    # lines through the centre; hills; a bent valley whose highest lines run along the edges
    for loss in (10 ** (x + 0.3 * y), 1 + np.sin(5 * x + 1) * np.cos(4 * y), 0.01 + 3 * x**2 + 5 * y**4 + 2 * x * y):
        steps = np.array([[0.0, 0.0], [0.4, 0.4], [0.8, -0.6]])
        figure = plots.contour(dataclasses.replace(plane, loss=np.rot90(loss, turn)), trajectory=steps)
        assert not flaws(figure)
        ax = figure.axes[0]
        assert ax.texts
        lines = [p for c in ax.collections if isinstance(c, ContourSet) and not c.filled for p in Collection.get_paths(c)]
        drawn = ax.transData.transform(np.concatenate([p.interpolated(20).vertices for p in lines if len(p.vertices)]))
        marks = ax.transData.transform(steps)
        for text in ax.texts:
            middle, half = ax.transData.transform(text.get_position()), 0.4 * text.get_fontsize() * figure.dpi / 72
            assert np.hypot(*(marks - middle).T).min() > half
            assert -90 <= (text.get_rotation() + 180) % 360 - 180 <= 90
            near = np.sort(np.hypot(*(drawn - middle).T))
            assert half < near[0] < 8 * half  # the line stops before its label, and goes on beside it
