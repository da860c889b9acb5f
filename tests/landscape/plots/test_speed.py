"""Accuracy against seconds: the drawn numbers against those of the histories, the time to a target against a straight line."""

import dataclasses

import numpy as np
import pytest
from conftest import Ripple

from landscape import plots
from landscape.results.types import TrainingHistory


def history(accuracy: list[float], seconds: list[float]) -> TrainingHistory:
    made, _ = Ripple(0.5).descend("sam", len(accuracy))
    return dataclasses.replace(made, test_accuracy=np.array(accuracy), seconds=np.array(seconds))


def test_mean_and_range_over_seeds_and_the_time_to_the_target() -> None:
    seeds = [history([0.2, 0.6, 0.9], [10.0, 20, 30]), history([0.4, 0.8, 0.7], [20.0, 30, 40])]
    figure = plots.speed({"sam": seeds, "sgd": seeds[0]}, target=0.65)
    sam, sgd = (line for line in figure.axes[0].lines[:2])
    np.testing.assert_allclose(sam.get_xydata(), [[15, 0.3], [25, 0.7], [35, 0.8]])
    np.testing.assert_allclose(sgd.get_ydata(), seeds[0].test_accuracy)
    (band,) = figure.axes[0].collections
    assert {tuple(np.round(p, 6)) for p in band.get_paths()[0].vertices} >= {
        (15, 0.2),
        (15, 0.4),
        (25, 0.6),
        (25, 0.8),
        (35, 0.7),
        (35, 0.9),
    }
    texts = [entry.get_text() for entry in figure.legends[0].get_texts()]
    assert texts == [f"sam: 0.65 in {15 + 10 * 0.35 / 0.4:.3g} s", f"sgd: 0.65 in {20 + 10 * 0.05 / 0.3:.3g} s"]
    low, high, mean, one = plots.speed({"sam": seeds, "sgd": seeds[0]}, backend="plotly").data
    np.testing.assert_allclose([low.y, high.y, mean.y], [[0.2, 0.6, 0.7], [0.4, 0.8, 0.9], [0.3, 0.7, 0.8]])
    np.testing.assert_allclose(one.x, [10, 20, 30])


@pytest.mark.parametrize(("seconds", "unit", "at"), [(500.0, "s", 500), (7200.0, "h", 2), (3600.0, "min", 60), (864000.0, "d", 10)])
def test_long_trainings_are_told_in_larger_units(seconds: float, unit: str, at: float) -> None:
    ax = plots.speed({"a": history([0.1, 0.5], [1.0, seconds])}, target=0.9).axes[0]
    assert ax.get_xlabel() == f"training time ({unit})" and ax.lines[0].get_xdata()[-1] == pytest.approx(at)
    assert ax.figure.legends[0].get_texts()[0].get_text() == "a: not 0.9"


def test_what_cannot_be_drawn_is_refused() -> None:
    one = history([0.1, 0.5], [1.0, 2.0])
    with pytest.raises(ValueError, match="same epochs"):
        plots.speed({"a": [one, history([0.1], [1.0])]})
    with pytest.raises(ValueError, match="target must be an accuracy"):
        plots.speed({"a": one}, target=95)
    with pytest.raises(ValueError, match="at least one"):
        plots.speed({})
    with pytest.raises(TypeError, match="TrainingHistory, got list"):
        plots.speed({"a": [[1.0]]})  # type: ignore[list-item]
