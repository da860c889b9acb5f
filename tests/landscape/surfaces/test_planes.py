"""Planes of trajectories and minima against NumPy's SVD and least squares."""

import math

import numpy as np
import pytest
import torch
from problems import network
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.objective import Objective
from landscape.surfaces import Plane, loss_surface, minima_plane, pca_plane


def random_points(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    scales = {"a.weight": torch.rand(4, 3, generator=g, dtype=torch.float64) * 3, "a.bias": torch.rand(4, generator=g, dtype=torch.float64)}
    return [{n: s * torch.randn(s.shape, generator=g, dtype=torch.float64) + 1 for n, s in scales.items()} for _ in range(count)]


def matrix(points: list[dict[str, Tensor]]) -> np.ndarray:
    return np.stack([torch.cat([t.reshape(-1) for t in p.values()]).double().numpy() for p in points])


@pytest.mark.parametrize("count", [3, 6, 30])
def test_components_and_explained_variance_are_those_of_the_svd(count: int) -> None:
    points = random_points(count)
    plane = pca_plane(points)
    rows = matrix(points)
    _, singular, right = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    np.testing.assert_allclose(plane.explained_variance, (singular**2 / (singular**2).sum())[:2], rtol=1e-10)
    own = matrix(list(plane.directions))
    np.testing.assert_allclose(np.abs(own @ right[:2].T), np.eye(2), atol=1e-8)
    assert all(torch.equal(plane.origin[n], points[-1][n]) for n in points[-1])
    coordinates, distances = plane.coordinates(points)
    np.testing.assert_allclose(coordinates, (rows - rows[-1]) @ own.T, atol=1e-10)
    rest = (rows - rows[-1]) - coordinates @ own
    np.testing.assert_allclose(distances, np.linalg.norm(rest, axis=1), atol=1e-9)
    assert (coordinates[0] >= 0).all() and plane.describe()["explained_variance"] == list(plane.explained_variance)


def test_components_without_biases_leave_them_alone() -> None:
    points = random_points(5)
    plane = pca_plane(points, include_norm_and_bias=False)
    assert not plane.directions[0]["a.bias"].any() and plane.norms == pytest.approx([1, 1])
    kept = matrix([{"a.weight": p["a.weight"]} for p in points])
    singular = np.linalg.svd(kept - kept.mean(0), compute_uv=False)
    np.testing.assert_allclose(plane.explained_variance, (singular**2 / (singular**2).sum())[:2], rtol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_projection_is_least_squares_for_directions_of_any_length_and_angle(scale: float) -> None:
    """Known tools divide by the length of a direction where the surface uses it squared."""
    origin, first, second, *points = random_points(8, seed=3)
    second = {n: second[n] + 0.8 * scale * first[n] for n in first}  # far from orthogonal
    first = {n: scale * t for n, t in first.items()}
    plane = Plane(origin, (first, second))
    assert abs(plane.cosine) > 0.3
    coordinates, distances = plane.coordinates(points)
    base = matrix([first, second]).T
    for point, x, distance in zip(matrix(points), coordinates, distances, strict=True):
        expected, residual, *_ = np.linalg.lstsq(base, point - matrix([origin])[0], rcond=None)
        np.testing.assert_allclose(x, expected, rtol=1e-9)
        assert distance == pytest.approx(residual[0] ** 0.5)
    on_it, none = plane.coordinates([plane.at(0.3, -1.7)])
    np.testing.assert_allclose(on_it, [[0.3, -1.7]], rtol=1e-9)
    assert none[0] < 1e-9


def test_a_surface_and_a_projected_trajectory_share_their_coordinates() -> None:
    problem = network("mlp")
    objective = Objective(*problem)
    a, b, c = ({n: p + 0.3 * torch.randn_like(p) for n, p in objective.parameters.items()} for _ in range(3))
    plane = minima_plane(objective, a, b, c, orthogonal=False)
    coordinates, _ = plane.coordinates([c])
    np.testing.assert_allclose(coordinates, [[0, 1]], atol=1e-9)
    surface = loss_surface(objective, plane, x=(0, 1, 2), y=(0, 1, 2))
    for (j, i), point in {(0, 0): a, (0, 1): b, (1, 0): c}.items():
        assert math.isclose(surface.loss[j, i], objective.loss(point), rel_tol=1e-9)


def test_three_minima_keep_their_distances() -> None:
    objective = Objective(*network("mlp"))
    a, b, c = (network("mlp", seed=s).model for s in (1, 2, 3))
    plane = minima_plane(objective, a, b, c)
    assert abs(plane.cosine) < 1e-12 and plane.norms[0] == pytest.approx(plane.norms[1])
    assert plane.marks["a"] == (0, 0) and plane.marks["b"] == (1, 0) and plane.describe()["marks"]["c"] == list(plane.marks["c"])
    flat = {n: torch.cat([p.detach().reshape(-1) for p in m.parameters()]) for n, m in {"a": a, "b": b, "c": c}.items()}
    for one, other in (("a", "c"), ("b", "c"), ("a", "b")):
        on_plane = plane.norms[0] * math.dist(plane.marks[one], plane.marks[other])
        assert on_plane == pytest.approx(float((flat[one] - flat[other]).norm()), rel=1e-9)
    line = minima_plane(objective, a, b)
    assert len(line.directions) == 1 and line.marks == {"a": (0,), "b": (1,)}


def test_planes_that_cannot_be_are_refused() -> None:
    objective = Objective(*network("mlp"))
    a, b = network("mlp", seed=1).model, network("mlp", seed=2).model
    middle = {n: (p + dict(b.named_parameters())[n]) / 2 for n, p in a.named_parameters()}
    with pytest.raises(ValueError, match="one line: they span no plane"):
        minima_plane(objective, a, b, middle)
    with pytest.raises(ValueError, match="b is the same point as a"):
        minima_plane(objective, a, a)
    with pytest.raises(ValueError, match="b has no '0.weight' where the objective's model"):
        minima_plane(objective, a, {})
    with pytest.raises(TypeError, match="c must be a model or a dictionary"):
        minima_plane(objective, a, b, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="trajectory has 2 points: 3 are needed"):
        pca_plane([a, b])
    with pytest.raises(ValueError, match="lie on a line"):
        pca_plane([a, middle, b])
    with pytest.raises(ValueError, match="one spot"):
        pca_plane([a, a, a])
    with pytest.raises(ValueError, match=r"trajectory\[1\] has .* where trajectory\[0\] has"):
        pca_plane([a, nn.Linear(5, 6), b])


def test_running_statistics_are_no_directions() -> None:
    models = [network("cnn", seed=s).model for s in range(4)]
    plane = pca_plane(models)
    assert set(plane.origin) == {n for n, _ in models[0].named_parameters()}
    state = pca_plane([m.state_dict() for m in models])
    assert state.sha256 == plane.sha256
    assert pca_plane(models, Objective(models[-1], F.cross_entropy, network("cnn").data)).sha256 == plane.sha256
