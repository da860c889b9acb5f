"""Projections against the condition that tells the nearest point, ascent against maxima over balls that are known exactly."""

import itertools
import math

import numpy as np
import pytest
import torch
from problems import Vector, network, quadratic, spectrum_matrix
from scipy.optimize import brentq
from torch import Tensor, nn

from landscape.objective import NonFiniteLossError, Objective
from landscape.sharpness import m_sharpness, worst_case
from landscape.sharpness.ball import Ball
from landscape.sharpness.climbs import checkpoints
from sam_core.optim.ascent import PNorm

NORMS = [1.0, 1.2, 1.5, 2.0, 3.0, 8.0, math.inf]


def dual_order(p: float) -> float:
    return math.inf if p == 1 else 1 if p == math.inf else p / (p - 1)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("rho", [0.01, 0.5, 3.0])
def test_projections_are_the_nearest_points(p: float, rho: float) -> None:
    """x is nearest to v in a convex set iff <v - x, y - x> <= 0 for all y in it: rho ||v - x||_q <= <v - x, x> for a ball."""
    v = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v[3] = 0
    ball = Ball(PNorm(rho, p), [torch.zeros(8, 5, dtype=torch.float64)])
    x = ball.project([v.view(8, 5)])[0].reshape(-1)
    assert x.norm(p) <= rho * (1 + 1e-12)
    assert rho * (v - x).norm(dual_order(p)) <= (v - x) @ x + 1e-9 * v.norm() * x.norm()
    torch.testing.assert_close(ball.project([x.view(8, 5)])[0].reshape(-1), x)  # a point of the ball stays
    small = v * (0.9 * rho / v.norm(p))
    assert torch.equal(ball.project([small.view(8, 5)])[0].reshape(-1), small)


@pytest.mark.parametrize("p", NORMS)
def test_random_points_fill_the_ball(p: float) -> None:
    """For a uniform point of a ball in n dimensions (||u|| / rho)^n is uniform."""
    ball = Ball(PNorm(0.3, p), [torch.zeros(5, dtype=torch.float64)])
    rng = np.random.default_rng(0)
    shares = sorted(float((ball.random(rng)[0].norm(p) / 0.3) ** 5) for _ in range(400))
    assert np.abs(shares - (np.arange(400) + 0.5) / 400).max() < 1.63 / math.sqrt(400)  # Kolmogorov-Smirnov at 1 %


def largest_in_l2_ball(a: Tensor, g: Tensor, rho: float) -> float:
    """max g e + 1/2 e A e over ||e|| <= rho: (lambda - A) e = g, lambda >= max(0, lambda_max), ||e|| = rho or lambda = 0."""
    values, vectors = torch.linalg.eigh(a)
    h = (vectors.T @ g).numpy()
    d = values.numpy()
    low = max(0.0, d[-1]) + 1e-12

    def excess(lam: float) -> float:
        return float(np.linalg.norm(h / (lam - d)) - rho)

    lam = low if excess(low) <= 0 else brentq(excess, low, low + np.linalg.norm(h) / rho + 1, xtol=1e-14)
    e = h / (lam - d)
    return float(h @ e + 0.5 * (d * e * e).sum())


def largest_at_vertices(a: Tensor, g: Tensor, vertices: Tensor) -> float:
    """A convex function has its maximum at a vertex."""
    return float((vertices @ g + 0.5 * (vertices @ a * vertices).sum(1)).max())


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("spectrum", [[4.0, 1.0, 0.2, 2.0], [3.0, -1.0, -2.0, 0.5], [-1.0, -0.5, -3.0, -2.0]])
def test_maxima_of_quadratics_over_l2_balls_and_ellipsoids(adaptive: bool, spectrum: list[float]) -> None:
    a = spectrum_matrix(spectrum)
    problem = quadratic(a, examples=2)
    w = problem.model.w.detach()
    t = w.abs() + 0.1 if adaptive else torch.ones_like(w)
    objective = Objective(*problem)
    for rho in (0.1, 2.0):
        exact = [largest_in_l2_ball(t[:, None] * a * t, t * (a @ (w - c)), rho) for c in problem.data[1]]
        options = {"m": 1, "p": 2.0, "adaptive": adaptive, "eta": 0.1 if adaptive else 0.0, "vectorize": True}
        for found in (worst_case(objective, rho, steps=40, **options), m_sharpness(objective, rho, steps=40, **options)):
            assert (found.per_shard <= np.array(exact) * (1 + 1e-9)).all()
            # Steps of a set length come near to a maximum inside the ball, auto-PGD's halved ones to it.
            np.testing.assert_allclose(found.per_shard, exact, rtol=1e-3 if found.measure == "worst_case" else 0.03)
            assert found.steps is not None and len(found.steps) == 40 and (np.diff(found.steps) >= 0).all()
            assert found.steps[-1] == pytest.approx(found.value)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("p", [1.0, math.inf])
