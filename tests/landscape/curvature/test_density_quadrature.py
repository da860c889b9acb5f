"""Spectral densities against the eigenvalues they smear out."""

import numpy as np
import pytest
import torch
from oracles import dense_hessian
from problems import NETWORKS, network, spectrum_matrix
from scipy.stats import norm, wasserstein_distance

from landscape.curvature import DenseOperator, spectral_density, top_eigenpairs
from landscape.objective import Objective
from landscape.results import store

BULK_AND_OUTLIERS = np.concatenate([np.linspace(-1, 1, 190), np.full(6, 0.0), [30.0, 14, 6, -5]])


def distance(found, values):
    """Wasserstein-1 distance between what was found and the eigenvalues."""
    return wasserstein_distance(found.nodes.ravel(), values, found.weights.ravel())


def smeared(found, values):
    return norm.pdf(found.grid[:, None], values, found.sigma).mean(1)


def integral(found):
    return np.trapezoid(found.density, found.grid)


def test_density_of_a_known_spectrum():
    values = np.concatenate([np.linspace(-1, 1, 360), np.full(40, 3.0)])
    found = spectral_density(DenseOperator(spectrum_matrix(values)), probes=8, steps=40)
    assert abs(integral(found) - 1) < 1e-6
    assert np.allclose(found.weights.sum(1), 1)
    assert found.matvecs <= 8 * 40 and found.outliers is None
    assert distance(found, values) < 0.03
    outliers = np.trapezoid(np.where(found.grid > 2.5, found.density, 0), found.grid)
    assert abs(outliers - 0.1) < 0.03


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow if k != "mlp" else ()) for k in NETWORKS])
def test_networks_against_their_dense_spectrum(kind):
    problem = network(kind)
    hessian = dense_hessian(*problem)
    values = torch.linalg.eigvalsh(hessian).numpy()
    objective = Objective(*problem)
    plain = spectral_density(objective, probes=8, steps=20)
    pairs = top_eigenpairs(objective, k=6, tol=1e-6)
    deflated = spectral_density(objective, probes=8, steps=20, eigenpairs=pairs)
    span = np.ptp(values)
    assert distance(plain, values) < 0.03 * span and distance(deflated, values) < 0.015 * span
    for found in (plain, deflated):
        assert abs(integral(found) - 1) < 1e-6 and np.allclose(found.weights.sum(1), 1)
    assert deflated.matvecs == deflated.cost.hvps <= 8 * 20 + 1
    assert np.allclose(deflated.nodes[:, :6], pairs.values) and np.allclose(deflated.weights[:, :6], 1 / objective.size)


@pytest.mark.parametrize(
    "values",
    [[1.0] * 30 + [2.0] * 50, [*np.linspace(-1e-3, 1e-3, 70), 5, 5, 5, 9], [0.0] * 79 + [1.0], [-2.0] * 40 + [2.0] * 40],
    ids=["two values", "cluster", "rank one", "indefinite"],
)
def test_degenerate_and_clustered_spectra(values):
    matrix = DenseOperator(spectrum_matrix(values))
    found = [spectral_density(matrix, probes=16, steps=10, seed=seed) for seed in range(3)]
    assert np.mean([distance(f, values) for f in found]) < 0.05 * np.ptp(values)
    assert all(abs(integral(f) - 1) < 1e-6 for f in found)


def test_known_outliers_are_exact_and_told_from_the_bulk():
    operator = DenseOperator(spectrum_matrix(BULK_AND_OUTLIERS))
    pairs = top_eigenpairs(operator, k=6, tol=1e-6)
    found = spectral_density(operator, eigenpairs=pairs, steps=20)
    assert np.allclose(found.outliers, [30, 14, 6, -5], atol=1e-5)  # the other two pairs are the ends of the bulk
    assert abs(integral(found) - 1) < 1e-6 and found.sigma < 0.1
    for value in found.outliers:
        near = np.abs(found.grid - value) <= 5 * found.sigma
        assert abs(np.trapezoid(found.density[near], found.grid[near]) - 1 / 200) < 1e-5
        assert found.stderr[near].max() < 1e-6 * found.density.max()
    plain = spectral_density(operator, steps=20)
    assert distance(found, BULK_AND_OUTLIERS) < 0.6 * distance(plain, BULK_AND_OUTLIERS)


def test_everything_known_leaves_nothing_to_probe():
    operator = DenseOperator(torch.diag(torch.tensor([3.0, 1.0, -2.0], dtype=torch.float64)))
    found = spectral_density(operator, eigenpairs=top_eigenpairs(operator, k=3))
    assert distance(found, [3, 1, -2]) < 1e-9 and abs(integral(found) - 1) < 1e-6 and found.matvecs == 1
    assert np.array_equal(found.stderr, np.zeros(len(found.grid)))


def test_eigenpairs_of_another_operator_are_refused_by_the_density():
    operator, other = (DenseOperator(spectrum_matrix(BULK_AND_OUTLIERS, seed=seed)) for seed in (0, 1))
    with pytest.raises(ValueError, match="belongs to another operator"):
        spectral_density(operator, eigenpairs=top_eigenpairs(other, k=3))


