"""Spectral densities against the eigenvalues they smear out."""

import numpy as np
import pytest
import torch
from oracles import dense_hessian
from problems import network, spectrum_matrix
from scipy.stats import wasserstein_distance

from landscape.curvature import DenseOperator, spectral_density
from landscape.objective import Objective


def test_density_of_a_known_spectrum():
    values = np.concatenate([np.linspace(-1, 1, 360), np.full(40, 3.0)])
    found = spectral_density(DenseOperator(spectrum_matrix(values)), probes=8, steps=40)
    assert abs(np.trapezoid(found.density, found.grid) - 1) < 1e-6
    assert np.allclose(found.weights.sum(1), 1)
    assert found.matvecs <= 8 * 40
    distance = wasserstein_distance(found.nodes.ravel(), values, found.weights.ravel())
    assert distance < 0.03
    outliers = np.trapezoid(np.where(found.grid > 2.5, found.density, 0), found.grid)
    assert abs(outliers - 0.1) < 0.03
    expected = np.mean([np.exp(-0.5 * ((found.grid - v) / found.sigma) ** 2) for v in values], 0) / found.sigma / np.sqrt(2 * np.pi)
    assert np.mean(np.abs(found.density - expected)[found.grid > 2.5] <= 4 * found.stderr[found.grid > 2.5] + 1e-9) > 0.95


def test_moments_are_those_of_the_probe_exactly():
    """m nodes integrate polynomials up to degree 2 m - 1."""
    problem = network("mlp")
    hessian = dense_hessian(*problem)
    found = spectral_density(DenseOperator(hessian), probes=200, steps=3, seed=1)
    same = spectral_density(Objective(*problem, batch_size=4), probes=2, steps=3, seed=1)
    assert np.allclose(same.nodes, found.nodes[:2], atol=1e-10) and same.cost.hvps == same.matvecs == 6
    for power in (1, 2, 3, 4, 5):
        estimates = (found.weights * found.nodes**power).sum(1)
        truth = float((torch.linalg.eigvalsh(hessian) ** power).mean())
        assert abs(estimates.mean() - truth) < 4 * estimates.std() / np.sqrt(200)


def test_a_krylov_space_that_closes_early():
    found = spectral_density(DenseOperator(torch.diag(torch.tensor([1.0, 1, 2, 2, 2]))), probes=3, steps=50)
    assert found.nodes.shape == (3, 5) and found.matvecs == 6
    assert np.allclose(found.weights.sum(1), 1) and np.allclose(found.weights[:, 2:], 0)
    zero = spectral_density(DenseOperator(torch.zeros(4, 4)))
    assert abs(np.trapezoid(zero.density, zero.grid) - 1) < 1e-6


def test_grid_and_sigma_are_as_asked_for():
    operator = DenseOperator(spectrum_matrix(range(20)))
    grid = np.linspace(-1, 20, 300)
    found = spectral_density(operator, grid=grid, sigma=0.7, probes=1, steps=5)
    assert np.array_equal(found.grid, grid) and found.sigma == 0.7 and np.isnan(found.stderr).all()
    assert len(spectral_density(operator, grid=50).grid) == 50
    first, second = spectral_density(operator, seed=2), spectral_density(operator, seed=2)
    assert np.array_equal(first.density, second.density)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"probes": 0}, "probes must"), ({"steps": 0}, "steps must"), ({"sigma": 0}, "sigma"), ({"grid": 1}, "grid")]
)
def test_wrong_arguments_of_the_density_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        spectral_density(DenseOperator(torch.eye(6)), **arguments)
