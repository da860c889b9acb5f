"""The refinement rule on formulas whose values everywhere are known: error, honesty of its estimate, and number of evaluations."""

import math

import numpy as np
import pytest

from landscape.surfaces import adaptive
from landscape.surfaces.adaptive import Filled, Refinement, Scale
from landscape.surfaces.interpolate import leave_one_out, predict

AXIS = np.linspace(-1, 1, 51)
X, Y = np.meshgrid(AXIS, AXIS)
FEW = AXIS[::2]

FORMULAS = {
    "bowl": 0.01 + (X - 0.1) ** 2 + 3 * (Y + 0.2) ** 2 + 2 * X**4 + (X * Y) ** 2,
    "steep bowl": 1e-4 + 1e4 * ((X - 0.13) ** 2 + (Y + 0.21) ** 2) ** 2,  # 1e-4 ... 7e4
    "saddle above zero": 3 + X**2 - Y**2 + 0.3 * np.sin(4 * X * Y),
    "kink": 0.5 + np.abs(X + 0.3 * Y),
    "cliff": 0.2 + X**2 + 2 / (1 + np.exp(-40 * (Y - 0.4 * X))),
}


def grown(loss: np.ndarray, x: np.ndarray, y: np.ndarray | None, tolerance: float = 0.01) -> tuple[np.ndarray, Filled, int]:
    """Apply the rule until it is content; return what was evaluated, the filled grid, and the number of rounds."""
    rule, flat = Refinement(x, y, tolerance), loss.ravel()
    evaluated = np.zeros(len(flat), dtype=bool)
    new, rounds = rule.first(), 0
    while len(new):
        assert not evaluated[new].any() and (np.diff(new) > 0).all()
        evaluated[new] = True
        rounds += 1
        seen = np.where(evaluated, flat, np.nan)
        new, missing = rule.next(evaluated, seen)
        assert (missing > 0) == (len(new) > 0)
    filled = rule.fill(evaluated, seen, seen, seen)
    np.testing.assert_array_equal(filled.loss[evaluated], flat[evaluated])
    return evaluated, filled, rounds


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_are_found_within_the_tolerance_and_the_estimate_is_honest(name: str) -> None:
    smooth = name in ("bowl", "steep bowl", "saddle above zero")
    loss, axis = (FORMULAS[name], AXIS) if smooth else (FORMULAS[name][::2, ::2], FEW)
    evaluated, filled, rounds = grown(loss, axis, axis)
    error = np.abs(filled.loss - loss.ravel())
    relative = error / loss.ravel()
    assert np.quantile(relative, 0.99) <= 0.01 and relative.max() <= 0.03
    assert np.mean(error[~evaluated] <= filled.error_estimate[~evaluated]) >= 0.95
    assert (filled.error_estimate[evaluated] == 0).all()
    assert evaluated.mean() <= (0.2 if smooth else 0.9) and rounds <= 16


def test_a_tighter_tolerance_costs_more_and_gives_more() -> None:
    loss = FORMULAS["bowl"][::2, ::2]
    coarse, fine = grown(loss, FEW, FEW, 0.03), grown(loss, FEW, FEW, 0.003)
    worst = [np.abs(filled.loss / loss.ravel() - 1).max() for _, filled, _ in (coarse, fine)]
    assert coarse[0].sum() < fine[0].sum() < 625 and worst[1] < worst[0] / 2
    assert grown(FORMULAS["kink"][:20, :20], AXIS[:20], AXIS[:20], 1e-9)[0].all()


