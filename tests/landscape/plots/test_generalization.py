"""Sharpness against the gap: every dot and bar where the results say, tau as pairs are counted."""

import dataclasses

import numpy as np
import pytest
from conftest import Ripple

from landscape import plots


def test_dots_bars_and_tau_are_those_of_the_results(sharp: Ripple, flat: Ripple) -> None:
    measures = {"sgd": [sharp.sharpness(16), sharp.sharpness(1)], "sam": flat.sharpness(16)}
    history, _ = flat.descend("sam", 3)
    history = dataclasses.replace(history, test_loss=history.train_loss + 0.25)
    figure = plots.generalization(measures, {"sgd": [(0.5, 0.1), 0.7], "sam": history})
    ax = figure.axes[0]
    sgd, sam = (container.lines for container in ax.containers)
    np.testing.assert_allclose(sgd[0].get_xydata(), [[measures["sgd"][0].value, 0.5], [measures["sgd"][1].value, 0.7]])
    np.testing.assert_allclose(sam[0].get_xydata(), [[measures["sam"].value, 0.25]])
    across, upwards = ([np.ptp(segment, axis=0).max() for segment in bars.get_segments()] for bars in sgd[2])
    np.testing.assert_allclose(across, [2 * s.stderr for s in measures["sgd"]])
    np.testing.assert_allclose(upwards, [0.2, 0])
    assert ax.get_title().startswith("τ = 1.00 (95 %: ") and ax.get_title().endswith("n = 3")
    assert ax.get_xlabel() == "sharpness" and "test loss − training loss" in ax.get_ylabel()
    interactive = plots.generalization(measures, {"sgd": [(0.5, 0.1), 0.7], "sam": history}, backend="plotly")
    np.testing.assert_allclose(interactive.data[0].error_y.array, [0.1, 0])
    assert interactive.layout.annotations[0].text == ax.get_title()


def test_eigenvalues_and_accuracies_say_what_they_are(sharp: Ripple, flat: Ripple) -> None:
    eigen = {"a": sharp.eigen(), "b": flat.eigen()}
    histories = {name: Ripple().descend(name, 3)[0] for name in eigen}
    figure = plots.generalization(eigen, histories, of="accuracy")
    ax = figure.axes[0]
    assert ax.get_xlabel() == "largest eigenvalue of the Hessian" and "training accuracy − test accuracy" in ax.get_ylabel()
    assert figure.legends[0].get_title().get_text() == "bars: residual across, standard error upwards"
    assert ax.get_title() == "n = 2: no rank correlation"
    expected = histories["a"].train_accuracy[-1] - histories["a"].test_accuracy[-1]
    np.testing.assert_allclose(ax.containers[0].lines[0].get_ydata(), expected)


def test_what_has_no_counterpart_is_refused(flat: Ripple) -> None:
    one = flat.sharpness(1)
    for measures, gaps, match in (
        ({}, {}, "at least one"),
        ({"a": one}, {"b": 0.1}, "same methods"),
        ({"a": [one, one]}, {"a": [0.1]}, "2 measures and 1 gaps"),
    ):
        with pytest.raises(ValueError, match=match):
            plots.generalization(measures, gaps)
    with pytest.raises(ValueError, match="of must be one of"):
        plots.generalization({"a": one}, {"a": 0.1}, of="error")
    with pytest.raises(TypeError, match=r"gaps\['a'\] must be"):
        plots.generalization({"a": one}, {"a": "large"})
