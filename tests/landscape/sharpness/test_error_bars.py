"""Every standard error covers: over 200 seeds value ± 1.96 stderr holds the truth about 95 times of 100."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from problems import Vector
from torch import Tensor, nn

from landscape import sharpness
from landscape.objective import Objective
from landscape.results.types import Sharpness
from landscape.sharpness import paired_difference, pieces

SEEDS = 200
MEAN = torch.tensor([2.0, -1.0], dtype=torch.float64)  # of the centres; the weights are 0.5, 1.0
W = torch.tensor([0.5, 1.0], dtype=torch.float64)
SLOPE = W - MEAN


def half_square(outputs: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (outputs - target).square().sum(1).mean()


def centres(seed: int, count: int) -> Tensor:
    return MEAN + torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_centres(seed: int, count: int = 36, w: Tensor = W) -> Objective:
    """L(w) = E 1/2 |w - c|^2 over normal centres: 1/2 |w - mean|^2 + 1."""
    data = centres(seed, count)
    return Objective(Vector(w), half_square, (data, data))


def covers(measure: Callable[[int], Sharpness], truth: float, seeds: int = SEEDS) -> None:
    found = [measure(seed) for seed in range(seeds)]
    share = np.mean([abs(r.value - truth) <= 1.96 * r.stderr for r in found])
    assert 0.90 <= share <= 0.99, share
    # And no wider than it must be: the errors are what their bars say.
    errors, bars = np.array([r.value - truth for r in found]), np.array([r.stderr for r in found])
    assert 0.65 < errors.std() / np.median(bars) < 1.25, errors.std() / np.median(bars)


def box() -> float:
    side = 0.1 * (W.abs() + 1)
    gain = (side * SLOPE.abs()).sum() + 0.5 * side.square().sum()
    return 100 * float(gain / (1 + 0.5 * SLOPE.square().sum() + 1))


OVER_EXAMPLES: dict[str, tuple[Callable[[int], Sharpness], float]] = {
    "SAM gap": (lambda s: sharpness.sam_gap(of_centres(s), [0.1])[0], 0.1 * float(SLOPE.norm()) + 0.005),
    "gradient norm": (lambda s: sharpness.gradient_norm(of_centres(s)), float(SLOPE.norm())),
    "Fisher trace": (lambda s: sharpness.fisher_trace(of_centres(s), labels="data", vectorize=True), float(SLOPE.square().sum()) + 2),
    "Keskar": (lambda s: sharpness.keskar(of_centres(s), 0.1, steps=2), box()),
    "worst case": (
        lambda s: sharpness.worst_case(of_centres(s, 120), 0.1, 12, adaptive=False, steps=2, p=math.inf, vectorize=True),
        # Twelve centres hardly ever turn a sign of the mean slope: it is rho ||slope||_1 + rho^2.
        0.1 * float(SLOPE.abs().sum()) + 0.01,
    ),
}


@pytest.fixture(autouse=True)
def _few_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve pieces of three examples: an error bar of few values, and a third of the time."""
    monkeypatch.setattr(pieces, "AT_LEAST", 12)


SLOW = {"gradient norm", "Keskar", "worst case", "low pass", "relative flatness"}  # all together take more than ten seconds


def named(names: list[str]) -> list:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in names]


@pytest.mark.parametrize("name", named(list(OVER_EXAMPLES)))
def test_over_examples_and_shards(name: str) -> None:
    covers(*OVER_EXAMPLES[name])


def quadratic_in_two() -> Objective:
    data = torch.zeros(1, 2, dtype=torch.float64)
    curvature = torch.tensor([3.0, 1.0], dtype=torch.float64)
    return Objective(Vector(W), lambda o, t: 0.5 * (curvature * (o - t) ** 2).sum(1).mean(), (data, data))