def test_four_runs_of_twenty_steps_match_one_of_a_hundred():
    values = np.concatenate([np.linspace(-0.2, 1, 380) ** 3, [8, 5, 3, 2.5, 2] * 4])
    operator = DenseOperator(spectrum_matrix(values))
    four = [distance(spectral_density(operator, probes=4, steps=20, seed=seed), values) for seed in range(8)]
    one = [distance(spectral_density(operator, probes=1, steps=100, seed=seed), values) for seed in range(8)]
    assert np.mean(four) < np.mean(one)


@pytest.mark.parametrize(("given", "sigma"), [(False, None), (True, None), pytest.param(True, 0.1, marks=pytest.mark.slow)])
def test_the_band_covers_in_100_runs(given, sigma):
    """Share of the grid inside 1.96 standard errors: few probes, and steps that resolve the bulk or do not."""
    operator = DenseOperator(spectrum_matrix(BULK_AND_OUTLIERS))
    pairs = top_eigenpairs(operator, k=6, tol=1e-6) if given else None
    inside = []
    for seed in range(100):
        found = spectral_density(operator, eigenpairs=pairs, steps=12, sigma=sigma, seed=seed, grid=100)
        truth = smeared(found, BULK_AND_OUTLIERS)
        seen = truth > 1e-3 * truth.max()
        inside.append((np.abs(found.density - truth) <= 1.96 * found.stderr + 1e-12)[seen])
    assert np.mean(np.concatenate(inside)) >= 0.92


def shares(found, values, points):
    weights = norm.cdf((points[:, None] - found.nodes.ravel()) / found.sigma) @ found.weights.ravel() / len(found.nodes)
    return np.abs(weights - norm.cdf((points[:, None] - values) / found.sigma).mean(1))


def test_probes_are_taken_until_shares_are_known_as_asked():
    values = np.linspace(-1, 1, 150)
    operator = DenseOperator(spectrum_matrix(values))
    points = np.linspace(-1, 1, 21)
    counts = []
    for tol in (0.06, 0.02):
        runs = [spectral_density(operator, tol=tol, steps=16, sigma=0.15, seed=seed) for seed in range(25)]
        assert all(r.share_stderr <= tol for r in runs)
        inside = [shares(r, values, points) <= 1.96 * r.share_stderr for r in runs]
        assert np.mean(inside) >= 0.93
        counts.append(np.mean([len(r.nodes) for r in runs]))
    assert counts[1] > 2 * counts[0]
    few = spectral_density(operator, tol=1e-6, probes=5)
    assert len(few.nodes) == 5 and few.share_stderr > 1e-6


def test_outliers_and_shares_are_kept_in_files(tmp_path):
    operator = DenseOperator(spectrum_matrix(BULK_AND_OUTLIERS))
    found = spectral_density(operator, eigenpairs=top_eigenpairs(operator, k=4))
    read = store.load(tmp_path / "run.h5", store.save(tmp_path / "run.h5", found))
    assert np.array_equal(read.outliers, found.outliers) and read.share_stderr == found.share_stderr
    assert "4 outliers" in read.summary() and "shares ±" in read.summary()
    old = spectral_density(operator, probes=1)
    read = store.load(tmp_path / "run.h5", store.save(tmp_path / "run.h5", old))
    assert read.outliers is None and read.share_stderr is None and read.summary().endswith("1 probes")


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
    assert abs(integral(zero) - 1) < 1e-6
    one = spectral_density(DenseOperator(torch.tensor([[2.0]])))
    assert abs(integral(one) - 1) < 1e-6 and np.allclose(one.nodes, 2)


def test_grid_and_sigma_are_as_asked_for():
    operator = DenseOperator(spectrum_matrix(range(20)))
    grid = np.linspace(-1, 20, 300)
    found = spectral_density(operator, grid=grid, sigma=0.7, probes=1, steps=5)
    assert np.array_equal(found.grid, grid) and found.sigma == 0.7 and np.isnan(found.stderr).all()
    assert len(spectral_density(operator, grid=50).grid) == 50
    first, second = spectral_density(operator, seed=2), spectral_density(operator, seed=2)
    assert np.array_equal(first.density, second.density)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probes": 0}, "probes must"),
        ({"steps": 0}, "steps must"),
        ({"sigma": 0}, "sigma"),
        ({"grid": 1}, "grid"),
        ({"tol": 2}, "tol must"),
    ],
)
def test_wrong_arguments_of_the_density_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        spectral_density(DenseOperator(torch.eye(6)), **arguments)


def test_beside_known_outliers_a_rest_of_zeros_is_one_bump_and_not_its_rounding():
    for dtype in (torch.float64, torch.float32):
        operator = DenseOperator(spectrum_matrix(np.concatenate([[5.0, 4.0, 3.0], np.zeros(37)])).to(dtype))
        density = spectral_density(operator, eigenpairs=top_eigenpairs(operator, 3))
        assert np.trapezoid(density.density, density.grid) == pytest.approx(1, abs=1e-3)
        near = np.abs(density.grid) < 8 * density.sigma
        assert np.trapezoid(density.density[near], density.grid[near]) == pytest.approx(37 / 40, abs=1e-3)