def test_maxima_of_convex_quadratics_over_boxes_and_cross_polytopes(adaptive: bool, p: float) -> None:
    a = spectrum_matrix([4.0, 1.0, 0.2, 2.0, 0.5], seed=1)
    problem = quadratic(a, examples=3, seed=1)
    w = problem.model.w.detach()
    t = w.abs() if adaptive else torch.ones_like(w)
    rho = 0.4
    if p == 1:
        vertices = rho * torch.cat([torch.diag(t), -torch.diag(t)])
    else:
        vertices = rho * t * torch.tensor(list(itertools.product([-1.0, 1.0], repeat=5)), dtype=torch.float64)
    exact = [largest_at_vertices(a, a @ (w - c), vertices) for c in problem.data[1]]
    found = m_sharpness(Objective(*problem), rho, 1, p=p, adaptive=adaptive, steps=10, restarts=16, vectorize=True)
    assert (found.per_shard <= np.array(exact) * (1 + 1e-9)).all()
    np.testing.assert_allclose(found.per_shard, exact, rtol=1e-6)
    if p == math.inf:
        found = worst_case(Objective(*problem), rho, 1, adaptive=adaptive, steps=20, restarts=8, vectorize=True)
        assert (found.per_shard <= np.array(exact) * (1 + 1e-9)).all()
        np.testing.assert_allclose(found.per_shard, exact, rtol=0.01)  # a vertex without better neighbours is an end, too