def layer() -> tuple[Objective, float]:
    """For half the squared error kappa = sum_k (X^T X / N)_kk ||w||^2 summed over the rows of W."""
    g = torch.Generator().manual_seed(0)
    model = nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, 3, generator=g, dtype=torch.float64))
    x = torch.randn(4, 3, generator=g, dtype=torch.float64)
    truth = float((x.square().sum(1).mean()) * model.weight.detach().square().sum())
    return Objective(model, half_square, (x, torch.zeros(4, 2, dtype=torch.float64))), truth


def over_draws() -> dict[str, tuple[Callable[[int], Sharpness], float]]:
    fixed, (linear, kappa) = quadratic_in_two(), layer()
    here = fixed.loss()
    return {
        "average case": (lambda s: sharpness.average_case(fixed, 0.3, draws=12, seed=s), 0.5 * 0.09 * 4),
        "low pass": (lambda s: sharpness.low_pass(fixed, 0.3, draws=12, seed=s), here + 0.5 * 0.09 * 4),
        "relative flatness": (lambda s: sharpness.relative_flatness(linear, draws=12, seed=s), kappa),
    }


@pytest.mark.parametrize("name", named(["average case", "low pass", "relative flatness"]))
def test_over_draws(name: str) -> None:
    covers(*over_draws()[name])


def folded(mean: float) -> float:
    """E |x| of a normal of variance one."""
    return math.sqrt(2 / math.pi) * math.exp(-(mean**2) / 2) + mean * math.erf(mean / math.sqrt(2))


OTHER = torch.tensor([0.7, 1.2], dtype=torch.float64)


def pair(seed: int) -> list[Sharpness]:
    return [sharpness.m_sharpness(of_centres(seed, 150, w), 0.1, 1, p=math.inf, vectorize=True) for w in (W, OTHER)]


@pytest.mark.slow
def test_paired_differences_cover() -> None:
    """At m = 1 and p = inf the value of a shard is rho ||w - c||_1 + rho^2 (dimension two): means of folded normals."""
    expected = [0.1 * sum(folded(float(v)) for v in w - MEAN) + 0.01 for w in (W, OTHER)]
    covers(lambda seed: paired_difference(*pair(seed)), expected[0] - expected[1])


def test_paired_differences_are_sharper_than_unpaired_ones() -> None:
    a, b = pair(0)
    found = paired_difference(a, b)
    assert found.value == pytest.approx(a.value - b.value) and found.measure == "m_sharpness_difference"
    assert found.stderr < 0.5 * math.hypot(a.stderr, b.stderr)
    assert found.settings["between"] == [a.provenance.parameter_sha256, b.provenance.parameter_sha256]
    assert str(found.cost.gradients) == "2.0"


def test_paired_differences_over_the_same_draws() -> None:
    """Between L and 2 L every draw differs by its own value; with other draws they cannot be paired."""
    fixed = quadratic_in_two()
    steep = Objective(fixed.model, lambda o, t: 2 * fixed.loss_function(o, t), (torch.zeros(1, 2).double(), torch.zeros(1, 2).double()))
    one, two = (sharpness.average_case(o, 0.3, draws=8) for o in (fixed, steep))
    found = paired_difference(two, one)
    np.testing.assert_allclose(found.per_shard, one.per_shard)
    assert found.stderr == pytest.approx(one.stderr)


def test_what_was_not_measured_alike_is_no_pair() -> None:
    objective = of_centres(0)
    one = sharpness.m_sharpness(objective, 0.1, 4)
    for other, words in (
        (sharpness.m_sharpness(objective, 0.2, 4), "differ in rho: 0.1 and 0.2"),
        (sharpness.m_sharpness(objective, 0.1, 6), "differ in m: 4 and 6"),
        (sharpness.m_sharpness(objective, 0.1, 4, steps=2), "a is m_sharpness and b is multistep_m_sharpness"),
        (sharpness.m_sharpness(of_centres(1), 0.1, 4), "differ in data"),
        (sharpness.gradient_norm(objective), "a is m_sharpness and b is gradient_norm"),
    ):
        with pytest.raises(ValueError, match=words):
            paired_difference(one, other)
    with pytest.raises(TypeError, match="b must be a Sharpness, got float"):
        paired_difference(one, 0.3)  # type: ignore[arg-type]
