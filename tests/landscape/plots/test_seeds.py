"""Dots over seeds: each number is drawn, the bar is their mean."""

import numpy as np
import pytest

from landscape import plots

PANELS = {"eigenvalue": {"sgd": [3.0, 5.0], "sam": [1.0, 2.0]}, "loss": {"sgd": [0.1, 0.2], "sam": [0.3, 0.1]}}


def test_every_number_is_a_dot_and_the_bar_their_mean() -> None:
    figure = plots.over_seeds(PANELS)
    ax = figure.axes[0]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[3.0, 5.0], [1.0, 2.0]]
    assert [bar.get_segments()[0][0][1] for bar in ax.collections] == [4.0, 1.5]
    assert [a.get_ylabel() for a in figure.axes] == ["eigenvalue", "loss"]


def test_plotly_carries_the_same_numbers() -> None:
    figure = plots.over_seeds(PANELS, backend="plotly")
    np.testing.assert_array_equal(figure.data[1].y, [1.0, 2.0])


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one number"):
        plots.over_seeds({"eigenvalue": {"sgd": []}})
