"""What the figures of paths show: numbers read back from the axes."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest

from landscape.plots import RunReport, path, paths, report, trajectory
from landscape.plots.gallery import draw_all
from landscape.results.types import LossPath, Surface

PLANE = {"kind": "pca", "origin_sha256": "ab", "direction_sha256": ["c", "d"], "explained_variance": [0.925, 0.0491]}


def curve(name: str = "linear", height: float = 2.0) -> LossPath:
    t = np.linspace(0, 1, 9)
    gap = 4 * height * t * (1 - t)
    error = np.full(9, 0.1)
    return LossPath(name, t, None, 0.5 + 0.2 * t + gap, 1 - gap / 4, error, {"type": "linear"}, gap, error)


def steps(name: str = "trajectory") -> LossPath:
    turn = np.linspace(0, 3, 13)
    place = np.stack([np.exp(-turn) * np.cos(turn), np.exp(-turn) * np.sin(turn)], 1)
    loss = (place**2).sum(1) + 0.1
    distance = np.linspace(0.1, 0, 13)
    return LossPath(
        name, None, np.arange(13), loss, loss * np.nan, loss * np.nan, {"plane": PLANE}, coordinates=place, distance=distance,
        explained_variance=np.array([0.925, 0.0491]),
    )  # fmt: skip


def surface() -> Surface:
    x, y = np.linspace(-0.5, 1.2, 15), np.linspace(-0.4, 0.8, 11)
    loss = x[None] ** 2 + y[:, None] ** 2 + 0.1
    return Surface("trajectory", x, y, loss, loss * np.nan, loss * np.nan, np.ones(loss.shape, np.uint8), PLANE)


def test_a_curve_its_band_its_chord_and_its_barrier() -> None:
    one = curve()
    figure = path(one)
    loss, accuracy = figure.axes
    drawn, chord, upright = loss.lines
    np.testing.assert_array_equal(drawn.get_ydata(), one.loss)
    np.testing.assert_allclose(chord.get_xydata(), [[0, 0.5], [1, 0.7]])
    np.testing.assert_allclose(upright.get_xydata(), [[0.5, 0.6], [0.5, 2.6]])  # from the chord to the curve
    band = loss.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(one.loss.max() + 0.1)
    np.testing.assert_array_equal(accuracy.lines[0].get_ydata(), one.accuracy)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["linear: barrier 2.00 ± 0.10"]
    plt.close("all")


def test_the_legend_says_whose_statistics_differ() -> None:
    mixed, anew = (dataclasses.replace(curve(), curve={"statistics": s}) for s in ("interpolate", "recompute"))
    texts = [t.get_text() for t in paths({"a": mixed, "b": anew}).legends[0].get_texts()]
    assert texts == ["a, mixed statistics: barrier 2.00 ± 0.10", "b, new statistics: barrier 2.00 ± 0.10"]
    assert [t.get_text() for t in paths({"b": anew}).legends[0].get_texts()] == ["b: barrier 2.00 ± 0.10"]
    plt.close("all")


def test_several_curves_and_missing_losses() -> None:
    holed = curve("holed")
    holed.loss[4] = holed.gap[4] = np.nan
    figure = paths({"high": curve(), "low": curve(height=0.0), "holed": holed}, backend="matplotlib", theme="dark")
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert "holed" in texts and any(t.startswith("low: barrier 0") for t in texts)
    interactive = paths({"high": curve(), "holed": holed}, backend="plotly")
    np.testing.assert_array_equal(interactive.data[0].y, curve().loss)


def test_a_trajectory_has_a_dot_for_every_step_and_the_axes_their_share() -> None:
    figure = trajectory(steps(), surface())
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o" and len(line.get_xdata()) == 13]
    np.testing.assert_array_equal(dots[0].get_xydata(), steps().coordinates)
    numbers = [t.get_text() for t in figure.axes[0].texts]
    assert "0" in numbers and "12" in numbers
    said = " ".join(t.get_text().replace("\n", " ") for t in figure.texts)
    assert "component 1 (92.5 % of variance)" in said and "component 2 (4.91 % of variance)" in said
    interactive = trajectory(steps(), surface(), backend="plotly")
    drawn = next(trace for trace in interactive.data if trace.name == "trajectory")
    assert list(drawn.text) == [str(i) for i in range(13)]


def test_three_minima_are_named_on_their_plane() -> None:
    from landscape.plots import contour

    marks = {"a": [0.0, 0.0], "b": [1.0, 0.0], "c": [0.3, 0.5]}
    figure = contour(dataclasses.replace(surface(), plane={"kind": "minima", "marks": marks}))
    named = {t.get_text(): t.xy for t in figure.axes[0].texts if t.get_text() in marks}
    assert {name: list(place) for name, place in named.items()} == marks


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match="mix curves"):
        paths({"a": curve(), "b": steps()})
    with pytest.raises(ValueError, match="another plane"):
        trajectory(steps(), dataclasses.replace(surface(), plane=PLANE | {"origin_sha256": "other"}))
    with pytest.raises(ValueError, match="no coordinates"):
        trajectory(curve(), surface())
    with pytest.raises(TypeError, match="LossPath"):
        path(surface())  # type: ignore[arg-type]


def test_the_gallery_draws_paths(tmp_path) -> None:
    run = RunReport("run", surfaces={"trajectory": surface()}, paths={"linear": curve(), "trajectory": steps()})
    written = {p.name for p in draw_all([run], tmp_path, formats=("png",), html=False)}
    assert {"paths.png", "steps.png", "path-trajectory-on-trajectory.png"} <= written


def test_the_report_shows_paths(tmp_path) -> None:
    run = RunReport("run", surfaces={"trajectory": surface()}, paths={"linear": curve(), "trajectory": steps()})
    page = report([run], tmp_path / "report.html").read_text()
    assert "Between minima: run" in page and "Trajectory: run, trajectory" in page and "Steps 0 to 12 of run" in page