class Neuron(nn.Module):
    """Two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.7, -0.4], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.w[0] * x) * 3 * self.w[1]


@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rho", [0.1, 0.8])
def test_auto_pgd_lies_between_one_step_and_the_largest_value_on_a_grid(p: float, adaptive: bool, rho: float) -> None:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(6, 1, generator=g, dtype=torch.float64)
    y = torch.randn(6, 1, generator=g, dtype=torch.float64)
    model = Neuron()
    objective = Objective(model, lambda o, t: ((o - t) ** 2).mean(), (x, y))
    found = worst_case(objective, rho, 3, p=p, adaptive=adaptive, steps=30, restarts=1)
    one = m_sharpness(objective, rho, 3, p=p, adaptive=adaptive)
    # The largest value on 60 shrunken copies of the sphere.
    angles = torch.linspace(0, 2 * math.pi, 1441, dtype=torch.float64)[:-1]
    sphere = torch.stack([angles.cos(), angles.sin()], 1)
    sphere = sphere / torch.linalg.vector_norm(sphere, p, dim=1, keepdim=True)
    u = (rho * torch.linspace(0, 1, 61, dtype=torch.float64)[:, None, None] * sphere).reshape(-1, 2)
    w = model.w.detach()
    points = w + u * (w.abs() if adaptive else 1)
    outputs = torch.tanh(points[:, 0] * x) * 3 * points[:, 1]  # (examples, points)
    losses = torch.stack([part.mean(0) for part in ((outputs - y) ** 2).split(3)])
    here = torch.stack([part.mean() for part in ((torch.tanh(w[0] * x) * 3 * w[1] - y) ** 2).split(3)])
    grid = (losses.amax(1) - here).numpy()
    assert (found.per_shard >= one.per_shard - 1e-12).all()
    assert (found.per_shard <= grid * (1 + 2e-4)).all()
    np.testing.assert_allclose(found.per_shard, grid, rtol=5e-3)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("p", [2.0, math.inf])
def test_auto_pgd_is_never_below_one_step_and_more_steps_never_find_less(kind: str, p: float) -> None:
    objective = Objective(*network(kind), batch_size=4)
    for rho in (0.02, 0.3):
        one = m_sharpness(objective, rho, 4, p=p)
        assert (worst_case(objective, rho, 4, p=p, adaptive=False, steps=1).per_shard >= one.per_shard - 1e-12).all()
        assert (worst_case(objective, rho, 4, p=p, adaptive=False, steps=7).per_shard >= one.per_shard - 1e-12).all()
        few, many = (m_sharpness(objective, rho, 4, p=p, steps=k) for k in (3, 6))
        assert few.steps is not None and many.steps is not None
        np.testing.assert_allclose(many.steps[:3], few.steps, rtol=1e-12)
        assert few.steps[0] == pytest.approx(one.value, rel=1e-12) and (many.per_shard >= few.per_shard).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_long_ascents_are_the_same_in_the_loop_and_together(dtype: torch.dtype, tolerance: float) -> None:
    objective = Objective(*network("mlp", dtype=dtype), batch_size=5)
    for measure, options in (
        (m_sharpness, {"steps": 2, "restarts": 1, "adaptive": True, "p": 1.0}),
        (worst_case, {"steps": 6, "restarts": 1, "p": 2.0, "normalize_logits": True}),
    ):
        loop, together = (measure(objective, 0.1, 4, vectorize=v, **options) for v in (False, True))
        np.testing.assert_allclose(together.per_shard, loop.per_shard, rtol=tolerance, atol=tolerance)
        assert loop.cost.gradients == options["steps"] * 2 and loop.cost.forwards == 2
        again = measure(objective, 0.1, 4, vectorize=False, **options)
        np.testing.assert_array_equal(again.per_shard, loop.per_shard)
        other = measure(objective, 0.1, 4, vectorize=False, seed=1, **options)
        assert other.settings["seed"] == 1 and loop.settings["seed"] == 0


def test_checkpoints_are_those_of_the_paper() -> None:
    """For 100 steps: 22, 41, 57, 70, 80, 87, 93, 99 (Croce and Hein 2020, where steps between them shrink by 3 down to 6)."""
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [] and checkpoints(5)[0] == 2


def test_a_loss_that_is_no_number_on_the_way_is_told() -> None:
    objective = Objective(Vector(torch.ones(1)), lambda o, t: 2 * o.sum() + (2 - o).log().sum(), (torch.zeros(3, 1), torch.zeros(3, 1)))
    for measure in (worst_case, m_sharpness):
        with pytest.raises(NonFiniteLossError, match="shard 0 .*after the climb of rho = 5"):
            measure(objective, 5.0, 1, steps=6)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"p": 3.0}, ValueError, "p must be 2 or inf"),
        ({"steps": 0}, ValueError, "steps, the number of steps of the ascent, must be at least 1, got 0"),
        ({"seed": None}, TypeError, "seed must be an integer"),
        ({"seed": -1}, ValueError, "seed, the seed of the draws, must be at least 0, got -1"),
        ({"rho": None}, TypeError, "rho must be a number"),
        ({"memory_budget": 0}, ValueError, "memory_budget must be at least 1 byte, got 0"),
        ({"memory_budget": 1e9}, TypeError, "memory_budget must be a number of bytes"),
        ({"vectorize": "yes"}, TypeError, "vectorize must be True, False or None, got 'yes'"),
        ({"restarts": 1.5}, TypeError, "restarts must be an integer"),
        ({"m": 0}, ValueError, "m, the number of examples per shard"),
        ({"rho": -1.0}, ValueError, "rho must be"),
    ],
)
def test_wrong_arguments_are_named(options: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        worst_case(Objective(*network("mlp")), **options)


def test_normalised_logits_need_logits() -> None:
    objective = Objective(Vector(torch.ones(1)), lambda model, batch: model(batch).sum(), [torch.zeros(2, 1)])
    with pytest.raises(ValueError, match="normalize_logits=True needs a loss"):
        worst_case(objective, normalize_logits=True)
