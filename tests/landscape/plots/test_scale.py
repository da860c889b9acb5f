"""The scale that all losses of a figure share, against what it must do to known losses."""

import numpy as np
import pytest

from landscape.plots.scale import loss_scale


def bowl(n: int = 51, top: float = 100.0) -> np.ndarray:
    x = np.linspace(-1, 1, n)
    return 0.01 + top / 2 * (x[:, None] ** 2 + x[None, :] ** 2)


def test_a_plain_bowl_is_shown_whole() -> None:
    scale = loss_scale([bowl()])
    assert (scale.low, scale.high, scale.log) == (0.01, bowl().max(), True)
    assert scale.note == "" and scale.extend == "neither"


@pytest.mark.parametrize("spike", [1e6, 1e30, 1e300])
def test_one_spike_does_not_rule_the_scale_and_the_reader_is_told(spike: float) -> None:
    loss = bowl()
    loss[7, 9] = spike
    scale = loss_scale([loss, bowl()])
    assert scale.high == bowl().max()
    assert scale.extend == "max" and f"{spike:.3g}" in scale.note
    assert scale.clip(loss).max() == scale.high


def test_the_scale_holds_all_surfaces() -> None:
    low, high = bowl(top=1.0) / 50, bowl(top=1000.0)
    scale = loss_scale([low, high])
    assert scale.low == low.min() and scale.high == high.max()


def test_negative_losses_turn_it_linear_and_the_label_says_so() -> None:
    scale = loss_scale([bowl() - 1])
    assert not scale.log and "negative" in scale.label and scale.low == pytest.approx(-0.99)
    np.testing.assert_array_equal(scale.height(bowl() - 1), bowl() - 1)


def test_zero_stays_on_a_logarithmic_scale() -> None:
    scale = loss_scale([bowl() - 0.01])
    assert scale.log and scale.low > 0 and scale.below and scale.note
    assert np.isfinite(scale.height(np.zeros(3))).all()


def test_what_is_not_finite_does_not_count() -> None:
    loss = bowl()
    loss[0, 0], loss[1, 1] = np.nan, np.inf
    scale = loss_scale([loss, np.full((3, 3), np.nan)])
    assert scale.high < 101 and np.isnan(scale.clip(loss)[1, 1])
    assert np.isnan(loss_scale([np.full(4, np.nan)]).lowest)


@pytest.mark.parametrize("value", [0.0, 2.0, -3.0, 1e-300, 1e300])
def test_a_constant_loss_has_a_place_inside_the_scale(value: float) -> None:
    scale = loss_scale([np.full((4, 5), value)])
    assert scale.low < scale.high and scale.low <= value <= scale.high
    assert np.isfinite(scale.norm()(value))


@pytest.mark.parametrize(("low", "high"), [(1e-6, 1e3), (0.01, 100), (0.5, 7), (1, 2), (0.3, 0.31), (1e-30, 1e-29), (-5, 20)])
def test_levels_are_round_few_and_inside(low: float, high: float) -> None:
    scale = loss_scale([np.linspace(low, high, 50)])
    levels = scale.levels(12)
    assert 2 <= len(levels) <= 14 and (np.diff(levels) > 0).all()
    assert levels.min() >= scale.low - 1e-6 * abs(scale.low) and levels.max() <= scale.high + 1e-6 * abs(scale.high)
    assert all(len(f"{level:.4g}".replace("-", "")) <= 6 for level in levels), levels