def test_wide_grids_and_fine_grids_cost_what_the_surface_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of evaluations follows the surface, not the number of points."""
    monkeypatch.setattr(adaptive, "_CANDIDATES", 500)  # then every fourth point of each axis is looked at first
    x, y = np.linspace(-1, 1, 75), np.linspace(-1, 1, 41)
    loss = 0.1 + (x - 0.1) ** 2 + 3 * (y[:, None] + 0.2) ** 2
    evaluated, filled, _ = grown(loss, x, y)
    assert evaluated.sum() < 500 and np.abs(filled.loss / loss.ravel() - 1).max() < 0.02
    few = 1 + x**2 + y[::10, None] ** 2
    evaluated, filled, _ = grown(few, x, y[::10])
    assert evaluated.sum() < few.size / 2 and np.abs(filled.loss / few.ravel() - 1).max() < 0.01


def test_lines() -> None:
    for n, most in ((51, 45), (2001, 60)):
        x = np.linspace(-1, 2, n)
        loss = 0.05 + (x - 0.3) ** 2 + 0.1 * np.sin(5 * x) ** 2
        evaluated, filled, _ = grown(loss, x, None)
        error = np.abs(filled.loss - loss)
        assert evaluated.sum() <= most and (error / loss).max() <= 0.03 and np.mean(error <= filled.error_estimate) >= 0.95


@pytest.mark.parametrize("shape", [(2, 2), (2, 51), (3, 5), (51, 2)])
def test_small_grids_are_grids(shape: tuple[int, int]) -> None:
    y, x = (np.linspace(-1, 1, n) for n in shape)
    loss = 1 + x**2 + y[:, None] ** 2
    _, filled, _ = grown(loss, x, y)
    np.testing.assert_allclose(filled.loss, loss.ravel(), rtol=0.01)


def test_failed_points_are_surrounded_and_spoil_nothing() -> None:
    disk = np.where((X - 0.5) ** 2 + (Y - 0.4) ** 2 < 0.3, np.nan, 1 + X**2 + Y**2)[::2, ::2]
    evaluated, filled, _ = grown(disk, FEW, FEW)
    np.testing.assert_array_equal(np.isnan(filled.loss), np.isnan(disk.ravel()))
    finite = np.isfinite(disk.ravel())
    assert np.nanmax(np.abs(filled.loss / disk.ravel() - 1)) < 0.01
    assert not evaluated[~finite].all() and np.isnan(filled.error_estimate[~finite]).all()
    assert np.isfinite(filled.error_estimate[finite]).all()


def test_where_nothing_is_finite_all_is_tried() -> None:
    evaluated, filled, rounds = grown(np.full((20, 20), np.nan), AXIS[:20], AXIS[:20])
    assert evaluated.all() and np.isnan(filled.loss).all() and rounds == 2


@pytest.mark.parametrize("loss", [0 * X, X**2 + Y**2, np.maximum(X + Y, 0) ** 2, X + 2 * Y**2 - 0.5, -1 - X**2])
def test_zero_and_negative_losses_count_relative_to_their_usual_size(loss: np.ndarray) -> None:
    loss = loss[::2, ::2]
    _, filled, _ = grown(loss, FEW, FEW)
    size = np.hypot(loss, 0 if (loss > 0).all() else 0.1 * np.median(np.abs(loss)) + 1e-300).ravel()
    assert (np.abs(filled.loss - loss.ravel()) <= 0.01 * size).mean() >= 0.99
    assert (np.abs(filled.loss - loss.ravel()) <= 0.03 * size).all()


def test_a_scale_and_its_inverse_and_its_errors() -> None:
    losses = np.array([-3.0, 0.0, 1e-3, 2.0])
    for chosen in (losses, losses[2:]):
        scale = Scale.of(chosen)
        np.testing.assert_allclose(scale.back(scale.forth(chosen)), chosen, atol=1e-15)
        moved = scale.back(scale.forth(chosen) + 1e-4) - chosen
        np.testing.assert_allclose(scale.error(chosen, np.full(len(chosen), 1e-4)), moved, rtol=1e-3)
    assert Scale.of(losses[2:]).small == 0 and Scale.of(losses).small == pytest.approx(0.1 * 1.0005)


def test_accuracy_is_cut_and_missing_columns_stay_missing() -> None:
    rule = Refinement(AXIS, AXIS, 0.01)
    evaluated = np.zeros(2601, dtype=bool)
    evaluated[rule.first()] = True
    loss = np.where(evaluated, FORMULAS["bowl"].ravel(), np.nan)
    accuracy = np.where(evaluated, (X.ravel() > 0).astype(float), np.nan)
    filled = rule.fill(evaluated, loss, accuracy, np.full(2601, np.nan))
    assert filled.accuracy.min() == 0 and filled.accuracy.max() == 1 and np.isnan(filled.stderr).all()
    assert np.mean(np.abs(filled.accuracy - (X.ravel() > 0)) < 0.2) > 0.8
    zeros = rule.fill(evaluated, loss, loss * np.nan, 0 * loss)
    assert np.isnan(zeros.accuracy).all() and (zeros.stderr == 0).all()


def test_splines_reproduce_planes_and_pass_through_what_is_known() -> None:
    g = np.random.default_rng(0)
    for d in (1, 2):
        known, at = g.random((60, d)), g.random((30, d))
        values = np.stack([2 - known.sum(1), known[:, 0]], axis=1)
        np.testing.assert_allclose(predict(known, values, at).values[:, 0], 2 - at.sum(1), atol=1e-8)
        rough = g.standard_normal((60, 1))
        itself = predict(known, rough, known)
        np.testing.assert_allclose(itself.values, rough, atol=1e-7)
        assert itself.power.max() < 1e-4 < predict(known, rough, at).power.mean()


def test_leaving_one_out_is_predicting_from_the_rest() -> None:
    g = np.random.default_rng(1)
    known, values = g.random((30, 2)), g.standard_normal((30, 1))
    left_out = leave_one_out(known, values)
    for i in (0, 7, 29):
        rest = np.arange(30) != i
        alone = predict(known[rest], values[rest], known[i : i + 1])
        np.testing.assert_allclose(left_out.values[i], alone.values[0], rtol=1e-9)
        assert math.isclose(left_out.power[i], alone.power[0], rel_tol=1e-9)


def test_points_on_one_line_of_the_plane_do_not_stop_it() -> None:
    known = np.stack([np.linspace(0, 1, 50), np.full(50, 0.5)], axis=1)
    values = known[:, :1] ** 2
    at = np.array([[0.33, 0.5], [0.9, 0.5]])
    np.testing.assert_allclose(predict(known, values, at).values, at[:, :1] ** 2, atol=1e-4)


def valley(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 0.02 + (x - 0.1) ** 2 + 2 * (y + 0.2) ** 2 + 0.3 * np.abs(x + 0.3 * y) ** 1.5


def test_places_of_a_block_are_predicted_as_one_by_one() -> None:
    g = np.random.default_rng(0)
    known = g.random((150, 2))
    side = (np.arange(120) + 0.37) / 120
    at = np.stack([v.ravel() for v in np.meshgrid(side, side)], axis=1)
    blocks = (np.arange(120)[:, None] // 4 * 1000 + np.arange(120) // 4).ravel()
    values = np.stack([np.log(valley(*known.T)), known[:, 0] - 3 * known[:, 1]], axis=1)
    alone, together = predict(known, values, at), predict(known, values, at, blocks)
    assert 0.5 < np.mean(together.power != alone.power)  # most are predicted together
    truth = np.log(valley(*at.T))
    rms = [np.sqrt(np.mean((found.values[:, 0] - truth) ** 2)) for found in (alone, together)]
    assert rms[1] < 1.03 * rms[0]
    np.testing.assert_allclose(together.values[:, 1], alone.values[:, 1], atol=1e-9)  # what is linear is exact
    np.testing.assert_allclose(together.power, alone.power, rtol=0.2)
    single = predict(known, values, at, np.arange(len(at)))
    assert np.array_equal(single.values, alone.values) and np.array_equal(single.power, alone.power)


def test_a_large_grid_is_within_the_tolerance_too() -> None:
    x = np.linspace(-1, 1, 121)
    rule, truth = Refinement(x, x, 0.01), valley(*np.meshgrid(x, x)).ravel()
    evaluated = np.zeros(len(truth), dtype=bool)
    chosen = rule.first()
    while len(chosen):
        evaluated[chosen] = True
        chosen = rule.next(evaluated, np.where(evaluated, truth, np.nan))[0]
    seen = np.where(evaluated, truth, np.nan)
    filled = rule.fill(evaluated, seen, seen, seen)
    error = np.abs(filled.loss - truth)
    assert evaluated.mean() < 0.05 and np.quantile(error / truth, 0.99) < 0.01 and (error / truth).max() < 0.03
    assert np.mean(error[~evaluated] <= filled.error_estimate[~evaluated]) >= 0.95
