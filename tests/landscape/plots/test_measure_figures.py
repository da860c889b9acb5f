"""The table of all measures, ascents and SAM gaps as figures: what is drawn is what was measured."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import Ripple
from torch import nn
from torch.nn.functional import cross_entropy

from landscape import plots, sharpness
from landscape.objective import Objective
from landscape.results.types import Sharpness


@pytest.fixture(scope="module")
def results() -> dict[str, list[Sharpness]]:
    found: dict[str, list[Sharpness]] = {}
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 5, generator=g), torch.arange(24) % 3
    for name, scale in (("sgd", 1.0), ("<b>$x_1$</b>", 0.5)):
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(scale * torch.randn(p.shape, generator=g))
        every = sharpness.measure_all(Objective(model, cross_entropy, (x, y)), choices=sharpness.Choices(draws=3))
        found[name] = [r for r in every if isinstance(r, Sharpness)]
    return found


def bars(ax) -> list[tuple[float, float]]:
    """Return the middle and the half length of every error bar."""
    segments = [container.lines[2][0].get_segments()[0] for container in ax.containers]
    return [((s[0, 1] + s[1, 1]) / 2, (s[1, 1] - s[0, 1]) / 2) for s in segments]


def test_every_measure_has_a_panel_with_its_value_and_its_error(results) -> None:
    figure = plots.measures(results)
    drawn = [ax for ax in figure.axes if ax.get_visible()]
    titles = [ax.get_title() for ax in drawn]
    kinds = {t.splitlines()[0].replace(" ", "_").replace("m-sharp", "m_sharp") for t in titles}
    assert kinds == {r.measure for r in results["sgd"]}
    assert sum("adaptive" in t for t in titles) == 1 and sum(t.startswith("sam gap") for t in titles) == 1
    for ax in drawn:
        if not ax.get_title().startswith("gradient norm"):
            continue
        wanted = [next(r for r in of if r.measure == "gradient_norm") for of in results.values()]
        np.testing.assert_allclose(bars(ax), [(r.value, r.stderr) for r in wanted], rtol=1e-6)
    figure.canvas.draw()


def test_ascents_are_drawn_step_by_step(results) -> None:
    figure = plots.ascents(results, theme="dark")
    for ax, measure in zip(figure.axes, ("worst_case", "keskar"), strict=True):
        lines = [line for line in ax.lines if len(line.get_xdata()) > 1]
        for line, of in zip(lines, results.values(), strict=True):
            result = next(r for r in of if r.measure == measure)
            np.testing.assert_allclose(line.get_ydata(), result.steps)
            assert line.get_xdata()[0] == 1 and len(line.get_xdata()) == len(result.steps)
    figure.canvas.draw()


def test_gaps_are_drawn_over_the_radius(results) -> None:
    figure = plots.sam_gaps(results)
    (ax,) = figure.axes
    for container, of in zip(ax.containers, results.values(), strict=True):
        gaps = [r for r in of if r.measure == "sam_gap"]
        np.testing.assert_allclose(np.asarray(container.lines[0].get_ydata(), float), [r.value for r in gaps])
        np.testing.assert_allclose(np.asarray(container.lines[0].get_xdata(), float), [0.01, 0.02, 0.05, 0.1, 0.2])
    assert ax.get_xscale() == "log"
    figure.canvas.draw()


def test_what_has_no_error_or_steps_is_drawn_without(results) -> None:
    single = dataclasses.replace(results["sgd"][0], stderr=float("nan"))
    (bar,) = bars(plots.measures({"a": [single]}).axes[0])
    assert bar == pytest.approx((single.value, 0.0))
    with pytest.raises(ValueError, match="with steps"):
        plots.ascents({"a": [single]})
    with pytest.raises(ValueError, match="sam_gap"):
        plots.sam_gaps({"a": [single]})
    with pytest.raises(TypeError, match="dictionary from names to lists"):
        plots.measures({"a": single})


def test_a_measure_that_is_not_finite_leaves_the_others_drawn(flat: Ripple) -> None:
    good, bad = flat.sharpness(1), dataclasses.replace(flat.sharpness(1), value=float("nan"), stderr=float("nan"))
    figure = plots.measures({"a": [good], "b": [bad]})
    assert figure.axes[0].get_ylim()[1] > good.value
    assert "no finite value" in [t.get_text() for t in plots.measures({"a": [bad], "b": [bad]}).axes[0].texts]
